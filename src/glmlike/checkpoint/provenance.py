"""Where a checkpoint's numbers come from: written into what is converted, read from what was.

Nothing here depends on the clock or on where a folder lies, so the same source gives the same bytes again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.checkpoint.checksums import TENSOR_HASH
from glmlike.checkpoint.containers import Sums
from glmlike.errors import CheckpointError, ConfigError

RECORD = "glmlike.json"
MERGED = "merged_adapters"
Hashes = dict[str, str]
"""sha256 by the names of files in their folder."""
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<revision>[^/]+)")
_BARE_SNAPSHOT = re.compile(r"models--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)")
_REVISION = re.compile(r"[0-9a-f]{40}")
_READ = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def version() -> str:
    """The version of this package."""
    return str(importlib.import_module("glmlike").__version__)


@dataclass(frozen=True)
class Origin:
    """What a source is called: a Hub id and revision where its path says so, else its folder's name; never a path."""

    name: str
    revision: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The fields that are known."""
        return {"name": self.name, **({"revision": self.revision} if self.revision else {})}


def origin_of(folder: Path) -> Origin:
    """The origin of a folder: of the Hub's cache, of ``hf download --local-dir``, or any other."""
    whole = folder.absolute().as_posix()
    if match := _SNAPSHOT.search(whole):
        return Origin(f"{match['owner']}/{match['name'].split('/')[0]}", match["revision"])
    if match := _BARE_SNAPSHOT.search(whole):
        return Origin(match["name"], match["revision"])
    return Origin(folder.resolve().name, _downloaded_revision(folder))


def _downloaded_revision(folder: Path) -> str | None:
    """The one revision that the notes of a download into the folder name, if they agree."""
    revisions = set()
    for path in (folder / ".cache" / "huggingface" / "download").glob("*.metadata"):
        first = path.read_text(encoding="utf8", errors="replace").split("\n", 1)[0].strip()
        revisions.add(first if _REVISION.fullmatch(first) else "")
    return revisions.pop() or None if len(revisions) == 1 else None


@dataclass(frozen=True)
class SourceFiles:
    """The sha256 of a source's files of weights: ``computed`` from their bytes, or what the Hub's client noted."""

    hashes: Hashes
    computed: bool

    def to_dict(self) -> dict[str, Hashes]:
        """What a record says."""
        return (
            {"files" if self.computed else "published_files": dict(sorted(self.hashes.items()))} if self.hashes else {}
        )


def computed(folder: Path, files: Iterable[str]) -> SourceFiles:
    """The sha256 of files in ``folder``, read for it."""
    found, buffer = {}, memoryview(bytearray(_READ))
    for file in files:
        hasher = hashlib.sha256()
        with (folder / file).open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                hasher.update(buffer[:count])
        found[file] = hasher.hexdigest()
    return SourceFiles(found, computed=True)


def published(folder: Path, files: Iterable[str]) -> Hashes:
    """The sha256 that the Hub said of files when they were downloaded, where its client noted it; nothing is read.

    Files in the Hub's cache are links to blobs of their repository, named by it (which may be links once more, to blobs
    that all repositories share and that are named by another hash). Beside files in a folder of one's own there are
    notes of three lines (revision, sha256, time), which hold for files that were not written since
    (huggingface_hub/_local_folder.py).
    """
    found = {}
    for file in files:
        path = folder / file
        blob = Path(os.path.normpath(path.parent.resolve() / path.readlink())) if path.is_symlink() else path
        cached = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
        known = blob.name if cached else _noted(folder, file)
        if _SHA256.fullmatch(known):
            found[file] = known
    return found


def _noted(folder: Path, file: str) -> str:
    note = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
    try:
        _, etag, time, *_ = note.read_text(encoding="utf8", errors="replace").split("\n")
        return etag.strip() if (folder / file).stat().st_mtime - 1 <= float(time) else ""
    except (OSError, ValueError):
        return ""


def earlier_record(folder: Path) -> dict[str, Any] | None:
    """The record of the conversion that wrote a folder, or None.

    Raises:
        CheckpointError: the file is there but is no such record.
    """
    path = folder / RECORD
    return read_record(path.read_bytes(), path) if path.exists() else None


def read_record(text: str | bytes, where: Path) -> dict[str, Any]:
    """A record from its text. Raises CheckpointError if it is none."""
    try:
        found = json.loads(text)
        sound = isinstance(found, dict) and isinstance(found["source"], dict) and isinstance(found["format"], str)
    except (ValueError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{where}: not the record of a conversion. Remove this file, or convert the source anew.")
    return dict(found)


def metadata(origin: Origin, target_format: str, files: SourceFiles, sums: Mapping[str, Sums] | None) -> dict[str, str]:
    """The metadata of a safetensors file: transformers asks for ``format``, the rest is ours under one key.

    ``sums=None``: no tensor was hashed. The size does not depend on the hashes.
    """
    source = {**origin.to_dict(), **files.to_dict()}
    record: dict[str, Any] = {"version": version(), "format": target_format, "source": source}
    if sums is not None:
        record |= {"tensor_hash": TENSOR_HASH, "tensors": {name: sums[name].hash for name in sorted(sums)}}
    return {"format": "pt", "glmlike": json.dumps(record, separators=(",", ":"))}


def record(
    origin: Origin,
    source_format: str,
    target_format: str,
    plan: str,
    files: SourceFiles,
    tensors: Mapping[str, Mapping[str, str]],
    before: dict[str, Any] | None,
    merged: Sequence[Mapping[str, str]] = (),
    others: Mapping[str, Any] | None = None,
) -> str:
    """The text of ``glmlike.json``: ``tensors`` are the hash of each, by file; ``before`` is the source's record.

    ``tensor_hash`` says which hash that is (records without it: sha256). ``merged`` are adapters that were merged now,
    beside those that the source's record says. ``others`` are entries of what is no tensor, such as the tokenizer.
    """
    source: dict[str, Any] = {**origin.to_dict(), "format": source_format, **files.to_dict()}
    content: dict[str, Any] = {
        "version": version(),
        "format": target_format,
        "plan": plan,
        "source": source,
        "tensor_hash": TENSOR_HASH,
        "tensors": {file: dict(sorted(found.items())) for file, found in sorted(tensors.items())},
        **(others or {}),
    }
    if before is not None:
        content["source"]["converted_from"] = {**before["source"], "by_version": before.get("version")}
    if adapters := [*merged_adapters(before), *merged]:
        content[MERGED] = adapters
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def merged_adapters(record: Mapping[str, Any] | None) -> list[Mapping[str, str]]:
    """The adapters whose changes are in a checkpoint's weights, by its record: ``name`` and ``sha256`` of each.

    Raises:
        ConfigError: the record says something else there.
    """
    found = (record or {}).get(MERGED, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ConfigError(f"{RECORD}: {MERGED!r} is no list of adapters. Restore the file, or remove it.")
    return list(found)


def identity(paths: list[Path], folder: Path) -> dict[str, Any]:
    """What tells a source from another without reading it all: names, sizes and the sha256 of what begins each file.

    What begins a file is its whole header where it is a safetensors file.
    """
    names = {path: path.name if path == folder else path.relative_to(folder).as_posix() for path in sorted(paths)}
    return {name: [path.stat().st_size, _beginning(path)] for path, name in names.items()}


def times(paths: list[Path]) -> list[int]:
    """When each file was last written: a source that was written since a run began is not resumed."""
    return [path.stat().st_mtime_ns for path in sorted(paths)]


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        first = file.read(2**16)
        length = int.from_bytes(first[:8], "little") if path.suffix == ".safetensors" else 0
        rest = file.read(max(0, min(8 + length, path.stat().st_size) - len(first)))
    return hashlib.sha256(first + rest).hexdigest()


def sha256_of(content: Any) -> str:
    """The sha256 of anything JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
