"""Streams: the bytes of one tensor, in the order a file holds them, read a stretch at a time.

A stream knows dtype and shape but no names. Streams are built from one another (rows picked, columns joined, numbers
cast), so a plan is a tree of them, and whoever reads ``[start, stop)`` of the root touches only what makes up that
stretch. Whole tensors are never in memory, except where a file can be read in no other way (:class:`Loaded`).
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.checksums import Checked
from glmlike.checkpoint.headers import DTYPE_SIZES, TORCH_NAMES
from glmlike.errors import CheckpointError
from glmlike.integers import dequantize

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]

_SAFETENSORS_NAMES = {theirs: ours for ours, theirs in TORCH_NAMES.items()}
FLOATS = ("F16", "BF16", "F32", "F64")


class Stream(Protocol):
    """The bytes of one tensor, row-major and little-endian, as a safetensors file holds them.

    ``grain``: stretches begin and end at multiples of it. ``overhead``: bytes of scratch memory for each byte asked
    for. ``exact``: the bytes are some stored tensor's own; False where numbers were computed.
    """

    @property
    def dtype(self) -> str:
        """The dtype by safetensors' name."""

    @property
    def shape(self) -> Shape:
        """The shape."""

    @property
    def grain(self) -> int:
        """The number of bytes that stretches are multiples of."""

    @property
    def overhead(self) -> float:
        """Scratch bytes for each byte asked for."""

    @property
    def exact(self) -> bool:
        """Whether every byte is a stored byte."""

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` with the bytes from ``start`` on. Raises CheckpointError if the numbers contradict."""

    def is_hole(self, start: int, stop: int) -> bool:
        """Whether the stretch is known to be zeros without reading it."""


def size_of(stream: Stream) -> int:
    """The number of bytes of a tensor."""
    return math.prod(stream.shape) * DTYPE_SIZES[stream.dtype]


def row_size(stream: Stream) -> int:
    """The number of bytes of one row: an element of a vector, everything of a scalar."""
    return math.prod(stream.shape[1:]) * DTYPE_SIZES[stream.dtype]


def dtype_name(name: str) -> str:
    """safetensors' name of a dtype that either library named."""
    return _SAFETENSORS_NAMES.get(name, name)


def stretches(stream: Stream, at_most: int) -> Iterator[tuple[int, int]]:
    """The whole of a stream as stretches ``[start, stop)`` of ``at_most`` bytes, or of one grain where that is more."""
    total = size_of(stream)
    step = max(stream.grain, at_most // stream.grain * stream.grain)
    for start in range(0, total, step):
        yield start, min(total, start + step)


@dataclass(frozen=True)
class Stored:
    """The bytes from ``offset`` on of a file, as they are; compared with a ``checksum`` where the file has one."""

    file: ByteFile
    offset: int
    dtype: str
    shape: Shape
    checksum: Checked | None = field(default=None, repr=False, compare=False)
    grain = 1
    overhead = 0.0
    exact = True

    def read_into(self, view: memoryview, start: int) -> None:
        self.file.read_into(view, self.offset + start)
        if self.checksum is not None:
            self.checksum.saw(view, start)

    def is_hole(self, start: int, stop: int) -> bool:
        return self.checksum is None and self.file.is_hole(self.offset + start, self.offset + stop)


@dataclass(frozen=True)
class Loaded:
    """A tensor that ``load`` gives whole, read row by row; see :class:`LastMade` for what is not at hand."""

    load: Callable[[], Tensor]
    dtype: str
    shape: Shape
    overhead = 1.0
    exact = True

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    def read_into(self, view: memoryview, start: int) -> None:
        import torch

        rows = slice(start // self.grain, (start + len(view)) // self.grain)
        tensor = self.load()
        piece = (tensor[rows] if self.shape else tensor.reshape(1)).contiguous()
        torch.frombuffer(view, dtype=torch.uint8).copy_(piece.reshape(-1).view(torch.uint8))

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Rows:
    """Rows of other tensors of one width, one stretch of rows ``(stream, first, last + 1)`` after the other."""

    parts: tuple[tuple[Stream, int, int], ...]
    _starts: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = [(last - first) * self._row for _, first, last in self.parts]
        object.__setattr__(self, "_starts", [0, *accumulate(sizes)])

    @property
    def _row(self) -> int:
        return row_size(self.parts[0][0])

    @property
    def dtype(self) -> str:
        return self.parts[0][0].dtype

    @property
    def shape(self) -> Shape:
        return (sum(last - first for _, first, last in self.parts), *self.parts[0][0].shape[1:])

    @property
    def grain(self) -> int:
        return max(stream.grain for stream, _, _ in self.parts)

    @property
    def overhead(self) -> float:
        return max(stream.overhead for stream, _, _ in self.parts)

    @property
    def exact(self) -> bool:
        return all(stream.exact for stream, _, _ in self.parts)

    def read_into(self, view: memoryview, start: int) -> None:
        done = 0
        for stream, first, last in self.within(start, start + len(view)):
            stream.read_into(view[done : done + last - first], first)
            done += last - first

    def is_hole(self, start: int, stop: int) -> bool:
        return all(stream.is_hole(first, last) for stream, first, last in self.within(start, stop))

    def within(self, start: int, stop: int) -> Iterator[tuple[Stream, int, int]]:
        """The stretches of the parts, in bytes, that make up ``[start, stop)``."""
        at = bisect_right(self._starts, start) - 1
        while start < stop:
            stream, first, _ = self.parts[at]
            end = min(stop, self._starts[at + 1])
            if end > start:
                shift = first * self._row - self._starts[at]
                yield stream, start + shift, end + shift
            start, at = end, at + 1


@dataclass(frozen=True)
class SideBySide:
    """Matrices of as many rows, joined along their columns."""

    parts: tuple[Stream, ...]

    @property
    def exact(self) -> bool:
        return all(part.exact for part in self.parts)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> Shape:
        first = self.parts[0].shape
        return (first[0], sum(part.shape[1] for part in self.parts), *first[2:])

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    @property
    def overhead(self) -> float:
        return 1.0 + max(part.overhead for part in self.parts)

    def read_into(self, view: memoryview, start: int) -> None:
        import numpy

        first, count = start // self.grain, len(view) // self.grain
        whole = numpy.frombuffer(view, numpy.uint8).reshape(count, self.grain)
        column = 0
        for part in self.parts:
            width = row_size(part)
            piece = memoryview(bytearray(width * count))
            part.read_into(piece, first * width)
            whole[:, column : column + width] = numpy.frombuffer(piece, numpy.uint8).reshape(count, width)
            column += width

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Columns:
    """The columns ``[first, last)`` of a matrix."""

    whole: Stream
    first: int
    last: int

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> Shape:
        return (self.whole.shape[0], self.last - self.first, *self.whole.shape[2:])

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    @property
    def overhead(self) -> float:
        return (1 + self.whole.overhead) * row_size(self.whole) / self.grain

    @property
    def exact(self) -> bool:
        return self.whole.exact

    def read_into(self, view: memoryview, start: int) -> None:
        import numpy

        width = row_size(self.whole)
        if self.grain == width:
            self.whole.read_into(view, start)
            return
        begin = self.first * width // self.whole.shape[1]
        row, count = start // self.grain, len(view) // self.grain
        if self.whole.grain == 1:  # only the bytes that are wanted are read
            for at in range(count):
                self.whole.read_into(view[at * self.grain : (at + 1) * self.grain], (row + at) * width + begin)
            return
        rows = memoryview(bytearray(width * count))
        self.whole.read_into(rows, row * width)
        target = numpy.frombuffer(view, numpy.uint8).reshape(count, self.grain)
        target[:] = numpy.frombuffer(rows, numpy.uint8).reshape(count, width)[:, begin : begin + self.grain]

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Dequantized:
    """Floats [O, I] of integer rows and their scales: see :func:`glmlike.integers.dequantize`."""

    weight: Stream
    scale: Stream
    bits: int
    dtype: str
    overhead = 12.0
    exact = False

    @property
    def shape(self) -> Shape:
        return (self.weight.shape[0], self.weight.shape[1] * 8 // self.bits)

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    def read_into(self, view: memoryview, start: int) -> None:
        import torch

        first, count = start // self.grain, len(view) // self.grain
        weight, scale = (_rows(stream, first, count) for stream in (self.weight, self.scale))
        floats = dequantize(weight, scale, self.bits, torch_dtype(self.dtype))
        torch.frombuffer(view, dtype=torch.uint8).copy_(floats.reshape(-1).view(torch.uint8))

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Cast:
    """The same numbers in another floating-point dtype, rounded to nearest.

    Raises:
        CheckpointError: a finite number would become infinite.
    """

    inner: Stream
    dtype: str
    exact = False

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    @property
    def grain(self) -> int:
        here, there = DTYPE_SIZES[self.dtype], DTYPE_SIZES[self.inner.dtype]
        return max(self.inner.grain // there, 1) * here

    @property
    def overhead(self) -> float:
        ratio = DTYPE_SIZES[self.inner.dtype] / DTYPE_SIZES[self.dtype]
        return 2 + ratio * (1 + self.inner.overhead)

    def read_into(self, view: memoryview, start: int) -> None:
        import torch

        here, there = DTYPE_SIZES[self.dtype], DTYPE_SIZES[self.inner.dtype]
        before = memoryview(bytearray(len(view) // here * there))
        self.inner.read_into(before, start // here * there)
        numbers = torch.frombuffer(before, dtype=torch_dtype(self.inner.dtype))
        cast = torch.frombuffer(view, dtype=torch_dtype(self.dtype))
        cast.copy_(numbers)
        lost = int((cast.isinf() & numbers.isfinite()).sum())
        if lost:
            largest = numbers[numbers.isfinite()].abs().max().item()
            raise CheckpointError(
                f"{lost} numbers of one stretch, up to {largest:g}, do not fit in {TORCH_NAMES[self.dtype]} (largest: "
                f"{torch.finfo(cast.dtype).max:g}) and would become infinite. Choose bfloat16 or float32"
            )

    def is_hole(self, start: int, stop: int) -> bool:
        return False


def stored_runs(stream: Stream, start: int, stop: int) -> Iterator[tuple[ByteFile, int, int]]:
    """The stretch as stretches of files: (file, offset, bytes). Raises TypeError unless only bytes are moved."""
    if isinstance(stream, Stored):
        yield stream.file, stream.offset + start, stop - start
    elif isinstance(stream, Rows):
        for part, first, last in stream.within(start, stop):
            yield from stored_runs(part, first, last)
    else:
        raise TypeError(f"{type(stream).__name__} is no stretch of a file")


class LastMade:
    """The results of one call. Each thread keeps those of the last ``KEPT`` calls: q, k and v are read in turn."""

    KEPT = 3
    _kept = threading.local()

    def __init__(self, make: Callable[[], Sequence[Tensor]]) -> None:
        self._make = make

    def get(self, at: int = 0) -> Tensor:
        """One of the results."""
        kept: list[tuple[LastMade, Sequence[Tensor]]] = self._kept.__dict__.setdefault("calls", [])
        known = next((results for owner, results in kept if owner is self), None)
        if known is None:
            del kept[: len(kept) + 1 - self.KEPT]
            known = self._make()
            kept.append((self, known))
        return known[at]


def in_memory(tensor: Tensor) -> Loaded:
    """A tensor that is in memory already, as a stream."""
    return Loaded(lambda: tensor, dtype_name(str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of safetensors' name."""
    import torch

    found: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return found


def read_all(stream: Stream) -> Tensor:
    """The whole tensor, in memory of its own."""
    return _rows(stream, 0, None)


def _rows(stream: Stream, first: int, count: int | None) -> Tensor:
    import torch

    size = row_size(stream)
    rows = (stream.shape[0] if stream.shape else 1) if count is None else count
    shape = (rows, *stream.shape[1:]) if stream.shape else ()
    if not rows * size:
        return torch.empty(shape, dtype=torch_dtype(stream.dtype))
    buffer = memoryview(bytearray(rows * size))
    stream.read_into(buffer, first * size)
    return torch.frombuffer(buffer, dtype=torch_dtype(stream.dtype)).reshape(shape)


def digest(stream: Stream, hasher: Any, buffer: memoryview) -> str:
    """The hexadecimal digest of a stream's bytes, read through ``buffer``."""
    for start, stop in stretches(stream, len(buffer)):
        if stop - start > len(buffer):
            buffer = memoryview(bytearray(stop - start))
        view = buffer[: stop - start]
        stream.read_into(view, start)
        hasher.update(view)
    return str(hasher.hexdigest())


def first_difference(left: Sequence[Stream], at_most: int) -> int | None:
    """The index of the first of several streams of one size that differs from the first of them; None: all alike."""
    grain = math.lcm(*(stream.grain for stream in left))
    size = max(grain, at_most // grain * grain)
    mine, theirs = bytearray(), bytearray()
    for start in range(0, size_of(left[0]), size):
        length = min(size, size_of(left[0]) - start)
        if len(mine) != length:
            mine, theirs = bytearray(length), bytearray(length)
        left[0].read_into(memoryview(mine), start)
        for index, other in enumerate(left[1:], 1):
            other.read_into(memoryview(theirs), start)
            if mine != theirs:  # of bytearrays: of views it would be a comparison of numbers, one at a time
                return index
    return None
