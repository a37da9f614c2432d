"""The files that are written: where each tensor's bytes go, known before one is written, and the frame around them.

A safetensors file is a header and the bytes. A torch zip file (what ``torch.save`` writes) is an uncompressed zip
archive: a pickle that names the tensors, and one record of bytes for each. The frame holds hashes or checksums of the
bytes, so it is written last; its size does not depend on them.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glmlike.checkpoint.byte_files import BLOCK
from glmlike.checkpoint.headers import DTYPE_SIZES, TORCH_NAMES
from glmlike.errors import CheckpointError

Shape = tuple[int, ...]
Tensors = Sequence[tuple[str, str, Shape]]
"""Name, dtype by safetensors' name, and shape of each tensor of a file."""
Run = tuple[str, int, int, int]
_WORTH_PADDING = 2**20


@dataclass(frozen=True)
class Sums:
    """What is known of a tensor's bytes once they are written: their :data:`~.checksums.TENSOR_HASH` and CRC-32."""

    hash: str = "0" * 32
    crc32: int = 0


class Container(Protocol):
    """One file to be written: ``path`` inside the folder, ``size`` in bytes, ``at``: where each tensor's begin.

    ``checked``: the file holds checksums of the tensors, without which it cannot be finished.
    """

    checked: bool
    path: str
    size: int
    at: dict[str, int]

    def frame(self, sums: Mapping[str, Sums]) -> list[tuple[int, bytes]]:
        """What the file holds beside the tensors' bytes: (offset, bytes), once all tensors are known."""


# The library's own order of dtypes, last to first: wider ones come earlier.
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)


class SafetensorsFile:
    """A safetensors file.

    Tensors are ordered as the library orders them, widest dtype first and then by name, so that each is aligned; the
    header is padded with spaces to a multiple of 8 bytes. ``metadata`` gives the header's metadata from the tensors'
    hashes, as many bytes for any hashes.

    ``runs`` say of stretches of tensors where they are in other files: tensor, place in it, offset there, bytes. Where
    they are a megabyte and more, the header is padded by less than a block more, so that most of them begin at the same
    place of a block here as there, and a file system that shares blocks between files can.
    """

    checked = False

    def __init__(
        self,
        path: str,
        tensors: Tensors,
        metadata: Callable[[Mapping[str, Sums]], dict[str, str]],
        runs: Iterable[Run] = (),
    ) -> None:
        self.path = path
        self._metadata = metadata
        self._padding = 0
        self._entries: dict[str, Any] = {}
        position = 0
        for name, dtype, shape in sorted(tensors, key=lambda found: (_ORDER.index(found[1]), found[0])):
            end = position + math.prod(shape) * DTYPE_SIZES[dtype]
            self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
            position = end
        empty = {name: Sums() for name in self._entries}
        self._padding = self._to_share(len(self._header(empty)), runs)
        start = len(self._header(empty))
        self.at = {name: start + entry["data_offsets"][0] for name, entry in self._entries.items()}
        self.size = start + position

    def frame(self, sums: Mapping[str, Sums]) -> list[tuple[int, bytes]]:
        header = self._header(sums)
        expected = min(self.at.values(), default=self.size)
        if len(header) != expected:
            raise AssertionError(f"{self.path}: a header of {len(header)} bytes where {expected} were kept free")
        return [(0, header)]

    def _to_share(self, start: int, runs: Iterable[Run]) -> int:
        """By how much more to pad a header of ``start`` bytes, so that most bytes of ``runs`` can be shared."""
        shifts: Counter[int] = Counter()
        for name, place, offset, count in runs:
            shift = (offset - place - start - self._entries[name]["data_offsets"][0]) % BLOCK
            if shift % 8 == 0:
                shifts[shift] += count
        padding, gain = max(shifts.items(), key=lambda found: (found[1], -found[0]), default=(0, 0))
        return padding if gain >= _WORTH_PADDING else 0

    def _header(self, sums: Mapping[str, Sums]) -> bytes:
        content = {"__metadata__": self._metadata(sums), **self._entries}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8 + self._padding)
        return len(text).to_bytes(8, "little") + text


_STORAGES = {
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "F32": "FloatStorage",
    "F64": "DoubleStorage",
    "U8": "ByteStorage",
    "I8": "CharStorage",
    "I16": "ShortStorage",
    "I32": "IntStorage",
    "I64": "LongStorage",
    "BOOL": "BoolStorage",
}
_ALIGNMENT = 64  # as torch.save pads records, so that they can be mapped


class TorchZipFile:
    """A file as ``torch.save({key: {name: tensor}})`` writes it, each tensor with a storage of its own.

    Without a key, the file is the dict of tensors itself.
    """

    checked = True

    def __init__(self, path: str, tensors: Tensors, key: str | None) -> None:
        self.path = path
        self._tensors = list(tensors)
        small = [("data.pkl", _pickle(self._tensors, key)), ("byteorder", b"little"), ("version", b"3\n")]
        self._records: list[_Record] = []
        self._small: dict[str, bytes] = {}
        for name, content in small:
            self._add(name, len(content))
            self._small[name] = content
        self.at = {}
        for index, (name, dtype, shape) in enumerate(self._tensors):
            self.at[name] = self._add(f"data/{index}", math.prod(shape) * DTYPE_SIZES[dtype])
        self._end = self._position
        self.size = self._end + len(self._directory([0] * len(self._records)))

    @property
    def _position(self) -> int:
        return self._records[-1].stop if self._records else 0

    def _add(self, name: str, size: int) -> int:
        self._records.append(_Record(f"archive/{name}", self._position, size))
        return self._records[-1].start

    def frame(self, sums: Mapping[str, Sums]) -> list[tuple[int, bytes]]:
        import zlib

        checks = [zlib.crc32(content) for content in self._small.values()]
        checks += [sums[name].crc32 for name, _, _ in self._tensors]
        pieces = [(record.offset, record.header(crc)) for record, crc in zip(self._records, checks, strict=True)]
        bodies = zip(self._records, self._small.values(), strict=False)
        pieces += [(record.start, content) for record, content in bodies]
        return [*pieces, (self._end, self._directory(checks))]

    def _directory(self, checks: Sequence[int]) -> bytes:
        entries = b"".join(record.entry(crc) for record, crc in zip(self._records, checks, strict=True))
        count, end = len(self._records), self._end + len(entries)
        zip64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(entries), self._end)
        zip64 += struct.pack("<IIQI", 0x07064B50, 0, end, 1)
        last = struct.pack(
            *("<IHHHHIIH", 0x06054B50, 0, 0, min(count, 0xFFFF), min(count, 0xFFFF)),
            *(min(len(entries), 0xFFFFFFFF), min(self._end, 0xFFFFFFFF), 0),
        )
        return entries + zip64 + last


@dataclass(frozen=True)
class _Record:
    """One uncompressed record of a zip archive, with 64-bit sizes; its bytes begin at ``start``, aligned."""

    name: str
    offset: int
    size: int

    @property
    def _padding(self) -> int:
        fixed = self.offset + 30 + len(self.name) + 20 + 4
        return -fixed % _ALIGNMENT

    @property
    def start(self) -> int:
        """Where the record's bytes begin."""
        return self.offset + 30 + len(self.name) + 20 + 4 + self._padding

    @property
    def stop(self) -> int:
        """Where the next record begins."""
        return self.start + self.size

    def header(self, crc: int) -> bytes:
        """The local header; the field "FB" is the padding that torch.save writes."""
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size)
        extra += struct.pack("<2sH", b"FB", self._padding) + b"Z" * self._padding
        sizes = (crc, 0xFFFFFFFF, 0xFFFFFFFF, len(self.name), len(extra))
        return struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, _DATE, *sizes) + self.name.encode() + extra

    def entry(self, crc: int) -> bytes:
        """The entry in the archive's directory."""
        extra = struct.pack("<HHQQQ", 1, 24, self.size, self.size, self.offset)
        sizes = (crc, 0xFFFFFFFF, 0xFFFFFFFF, len(self.name), len(extra))
        fixed = struct.pack("<IHHHHHHIIIHH", 0x02014B50, 45, 45, 0, 0, 0, _DATE, *sizes)
        return fixed + struct.pack("<HHHII", 0, 0, 0, 0, 0xFFFFFFFF) + self.name.encode() + extra


_DATE = 0x0021  # 1980-01-01, the first day a zip archive can say: files do not depend on the clock


def _pickle(tensors: Tensors, key: str | None) -> bytes:
    """The pickle of what a file holds (:class:`TorchZipFile`) in torch's own terms, the bytes left to the records."""
    import torch
    from torch._utils import _rebuild_tensor_v2

    class Storage:
        def __init__(self, index: int, dtype: str, count: int) -> None:
            self.identity = ("storage", getattr(torch, _STORAGES[dtype]), str(index), "cpu", count)

    class Placeholder:
        def __init__(self, storage: Storage, shape: Shape) -> None:
            strides = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
            self.rebuilt: Any = (_rebuild_tensor_v2, (storage, 0, tuple(shape), tuple(strides), False, OrderedDict()))

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            return found.identity if isinstance(found, Storage) else None

        def reducer_override(self, found: Any) -> Any:
            return found.rebuilt if isinstance(found, Placeholder) else NotImplemented

    for name, dtype, _ in tensors:
        if dtype not in _STORAGES:
            raise CheckpointError(f"{name!r} is {TORCH_NAMES[dtype]}, which this kind of file cannot hold.")
    module = {
        name: Placeholder(Storage(index, dtype, math.prod(shape)), shape)
        for index, (name, dtype, shape) in enumerate(tensors)
    }
    content = io.BytesIO()
    Pickler(content, protocol=2).dump(module if key is None else {key: module})
    return content.getvalue()
