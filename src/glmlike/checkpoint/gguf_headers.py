"""GGUF headers, read and checked with the standard library: metadata, and where each tensor is.

The format (ggml/docs/gguf.md, versions 2 and 3, little-endian): magic, version, the numbers of tensors and of pairs;
the pairs; name, sizes, type and offset of each tensor; padding; the tensors, each at a multiple of the alignment.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from glmlike.checkpoint.headers import TensorInfo, is_shape, refuse_lfs_pointer
from glmlike.errors import CheckpointError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_HEADER = 2**28  # a vocabulary of 151552 tokens with 318088 merges has 13 MB
_MAX_NAME = 2**16
_ALIGNMENT = 32

Blocks = Mapping[int, tuple[str, int, int]]
"""Types by number: name, and numbers and bytes of one block."""


class _DamagedError(Exception):
    """What is wrong with a header."""


class _Reader:
    """Numbers and strings from the front of a file; nothing is read that the file or the bound has not."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, min(size, _MAX_HEADER)
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise _DamagedError(f"its header ends at byte {self.at}, or is larger than {_MAX_HEADER} bytes")
        found = self._file.read(count)
        if len(found) != count:
            raise _DamagedError("it became shorter while it was read")
        self._left, self.at = self._left - count, self.at + count
        return found

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, at_most: int = _MAX_HEADER) -> str:
        length = self.number("Q")
        if length > at_most:
            raise _DamagedError(f"a name of {length} bytes")
        try:
            return self.take(length).decode("utf8")
        except UnicodeDecodeError:
            raise _DamagedError("a text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise _DamagedError(f"a value of type {kind}")
        return self.number(_NUMBERS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            if count * 8 > self._left:
                raise _DamagedError(f"a list of {count} texts")
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise _DamagedError(f"a list of type {kind}")
        code = _NUMBERS[kind]
        raw = self.take(count * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{count}{code}", raw))


def read_gguf_header(path: Path, blocks: Blocks) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """The metadata by key, and every tensor by name: dtype by GGUF's name, shape with the longest stride first.

    Raises:
        CheckpointError: no GGUF file, cut off, or names, sizes and offsets that contradict each other.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not there. Pass a GGUF file.")
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            reader = _Reader(file, size)
            fields, entries = _parse(reader)
        return fields, _located(entries, fields, reader.at, size, path, blocks)
    except _DamagedError as error:
        raise CheckpointError(f"{path}: not a GGUF file, or damaged ({error}). Download it again.") from None


def _parse(reader: _Reader) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
    if reader.take(4) != b"GGUF":
        raise _DamagedError("it does not begin with GGUF")
    version, tensors, pairs = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in (2, 3):
        raise _DamagedError(f"version {version}; 2 and 3 are known, of little-endian machines")
    fields: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.text(_MAX_NAME)
        if key in fields:
            raise _DamagedError(f"the key {key!r:.80} stands twice")
        fields[key] = reader.value(reader.number("I"))
    entries = []
    for _ in range(tensors):
        name, rank = reader.text(_MAX_NAME), reader.number("I")
        if not 1 <= rank <= 4:
            raise _DamagedError(f"{name!r:.80} has {rank} dimensions")
        shape = tuple(reader.number("Q") for _ in range(rank))[::-1]
        entries.append((name, shape, reader.number("I"), reader.number("Q")))
    return fields, entries


def _located(
    entries: list[tuple[str, tuple[int, ...], int, int]],
    fields: Mapping[str, Any],
    end: int,
    size: int,
    path: Path,
    blocks: Blocks,
) -> dict[str, TensorInfo]:
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise _DamagedError(f"an alignment of {alignment!r:.40}")
    start = end + -end % alignment
    infos: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in infos:
            raise _DamagedError(f"{name!r:.80} stands twice")
        if kind not in blocks:
            raise _DamagedError(f"{name!r:.80} is of type {kind}, which the package gguf does not know; update it")
        dtype, numbers, of_bytes = blocks[kind]
        if not is_shape(shape) or 0 in shape or shape[-1] % numbers:
            raise _DamagedError(f"{name!r:.80} is {dtype} of shape {list(shape)}")
        count = 1
        for length in shape:
            count *= length
        first = start + offset
        infos[name] = TensorInfo(name, dtype, shape, path, first, first + count // numbers * of_bytes)
    position = start
    for info in sorted(infos.values(), key=lambda info: info.start):
        if info.start < position or info.start - position >= alignment or info.start % alignment != start % alignment:
            raise _DamagedError(f"{info.name!r:.80} overlaps another tensor or lies apart")
        position = info.end
    if position > size:
        raise _DamagedError(f"its tensors end at byte {position}, the file has {size}")
    return infos
