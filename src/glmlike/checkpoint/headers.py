"""safetensors headers, read and checked without torch: what a file says it holds must be what it can hold.

The format: 8 bytes little-endian header length, a JSON object ``{name: {dtype, shape, data_offsets}}``, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.errors import CheckpointError

# Sub-byte types are left out, since no format of this package has them.
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""The dtypes of safetensors by name, and what torch calls each."""

# Bytes of one element.
DTYPE_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_MAX_HEADER = 2**25  # the library takes 100 MB; a header of a hundred thousand tensors has a tenth of that
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 2**63 - 1
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is and what it is: dtype in safetensors' names, shape, bytes ``[start, end)`` of its file.

    ``start`` and ``end`` are 0 where no one stretch of the file has its numbers in their order (strided, of the other
    byte order, joined from several files). ``crc32`` is that of the stretch, where the file says it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int = 0
    end: int = 0
    crc32: int | None = None

    @property
    def span(self) -> tuple[int, int] | None:
        """Offset and size of the bytes of the tensor in its file; None if they are not one stretch, or none."""
        return (self.start, self.end - self.start) if self.end > self.start else None


def refuse_lfs_pointer(path: Path) -> None:
    """Raise CheckpointError when ``path`` is the small text that Git LFS leaves in place of a file."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(
                f"{path}: this is a Git LFS pointer, not the file itself. Download the real file (`git lfs pull`)."
            )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one .safetensors file, by name.

    Raises:
        CheckpointError: not a safetensors file, truncated, or offsets, dtypes and shapes that contradict each other.
    """
    refuse_lfs_pointer(path)
    entries, data_start = _parse(path)
    data_size = path.stat().st_size - data_start
    if not isinstance(entries.get("__metadata__", {}), dict):
        raise CheckpointError(f"{path}: its header's __metadata__ is no object. Download the file again.")
    infos = [_info(name, entry, path, data_start) for name, entry in entries.items() if name != "__metadata__"]
    _check_layout(infos, path, data_start, data_size)
    return {info.name: info for info in infos}


def _parse(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{path}: its first 8 bytes announce a header of {length} bytes in a file of {size}: not a safetensors "
                "file, or truncated. Download it again."
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw.decode("utf8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid ({error}). Download the file again.") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: its header is {type(entries).__name__}, expected an object. Download it again.")
    return entries, 8 + length


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, for ``object_pairs_hook``; ValueError if it has a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r:.120} stands twice")
    return found


def _info(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (start, end)) and isinstance(dtype, str)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path}: the header's entry for {name!r:.120} is not a tensor's: {str(entry)[:120]}.")
    if dtype not in DTYPE_SIZES:
        raise CheckpointError(
            f"{path}: {name!r:.120} is of dtype {dtype!r:.40}, which is not known. Known: {', '.join(DTYPE_SIZES)}."
        )
    if not is_shape(shape):
        raise CheckpointError(f"{path}: {name!r:.120} has the shape {str(list(shape))[:120]}, which no tensor has.")
    if math.prod(shape) * DTYPE_SIZES[dtype] != end - start:
        raise CheckpointError(
            f"{path}: {name!r} is {dtype} {list(shape)}, {math.prod(shape) * DTYPE_SIZES[dtype]} bytes, but has "
            f"{end - start}. The file is damaged; download it again."
        )
    return TensorInfo(name, dtype, shape, path, data_start + start, data_start + end)


def is_shape(shape: Sequence[Any]) -> bool:
    """Whether these are the sizes of a tensor that torch can count: few, none negative, and a product below 2^63."""
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= _MAX_NUMBER for size in shape):
        return False
    return bool(math.prod(size or 1 for size in shape) <= _MAX_NUMBER)


def _check_layout(infos: list[TensorInfo], path: Path, data_start: int, data_size: int) -> None:
    """Tensors fill the data from its first byte to its last, none over another."""
    position = data_start
    for info in sorted(infos, key=lambda info: (info.start, info.end)):
        if info.start != position:
            kind = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: {info.name!r} {kind}. The file is damaged; download it again.")
        position = info.end
    if position - data_start != data_size:
        raise CheckpointError(
            f"{path}: its header describes {position - data_start} bytes of tensors, the file has {data_size}: "
            "truncated or damaged. Download it again."
        )


def require_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo], said_by: str = "config.json"
) -> None:
    """Every tensor of both mappings has the shape that ``said_by`` asks for.

    Raises:
        CheckpointError: the first that has another, with both shapes.
    """
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            raise CheckpointError(
                f"{found[name].file}: {name!r} has shape {list(found[name].shape)}, but {said_by} asks for "
                f"{list(shape)}. Weights and config are of different models; use those that belong together."
            )
