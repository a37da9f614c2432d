"""Layouts: pairs of inverse functions between native tensors and the foreign tensors that hold the same numbers.

A layout knows no names, specs or files. Next to the two functions on tensors stand the same two on shapes, so that a
plan is checked against file headers before a byte is read. Layouts return views where they can and never change dtype.
Those that only move whole rows also say which (:class:`RowLayout`), so that files are converted without tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

Run = tuple[int, int, int]
"""Rows ``[first, last)`` of one of several tensors: (which tensor, first, last)."""


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal to the bit: NaN equals itself, zero differs from negative zero."""
    import torch

    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


class Layout(Protocol):
    """How ``natives`` native tensors and ``foreigns`` foreign tensors hold the same numbers."""

    @property
    def natives(self) -> int:
        """How many native tensors there are."""

    @property
    def foreigns(self) -> int:
        """How many foreign tensors there are."""

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        """The native tensors. Raises CheckpointError when the foreign ones cannot have come from this layout."""

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        """The foreign tensors; the inverse of ``to_native``, bit for bit."""

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        """The shapes ``to_foreign`` gives for native tensors of these shapes."""


def _all_of(index: int, shape: Shape) -> Run:
    """Every row of one tensor; a scalar is one row."""
    return index, 0, shape[0] if shape else 1


@runtime_checkable
class RowLayout(Layout, Protocol):
    """A layout that moves whole rows, and says which rows of one side make up each tensor of the other, in order."""

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        """For each native tensor, the rows of the foreign ones; copies of one tensor are read once."""

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        """For each foreign tensor, the rows of the native ones. Raises CheckpointError as ``to_foreign`` does."""


@dataclass(frozen=True)
class Same:
    """One foreign tensor is one native tensor."""

    natives = 1
    foreigns = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        return list(foreign)

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        return list(native)

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return list(native)

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        return [[_all_of(0, foreign[0])]]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        return [[_all_of(0, native[0])]]


@dataclass(frozen=True)
class Fused:
    """One foreign tensor holds the native ones end to end along dimension 0: rows ``[q; k; v]``."""

    sizes: tuple[int, ...]
    foreigns = 1

    @property
    def natives(self) -> int:
        return len(self.sizes)

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        (whole,) = foreign
        if whole.shape[0] != sum(self.sizes):
            raise CheckpointError(
                f"found {whole.shape[0]} rows, expected {' + '.join(map(str, self.sizes))} = {sum(self.sizes)}"
            )
        return list(whole.split(self.sizes))  # type: ignore[no-untyped-call]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        import torch

        return [torch.cat(list(native))]

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return [(sum(shape[0] for shape in native), *native[0][1:])]

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        ends = list(accumulate(self.sizes))
        return [[(0, end - size, end)] for size, end in zip(self.sizes, ends, strict=True)]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        return [[_all_of(index, shape) for index, shape in enumerate(native)]]


@dataclass(frozen=True)
class PerHead:
    """One foreign tensor holds q, k and v head by head: rows ``[H, 3, head_dim]`` (ChatGLM-6B, GLM-130B)."""

    heads: int
    head_dim: int
    natives = 3
    foreigns = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        (whole,) = foreign
        if whole.shape[0] != 3 * self.heads * self.head_dim:
            raise CheckpointError(
                f"found {whole.shape[0]} rows, expected {self.heads} x 3 x {self.head_dim} = "
                f"{3 * self.heads * self.head_dim}"
            )
        parts = whole.reshape(self.heads, 3, self.head_dim, *whole.shape[1:]).unbind(1)
        return [part.reshape(self.heads * self.head_dim, *whole.shape[1:]) for part in parts]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        import torch

        rest = native[0].shape[1:]
        parts = [part.reshape(self.heads, self.head_dim, *rest) for part in native]
        return [torch.stack(parts, dim=1).reshape(3 * self.heads * self.head_dim, *rest)]

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return [(3 * native[0][0], *native[0][1:])]

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        size = self.head_dim
        return [
            [(0, at * size, (at + 1) * size) for at in range(part, 3 * self.heads, 3)]  # one stretch a head
            for part in range(3)
        ]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        size = self.head_dim
        return [[(part, head * size, (head + 1) * size) for head in range(self.heads) for part in range(3)]]


@dataclass(frozen=True)
class Neighbours:
    """The rows of each head reordered: native pairs features half a head apart, the foreign tensor neighbours.

    Meta's own LLaMA files, and what llama.cpp's converter does to q and k of LLaMA (``LlamaModel.permute``).
    """

    head_dim: int
    natives = 1
    foreigns = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        return [self._reordered(foreign[0], (self.head_dim // 2, 2))]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        return [self._reordered(native[0], (2, self.head_dim // 2))]

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return list(native)

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        return [self._runs(foreign[0], [*range(0, self.head_dim, 2), *range(1, self.head_dim, 2)])]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        half = self.head_dim // 2
        return [self._runs(native[0], [row for pair in range(half) for row in (pair, pair + half)])]

    def _runs(self, shape: Shape, order: Sequence[int]) -> list[Run]:
        self._require_heads(shape[0])
        return [(0, first + row, first + row + 1) for first in range(0, shape[0], self.head_dim) for row in order]

    def _require_heads(self, rows: int) -> None:
        if rows % self.head_dim or self.head_dim % 2:
            raise CheckpointError(f"found {rows} rows, expected heads of {self.head_dim}, in pairs")

    def _reordered(self, rows: Tensor, pairs: tuple[int, int]) -> Tensor:
        self._require_heads(rows.shape[0])
        return rows.reshape(-1, *pairs, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class Repeated:
    """One native tensor is stored ``foreigns`` times: a tied head in a format that always stores one."""

    foreigns: int
    natives = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        first, *rest = foreign
        if not all(same_bits(first, other) for other in rest):
            raise CheckpointError(f"found {self.foreigns} different tensors, expected {self.foreigns} copies of one")
        return [first]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        return list(native) * self.foreigns

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return list(native) * self.foreigns

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        return [[_all_of(0, foreign[0])]]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        return [[_all_of(0, native[0])] for _ in range(self.foreigns)]


@dataclass(frozen=True)
class Cropped:
    """One foreign tensor is one native tensor below ``dropped`` rows that the decoder has no use for.

    A layout with one direction: the dropped rows are not kept anywhere, so there is no way back.
    """

    dropped: int
    rows: int
    natives = 1
    foreigns = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        (whole,) = foreign
        if whole.shape[0] != self.dropped + self.rows:
            raise CheckpointError(
                f"found {whole.shape[0]} rows, expected {self.dropped} to drop + {self.rows} = "
                f"{self.dropped + self.rows}"
            )
        return [whole[self.dropped :]]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        raise self._no_way_back()

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return [(self.dropped + shape[0], *shape[1:]) for shape in native]

    def native_rows(self, foreign: Sequence[Shape]) -> list[list[Run]]:
        return [[(0, self.dropped, self.dropped + self.rows)]]

    def foreign_rows(self, native: Sequence[Shape]) -> list[list[Run]]:
        raise self._no_way_back()

    def _no_way_back(self) -> CheckpointError:
        return CheckpointError(
            f"the {self.dropped} rows that stood before these {self.rows} were dropped when they were read; a file "
            f"with {self.dropped + self.rows} rows cannot be written"
        )
