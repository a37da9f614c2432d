"""Where a checkpoint is read from: a folder, or a repository on the Hub, downloaded to the Hub's cache first."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmlike.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_AT_REVISION = re.compile(rf"(?P<repo>{HUB_ID.pattern})(@(?P<revision>[\w./-]+))?")
_SMALL = ("config.json", "*.index.json", "*LICENSE*")
_NOT_NEEDED = ("*.py", "*.pyc", "*.gguf", "*.onnx*", "*.msgpack", "*.h5", "original/*", "consolidated*")


def on_hub(source: str | Path, revision: str | None = None) -> tuple[str, str | None] | None:
    """The repository and the revision of ``user/name`` or ``user/name@revision``; None for a folder.

    Raises:
        ConfigError: a revision of a folder, or two of one repository.
    """
    found = None if Path(source).exists() else _AT_REVISION.fullmatch(str(source))
    if found is None:
        if revision is not None:
            raise ConfigError(f"{source}: a revision ({revision}) is of repositories on the Hub; this is no such id.")
        return None
    if revision is not None and found["revision"] is not None:
        raise ConfigError(f"{source}: two revisions, {found['revision']} and {revision}. Give one of them.")
    return found["repo"], found["revision"] or revision


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of ``source``: itself, or the snapshot of the repository that it is the id of (:func:`on_hub`).

    Raises:
        ConfigError: a revision of a folder, or a repository that cannot be read.
    """
    found = on_hub(source, revision)
    return Path(source) if found is None else download(*found)


def local_adapter(source: str | Path) -> Path:
    """:func:`local_folder` of an adapter: of a repository only its config and its weights come."""
    found = on_hub(source)
    return (
        Path(source) if found is None else _snapshot(*found, allow_patterns=["adapter_config.json", "adapter_model*"])
    )


def local_config(source: str | Path) -> Path:
    """:func:`local_folder` where a config.json is enough: of a repository nothing larger comes."""
    found = on_hub(source)
    return Path(source) if found is None else _snapshot(*found, allow_patterns=["config.json"])


@contextmanager
def headers(source: str | Path, revision: str | None = None) -> Iterator[Path]:
    """A folder to look at: of a repository, the headers of its .safetensors files, with holes for the numbers.

    Of a repository with other files all is downloaded, since their headers do not stand first.

    Raises:
        ConfigError: a revision of a folder, or a repository that cannot be read.
    """
    found = on_hub(source, revision)
    if found is None:
        yield Path(source)
        return
    small = _snapshot(*found, allow_patterns=["*.json"])
    with tempfile.TemporaryDirectory(prefix="glmlike-headers-") as place:
        folder = Path(place) / f"models--{found[0].replace('/', '--')}" / "snapshots" / small.name
        shutil.copytree(small, folder, ignore=shutil.ignore_patterns("original"))
        yield folder if _write_headers(found[0], small.name, folder) else download(found[0], small.name)


def _write_headers(repo: str, revision: str, folder: Path) -> bool:
    """The header of every .safetensors file, read by itself; False if there is none such, or no connection."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        files = HfApi().get_safetensors_metadata(repo, revision=revision).files_metadata
    except (NotASafetensorsRepoError, OSError, ValueError):
        return False
    for name, file in files.items():
        if Path(name).name != name:
            return False
        tensors = {key: {**vars(info), "data_offsets": list(info.data_offsets)} for key, info in file.tensors.items()}
        known = ("dtype", "shape", "data_offsets")
        entries = {key: {field: info[field] for field in known} for key, info in tensors.items()}
        text = json.dumps({"__metadata__": file.metadata, **entries} if file.metadata else entries).encode()
        with (folder / name).open("wb") as written:
            written.write(len(text).to_bytes(8, "little") + text)
            written.truncate(8 + len(text) + max((info["data_offsets"][1] for info in entries.values()), default=0))
    return True


def _snapshot(
    repo: str,
    revision: str | None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
    **hub: Any,
) -> Path:
    """A snapshot of some files, in the Hub's cache. Raises ConfigError as :func:`download` does."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, **hub
        )
        return Path(found)
    except (OSError, ValueError) as error:  # huggingface_hub's own are both
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{repo}: no folder of this name is here, and the repository cannot be read ({type(error).__name__}: "
            f"{reason}). Pass a folder, or go online; for a gated repository, log in with `hf auth login`."
        ) from error


def download(repo: str, revision: str | None = None, folder: str = "") -> Path:
    """The snapshot of a repository in the Hub's cache: weights of one kind, companions, no code; named by its commit.

    The small files come first: they fix the commit that all others are taken from. With ``folder``, only it and the
    licences come.

    Raises:
        ConfigError: the Hub cannot be reached and the cache has no copy, or it refuses.
    """
    first = _snapshot(repo, revision, allow_patterns=list(_SMALL))
    if folder:
        return _snapshot(repo, first.name, allow_patterns=[f"{folder}/*", *_SMALL])
    twice = ["*.bin"] if (first / "model.safetensors.index.json").exists() else []
    return _snapshot(repo, first.name, ignore_patterns=[*_NOT_NEEDED, *twice])


_SINGLES = ("model.safetensors", "pytorch_model.bin")


def weights(
    repo: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    proxies: Any = None,
) -> Path:
    """The folder, in the Hub's cache, of what loading a repository reads: its configs and one kind of weights.

    All files are of one commit. The arguments are those of ``from_pretrained``; huggingface_hub reads ``proxies`` from
    the environment.

    Raises:
        ConfigError: the Hub cannot be reached and the cache has no copy, or it refuses.
    """
    hub: dict[str, Any] = {"cache_dir": cache_dir, "force_download": force_download, "token": token}
    hub["local_files_only"] = local_files_only
    place = f"{subfolder.strip('/')}/" if subfolder else ""
    small = ("config.json", "generation_config.json", *(f"{single}.index.json" for single in _SINGLES))
    first = _snapshot(repo, revision, allow_patterns=[place + name for name in small], **hub)
    for single in _SINGLES:
        names = _indexed(first / place / f"{single}.index.json") or [single]
        _snapshot(repo, first.name, allow_patterns=[place + name for name in names], **hub)
        if any((first / place / name).exists() for name in names):
            break
    return first / place


def _indexed(index: Path) -> list[str]:
    """The files that an index names; none if there is no such index, or a damaged one, which its reader then names."""
    try:
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
