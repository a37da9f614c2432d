"""safetensors headers, read and checked without torch: what a file says it holds must be what it can hold.

The format: 8 bytes little-endian header length, a JSON object ``{name: {dtype, shape, data_offsets}}``, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.errors import CheckpointError

# Bytes of one element; sub-byte types are left out, since no format of this package has them.
DTYPE_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is and what it is: dtype in safetensors' names, shape, bytes ``[start, end)`` of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int = 0
    end: int = 0


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
        entries = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid ({error}). Download the file again.") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: its header is {type(entries).__name__}, expected an object. Download it again.")
    return entries, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _info(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and dtype in DTYPE_SIZES
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path}: the header's entry for {name!r} is not a tensor's: {entry!r:.120}.")
    if math.prod(shape) * DTYPE_SIZES[dtype] != end - start:
        raise CheckpointError(
            f"{path}: {name!r} is {dtype} {list(shape)}, {math.prod(shape) * DTYPE_SIZES[dtype]} bytes, but has "
            f"{end - start}. The file is damaged; download it again."
        )
    return TensorInfo(name, dtype, shape, path, data_start + start, data_start + end)


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
