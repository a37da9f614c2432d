"""A Hub on the loopback interface, for tests: what huggingface_hub asks for when models are pushed and loaded again.

Files are taken as on the real one: small ones in the commit itself, large ones over LFS, or over Xet into a folder.
"""

from hub_server.repositories import TOKEN, USER, Hub
from hub_server.server import running

__all__ = ["TOKEN", "USER", "Hub", "running"]
