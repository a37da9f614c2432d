"""A pytest plugin for a process of its own: a Hub runs before huggingface_hub reads where its Hub is.

``pytest -p hub_server.environment tests/hub_cases/...``, with GLMLIKE_TEST_HUB=lfs or xet. Connections to anywhere but
this machine are refused.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hub_server import TOKEN, Hub, running

MODE = os.environ["GLMLIKE_TEST_HUB"]
_stack = ExitStack()
_room = Path(_stack.enter_context(tempfile.TemporaryDirectory(prefix="glmlike-hub-")))
HUB: Hub = _stack.enter_context(running(_room / "xet" if MODE == "xet" else None))

for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[_name]
os.environ |= {"HF_ENDPOINT": HUB.address, "HF_TOKEN": TOKEN, "HF_HOME": str(_room / "home"), "HF_HUB_OFFLINE": "0"}
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
if MODE == "lfs":
    os.environ["HF_HUB_DISABLE_XET"] = "1"
assert "huggingface_hub" not in sys.modules


class OutsideError(RuntimeError):
    """A connection to another machine was tried."""


def _watch(event: str, arguments: Any) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OutsideError(f"{host}: only this machine may be asked in tests")


sys.addaudithook(_watch)


@pytest.fixture(scope="session")
def hub() -> Hub:
    return HUB


@pytest.fixture(scope="session")
def mode() -> str:
    return MODE


@pytest.fixture(autouse=True)
def _every_request_is_known() -> Iterator[None]:
    """The Hub had an answer to everything, and no address held the token."""
    yield
    HUB.faults.clear()
    assert HUB.unknown == []
    assert not [request for request in HUB.requests if TOKEN in request]


def pytest_unconfigure() -> None:
    _stack.close()
