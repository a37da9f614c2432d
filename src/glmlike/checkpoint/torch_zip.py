"""torch zip files (``torch.save``: .bin, .pt, .pth) read without torch.load: tensors and plain containers, as bytes.

Such a file is a zip of uncompressed entries under one folder: ``data.pkl``, a pickle whose persistent ids are storages,
``data/KEY``, the bytes of each storage, and ``byteorder``. The pickle is run by :mod:`~glmlike.checkpoint.pickles`, so
nothing in the file is imported or executed; headers are read without torch.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.checksums import Checked, CheckedFirst, Checksum
from glmlike.checkpoint.headers import DTYPE_SIZES, TORCH_NAMES, TensorInfo, is_shape, refuse_lfs_pointer
from glmlike.checkpoint.pickles import MAX_SIZE, Known, PickleError, ordered, run
from glmlike.checkpoint.streams import LastMade, Loaded, Stored, Stream
from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_DIRECTORY = 2**24  # bytes of the zip's directory: a hundred thousand entries
_BLOCK = 2**20
_LOCAL_HEADER = 30

_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "ComplexFloat": "C64",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}


@dataclass(frozen=True)
class _Storage:
    """A storage as a pickle names it; ``dtype`` is None where its tensors say theirs; ``count`` then is of bytes."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor as a pickle describes it: elements of a storage."""

    storage: _Storage
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last(self) -> int:
        """The index of the last element that it reaches; one less than ``first`` if it has none."""
        if 0 in self.shape:
            return self.first - 1
        return self.first + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class _Entry:
    """One stored entry of the zip: its bytes in the file, and their CRC-32 (None: the writer left it out)."""

    start: int
    size: int
    crc32: int | None


@dataclass(frozen=True)
class TorchZip:
    """The tensors of one file, known from its pickle; contents are read one at a time and checked by CRC-32."""

    path: Path
    infos: Mapping[str, TensorInfo]
    _views: Mapping[str, _View] = field(repr=False)
    _entries: Mapping[str, _Entry] = field(repr=False)
    _swapped: bool = field(repr=False)
    _file: ByteFile = field(repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)
    _checksums: dict[int, Checksum] = field(default_factory=dict, repr=False)

    def get_tensor(self, name: str) -> Tensor:
        """One tensor in memory of its own; a strided one has the strides of the file.

        Raises:
            CheckpointError: the bytes are not those that were written, or are no longer there.
        """
        import torch

        view = self._views[name]
        dtype = getattr(torch, TORCH_NAMES[view.dtype])
        if view.last < view.first:
            return torch.empty(view.shape, dtype=dtype)
        entry, size = self._entries[view.storage.key], DTYPE_SIZES[view.dtype]
        start, length = view.first * size, (view.last + 1 - view.first) * size
        raw = torch.empty(length, dtype=torch.uint8)
        whole = (start, length) == (0, entry.size)
        if not whole:
            self._check(view.storage.key, entry, name)
        memory = memoryview(raw.numpy().data)
        self._read_into(memory, entry.start + start)
        if whole and entry.crc32 is not None and zlib.crc32(memory) != entry.crc32:
            self._refuse(name)
        if self._swapped:
            width = size // 2 if view.dtype == "C64" else size
            raw = raw.view(-1, width).flip(1).reshape(-1)
        return raw.view(dtype).as_strided(view.shape, view.strides)

    def stream(self, name: str) -> Stream:
        """The bytes of one tensor: a stretch of the file where they are one, without torch.

        A tensor that is its whole storage is checked by the storage's CRC-32 as it is read; the storage of one that is
        a part of it is checked whole, once it is first read.

        Raises:
            CheckpointError: as :meth:`get_tensor`.
        """
        info, view = self.infos[name], self._views[name]
        if info.span is None:
            made = LastMade(lambda: [self.get_tensor(name)])
            return Loaded(made.get, info.dtype, info.shape)
        checksum: Checked
        if info.crc32 is None:
            key = view.storage.key
            checksum = CheckedFirst(lambda: self._check(key, self._entries[key], name))
        else:
            what = f"{self.path}: the bytes of {name!r}"
            fresh = Checksum(info.end - info.start, info.crc32, what)
            checksum = self._checksums.setdefault(info.start, fresh)
        return Stored(self._file, info.start, info.dtype, info.shape, checksum)

    def _check(self, key: str, entry: _Entry, name: str) -> None:
        """Compare a storage that several tensors are parts of with its CRC-32, once."""
        if entry.crc32 is None or key in self._checked:
            return
        block, found = bytearray(_BLOCK), 0
        for position in range(0, entry.size, _BLOCK):
            part = memoryview(block)[: min(_BLOCK, entry.size - position)]
            self._read_into(part, entry.start + position)
            found = zlib.crc32(part, found)
        if found != entry.crc32:
            self._refuse(name)
        self._checked.add(key)

    def _read_into(self, memory: memoryview, position: int) -> None:
        done = 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(position)
            while done < len(memory):
                count = file.readinto(memory[done:])
                if not count:
                    raise CheckpointError(f"{self.path}: became shorter while it was read. Download it again.")
                done += count

    def _refuse(self, name: str) -> NoReturn:
        raise CheckpointError(
            f"{self.path}: the bytes of {name!r} are damaged (their CRC-32 is not the file's own). Download it again."
        )


def read_torch_zip(path: Path, under: str | None = None) -> TorchZip:
    """The tensors of a file: of the dict it holds, or of the dict under the key ``under`` of that.

    Raises:
        CheckpointError: a Git LFS pointer, an old pickle or tar file, damaged, compressed, or other contents than
            tensors and plain containers; entries or tensors that reach out of the file or into each other.
    """
    refuse_lfs_pointer(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            _refuse_unzipped(path)
    try:
        root, entries = _directory(path)
        order = _read_small(path, entries, f"{root}/byteorder", b"little")
        if order not in (b"little", b"big"):
            raise PickleError(f"a byte order {order[:40]!r}")
        program = _read_small(path, entries, f"{root}/data.pkl", b"")
        views = _tensors(run(program, _NAMES, _storage), under)
        return _assemble(path, root, entries, views, order != sys.byteorder.encode())
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(
            f"{path}: damaged, or not a pickle of plain tensors ({reason}); nothing in it was executed. Use a "
            ".safetensors copy, or download it again."
        ) from None


def _refuse_unzipped(path: Path) -> NoReturn:
    raise CheckpointError(
        f"{path}: not a zip file, as torch.save has written since version 1.6: damaged, or an older file, which is not "
        "a pickle of plain tensors alone; nothing in it was executed. Use a .safetensors copy; or make one where code "
        f"can do no harm: save_file(torch.load({path.name!r}, weights_only=True), 'model.safetensors'), with "
        "safetensors.torch.save_file."
    )


class _Directory(io.FileIO):
    """A file whose directory zipfile reads at once; larger than any torch file's is an error."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise PickleError(f"a zip directory of {size} bytes")
        return super().read(size)


def _directory(path: Path) -> tuple[str, dict[str, _Entry]]:
    """The one top folder of the zip, and its entries by name; every entry stored, whole and apart from the others."""
    found: dict[str, _Entry] = {}
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        spans = []
        unhashed = not any(info.CRC for info in archive.infolist())  # torch.serialization.set_crc32_options(False)
        for info in archive.infolist():
            if info.filename in found:
                raise PickleError(f"the entry {info.filename!r:.120} stands twice")
            if not 0 <= info.header_offset < archive.start_dir:
                raise PickleError(f"the entry {info.filename!r:.120} begins outside the file")
            start = _data_start(file, info)
            found[info.filename] = _Entry(start, info.file_size, None if unhashed else info.CRC)
            spans.append((info.header_offset, start + info.file_size))
        end = archive.start_dir
    position = 0
    for first, last in sorted(spans):
        if first < position or last > end:
            raise PickleError("zip entries that overlap or leave the file")
        position = last
    roots = {name.removesuffix("/data.pkl") for name in found if name.count("/") == 1 and name.endswith("/data.pkl")}
    if len(roots) != 1:
        raise PickleError("no data.pkl, which torch.save writes")
    return roots.pop(), found


def _data_start(file: io.FileIO, info: zipfile.ZipInfo) -> int:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise PickleError(f"the entry {info.filename!r:.120} is compressed or encrypted, which torch.save never does")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    encoding = "utf8" if info.flag_bits & 0x800 else "cp437"
    if (
        len(header) < _LOCAL_HEADER
        or header[:4] != b"PK\x03\x04"
        or file.read(name) != info.orig_filename.encode(encoding)
    ):
        raise PickleError(f"no entry {info.filename!r:.120} where the zip's directory says")
    return info.header_offset + _LOCAL_HEADER + name + extra


def _read_small(path: Path, entries: Mapping[str, _Entry], name: str, default: bytes) -> bytes:
    """The bytes of an entry that is small, or ``default`` without it."""
    if name not in entries:
        return default
    entry = entries[name]
    if entry.size > MAX_SIZE:
        raise PickleError(f"the entry {name!r:.120} has {entry.size} bytes")
    with path.open("rb") as file:
        file.seek(entry.start)
        raw = file.read(entry.size)
    if len(raw) != entry.size or (entry.crc32 is not None and zlib.crc32(raw) != entry.crc32):
        raise PickleError(f"the CRC-32 of {name!r:.120} is not the file's own")
    return raw


def _tensors(found: Any, under: str | None) -> dict[str, _View]:
    where = "" if under is None else f" under {under!r}"
    inner = found if under is None else found.get(under) if isinstance(found, dict) else None
    if isinstance(inner, dict) and all(isinstance(k, str) and isinstance(v, _View) for k, v in inner.items()):
        return inner
    if isinstance(found, dict):
        what = f"a dict of {[str(key)[:40] for key in list(found)[:4]]}"
    else:
        what = "one Tensor" if isinstance(found, _View) else type(found).__name__
    raise PickleError(f"it holds {what}, expected a dict of tensors{where}")


def _assemble(path: Path, root: str, entries: Mapping[str, _Entry], views: dict[str, _View], swapped: bool) -> TorchZip:
    infos, used = {}, {}
    for name, view in views.items():
        entry = entries.get(f"{root}/data/{view.storage.key}")
        size = DTYPE_SIZES[view.dtype]
        if entry is None or entry.size != view.storage.count * (1 if view.storage.dtype is None else size):
            there = "no" if entry is None else entry.size
            raise PickleError(
                f"the storage of {name!r:.120} has {there} bytes, not those of {view.storage.count} numbers"
            )
        count = math.prod(view.shape)
        if (view.last + 1) * size > entry.size or count * size > entry.size:
            raise PickleError(f"{name!r:.120} of shape {list(view.shape)} reaches out of its storage")
        used[view.storage.key] = entry
        start, crc = 0, None
        if count and view.is_contiguous and (size == 1 or not swapped):
            start = entry.start + view.first * size
            crc = entry.crc32 if count * size == entry.size else None
        end = start + count * size if start else 0
        infos[name] = TensorInfo(name, view.dtype, view.shape, path, start, end, crc)
    return TorchZip(path, infos, views, used, swapped, ByteFile(path))


def _storage(identity: Any) -> _Storage:
    """The storage of a persistent id ``("storage", type, key, device, count)``."""
    parts = identity if isinstance(identity, tuple) and len(identity) == 5 else (None,) * 5
    kind, typed, key, _, count = parts
    storage_type = typed.value if isinstance(typed, Known) else None
    if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
        raise PickleError("a persistent id that is not a storage's")
    if type(count) is not int or not is_shape([count]):
        raise PickleError("a storage whose size is none")
    return _Storage(key, storage_type.dtype, count)


@dataclass(frozen=True)
class _StorageType:
    dtype: str | None


def _rebuild(
    storage: Any, first: Any, shape: Any, strides: Any, _grad: Any = None, _hooks: Any = None, *more: Any
) -> _View:
    """``torch._utils._rebuild_tensor_v2``; its last argument says that numbers are negated or conjugated."""
    if not isinstance(storage, _Storage) or storage.dtype is None or any(more):
        raise PickleError("a tensor that is not of one plain storage")
    return _view(storage, storage.dtype, first, shape, strides)


def _rebuild_untyped(
    storage: Any, first: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *more: Any
) -> _View:
    """``torch._utils._rebuild_tensor_v3``: the tensor says its dtype."""
    name = dtype.value if isinstance(dtype, Known) else None
    if not isinstance(storage, _Storage) or storage.dtype is not None or name not in DTYPE_SIZES or any(more):
        raise PickleError("a tensor that is not of one plain storage, or of a dtype that is not known")
    return _view(storage, name, first, shape, strides)


def _view(storage: _Storage, dtype: str, first: Any, shape: Any, strides: Any) -> _View:
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and is_shape(shape) and len(shape) == len(strides)):
        raise PickleError("a tensor of a shape or strides that no tensor has")
    if not all(is_shape([number]) for number in (first, *strides)):
        raise PickleError("a tensor whose offset or strides are negative or too large")
    return _View(storage, dtype, first, shape, strides)


def _parameter(data: Any, *_: Any) -> _View:
    if not isinstance(data, _View):
        raise PickleError("a parameter of something else than a tensor")
    return data


def _size(sizes: Any = ()) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not is_shape(sizes):
        raise PickleError("a torch.Size that is none")
    return sizes


_NAMES: dict[str, Any] = {
    "collections OrderedDict": ordered,
    "torch Size": _size,
    "torch._utils _rebuild_tensor_v2": _rebuild,
    "torch._utils _rebuild_tensor_v3": _rebuild_untyped,
    "torch._utils _rebuild_parameter": _parameter,
    "torch.storage UntypedStorage": _StorageType(None),
    **{f"torch {name}Storage": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch {name}": dtype for dtype, name in TORCH_NAMES.items()},
}
"""Every name that may stand in a pickle, and what of ours it stands for."""
