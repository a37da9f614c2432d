"""The floats of matrices of packed integers, or of small floats, as streams of rows: what rows need is read alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from glmlike.checkpoint.headers import DTYPE_SIZES
from glmlike.checkpoint.streams import Columns, Rows, Shape, Stream, read_all, row_size, torch_dtype
from glmlike.errors import CheckpointError
from glmlike.packed_integers import (
    dequantize_groups,
    gptq_zeros,
    unpack_awq_words,
    unpack_fp4,
    unpack_words,
    wide_scales,
)

if TYPE_CHECKING:
    from torch import Tensor

Packing = Literal["gptq", "gptq_v2", "awq", "compressed", "plain", "fp4"]
"""How the tensors of a matrix [O, I] in G groups are laid out, with N = 32 / bits integers a word:

* gptq, gptq_v2: integers [I/N, O], zeros [G, O/N] (each less one in "gptq"), scales [G, O], groups [I];
* awq: integers [I, O/N] and zeros [G, O/N] in an order of its own, scales [G, O];
* compressed: integers [O, I/N], zeros [O/N, G], scales [O, G], groups [I];
* plain: the same of int8 or float8 that is not packed; fp4: pairs of 4-bit floats in bytes [O, I/2], scales [O, G].
"""

_SHORT_ROW = 2**14  # bytes that are copied in about the time that one more read takes
_BLOCK = 2**18
_SCRATCH = 24  # bytes a number: words, integers, their rows, and two copies in float32


@dataclass(frozen=True)
class PackedFloats:
    """Floats [O, I] of packed integers: see :func:`glmlike.packed_integers.dequantize_groups`.

    ``size`` is that of a group of columns, and ``rows`` as many rows have the same scales. Without ``zero`` the numbers
    are signed, or as much as half their range too large. Without ``index``, groups are of neighbours. ``factor`` is one
    number that all scales are divided by. Scales of bytes are powers of two, by exponents of which 127 is that of 1.

    Raises:
        CheckpointError: when read, if ``index`` names a group that is not there or fills one with too many columns.
    """

    packing: Packing
    bits: int
    size: int
    shape: Shape
    dtype: str
    weight: Stream
    scale: Stream
    rows: int = 1
    zero: Stream | None = None
    index: Stream | None = None
    factor: Stream | None = None
    exact = False
    verb = "dequantize"

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    @property
    def overhead(self) -> float:
        return _SCRATCH / min(4, DTYPE_SIZES[self.dtype])

    @property
    def parts(self) -> tuple[Stream, ...]:
        """The streams beside ``weight`` and ``scale``."""
        return tuple(stream for stream in (self.zero, self.index, self.factor) if stream is not None)

    def read_into(self, view: memoryview, start: int) -> None:
        import torch

        first = start // self.grain
        last = first + len(view) // self.grain
        groups = self._groups  # first, since it says what is wrong with them
        scales, zeros = self._scales(first, last), self._zeros(first, last)
        floats = dequantize_groups(self._numbers(first, last), zeros, scales, groups, torch_dtype(self.dtype))
        torch.frombuffer(view, dtype=torch.uint8).copy_(floats.reshape(-1).view(torch.uint8))

    def is_hole(self, start: int, stop: int) -> bool:
        return False

    @property
    def _by_rows(self) -> bool:
        """Whether the scales of a row stand in a row."""
        return self.packing in ("compressed", "plain", "fp4")

    def _numbers(self, first: int, last: int) -> Tensor:
        """[rows, I] uint8, int8, float8 or float32."""
        if self.packing == "awq":
            return self._awq(self.weight, first, last)
        if self.packing == "plain":
            return _rows(self.weight, first, last)
        if self.packing == "fp4":
            return unpack_fp4(_rows(self.weight, first, last))
        words = _rows(self.weight, first, last) if self._by_rows else _columns(self.weight, first, last).T
        return unpack_words(words, self.bits)[:, : self.shape[1]]

    def _zeros(self, first: int, last: int) -> Tensor | int:
        """[rows, G], or what all of them are."""
        if self.zero is None:
            return 0 if self.packing in ("plain", "fp4") else 2 ** (self.bits - 1)
        if self.packing == "awq":
            return self._awq(self.zero, first, last)
        if self.packing in ("plain", "fp4"):
            return self._spread(self.zero, first, last)
        count = 32 // self.bits
        begin, end = first // count, -(-last // count)
        words = _rows(self.zero, begin, end).T if self._by_rows else _columns(self.zero, begin, end)
        if self.packing == "gptq":
            words = gptq_zeros(words, self.bits)
        return unpack_words(words, self.bits)[:, first - begin * count : last - begin * count].T

    def _scales(self, first: int, last: int) -> Tensor:
        """[rows, G] of floats."""
        if not self._by_rows:
            return _columns(self.scale, first, last).T
        scales = wide_scales(self._spread(self.scale, first, last))
        return scales if self.factor is None else scales / read_all(self.factor).reshape(1, 1).float()

    def _spread(self, stream: Stream, first: int, last: int) -> Tensor:
        """The rows [rows, G] of a stream that has one for every ``self.rows``."""
        if len(stream.shape) < 2:
            return read_all(stream).reshape(1, 1).expand(last - first, 1)
        begin = first // self.rows
        found = _rows(stream, begin, -(-last // self.rows))
        if self.rows == 1:
            return found
        return found.repeat_interleave(self.rows, 0)[first - begin * self.rows :][: last - first]

    def _awq(self, words: Stream, first: int, last: int) -> Tensor:
        begin, end = first // 8, -(-last // 8)
        return unpack_awq_words(_columns(words, begin, end))[:, first - begin * 8 : last - begin * 8].T

    @cached_property
    def _groups(self) -> Tensor | None:
        """The group of each column; None where all are of neighbours and of one size."""
        import torch

        columns = self.shape[1]
        count = 1 if len(self.scale.shape) < 2 else self.scale.shape[1 if self._by_rows else 0]
        regular = torch.arange(columns) // self.size
        groups = regular if self.index is None else read_all(self.index).long()
        if int(groups.min()) < 0 or int(groups.max()) >= count:
            raise CheckpointError(
                f"its columns are of the groups {int(groups.min())} to {int(groups.max())}, but it has scales of "
                f"{count}. Download the original files again"
            )
        most = int(torch.bincount(groups).max())
        if most > self.size:
            raise CheckpointError(
                f"its g_idx puts {most} columns in one group, but config.json says groups of {self.size}: one of them "
                "is of another checkpoint. Download the original files again"
            )
        whole = columns == count * self.size
        return None if whole and torch.equal(groups, regular) else groups


def _rows(stream: Stream, first: int, last: int) -> Tensor:
    return read_all(Rows(((stream, first, last),)))


def _columns(stream: Stream, first: int, last: int) -> Tensor:
    """Columns of a matrix; of short rows by way of all columns, a block of rows at a time: fewer reads, more bytes."""
    import torch

    width, count = row_size(stream), stream.shape[0]
    if width > _SHORT_ROW or (first, last) == (0, stream.shape[1]):
        return read_all(Columns(stream, first, last))
    step = max(1, _BLOCK // width)
    starts = range(0, count, step)
    return torch.cat([_rows(stream, at, min(at + step, count))[:, first:last].clone() for at in starts])
