"""Where a checkpoint is read from: a folder, or a repository on the Hub, downloaded to the Hub's cache first."""

from __future__ import annotations

import re
from pathlib import Path

from glmlike.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL = ("config.json", "*.index.json", "*LICENSE*")
_NOT_NEEDED = ("*.py", "*.pyc", "*.gguf", "*.onnx*", "*.msgpack", "*.h5", "original/*", "consolidated*")


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of ``source``: itself, or the snapshot of the repository that it is the id of.

    Raises:
        ConfigError: a revision of a folder, or a repository that cannot be read.
    """
    folder = Path(source)
    if folder.exists() or not HUB_ID.fullmatch(str(source)):
        if revision is not None:
            raise ConfigError(f"{source}: a revision ({revision}) is of repositories on the Hub; this is no such id.")
        return folder
    return download(str(source), revision)


def download(repo: str, revision: str | None = None, folder: str = "") -> Path:
    """The snapshot of a repository in the Hub's cache: weights of one kind, companions, no code; named by its commit.

    The small files come first: they fix the commit that all others are taken from. With ``folder``, only it and the
    licences come.

    Raises:
        ConfigError: the Hub cannot be reached and the cache has no copy, or it refuses.
    """
    from huggingface_hub import snapshot_download

    try:
        first = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_SMALL)))
        if folder:
            return Path(snapshot_download(repo, revision=first.name, allow_patterns=[f"{folder}/*", *_SMALL]))
        twice = ["*.bin"] if (first / "model.safetensors.index.json").exists() else []
        return Path(snapshot_download(repo, revision=first.name, ignore_patterns=[*_NOT_NEEDED, *twice]))
    except (OSError, ValueError) as error:  # huggingface_hub's own are both
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{repo}: no folder of this name is here, and the repository cannot be read ({type(error).__name__}: "
            f"{reason}). Pass a folder, or go online; for a gated repository, log in with `hf auth login`."
        ) from error
