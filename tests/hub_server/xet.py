"""A folder that hf_xet takes for its storage (``local://``): the client chunks, deduplicates and writes for real."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = _ENTRY = 48
_VERIFIED, _WITH_METADATA = 1 << 31, 1 << 30


class XetFolder:
    """The storage's folder; which file of it has which sha256 stands in the shards that the client leaves there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        return f"local://{self.folder}"

    def hashes(self) -> dict[str, str]:
        """The Xet hash of every file stored, by its sha256."""
        return {sha: xet for path in self.folder.rglob("shards/*.mdb") for sha, xet in _read_shard(path.read_bytes())}


def _read_shard(data: bytes) -> list[tuple[str, str]]:
    """(sha256, Xet hash) of the files in a shard.

    After a header, for each file: a 32-byte hash, flags and a count of entries; the entries; as many again where the
    flags say so; then a record that begins with the sha256, where they say so. A hash of ones ends the list.
    """
    found, at = [], _HEADER
    while at + _ENTRY <= len(data) and data[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", data, at + 32)
        name = _hex(data[at : at + 32])
        at += _ENTRY * (1 + count * (2 if flags & _VERIFIED else 1))
        if flags & _WITH_METADATA:
            found.append((_hex(data[at : at + 32]), name))
            at += _ENTRY
    return found


def _hex(data: bytes) -> str:
    """A hash as its readers write it: four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))
