"""Splits: how one tensor is cut over tensor-parallel ranks, and joined again; pairs of inverse functions.

A split knows no names and no files. Every rank holds a piece of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glmlike.checkpoint.layouts import Shape, same_bits
from glmlike.checkpoint.streams import Columns, Rows, SideBySide, Stream
from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class Split(Protocol):
    """How ``ranks`` pieces hold one tensor."""

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The tensor, from the pieces in the order of their ranks."""

    def cut(self, whole: Tensor, ranks: int) -> list[Tensor]:
        """The pieces, views where they can be; the inverse of ``join``. CheckpointError if it does not divide."""

    def join_streams(self, pieces: Sequence[Stream]) -> Stream:
        """:meth:`join`, of streams; copies are not compared."""

    def cut_streams(self, whole: Stream, ranks: int) -> list[Stream]:
        """:meth:`cut`, of streams."""

    def whole_shape(self, piece: Shape, ranks: int) -> Shape:
        """The shape of what ``ranks`` pieces of this shape join to. Raises CheckpointError if none can."""


@dataclass(frozen=True)
class Cut:
    """Equal stretches of dimension ``dim``; of ``parts`` parts that lie end to end there, each is cut on its own.

    ``Cut(0)`` is a column-parallel matrix, ``Cut(1)`` a row-parallel one (Megatron-LM, arXiv 1909.08053);
    ``Cut(0, parts=2)`` a gated feed-forward's, where rank i holds ``[first_i; second_i]``. Of a matrix with fewer heads
    than ranks, ``copies`` ranks in a row hold the same piece.
    """

    dim: int
    parts: int = 1
    copies: int = 1

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        import torch

        self.whole_shape(tuple(pieces[0].shape), len(pieces))
        if self.copies > 1:
            alike = (pieces[first : first + self.copies] for first in range(0, len(pieces), self.copies))
            pieces = [Replicated().join(copies) for copies in alike]
        if len(pieces) == 1:
            return pieces[0]
        per_rank = [piece.chunk(self.parts, self.dim) for piece in pieces]
        return torch.cat([ranks[part] for part in range(self.parts) for ranks in per_rank], self.dim)

    def cut(self, whole: Tensor, ranks: int) -> list[Tensor]:
        import torch

        ranks = self._pieces(tuple(whole.shape), ranks)
        stretches = whole.chunk(self.parts * ranks, self.dim)
        by_rank = [stretches[rank::ranks] for rank in range(ranks)]
        pieces = [mine[0] if len(mine) == 1 else torch.cat(mine, self.dim) for mine in by_rank]
        return [piece for piece in pieces for _ in range(self.copies)]

    def join_streams(self, pieces: Sequence[Stream]) -> Stream:
        self.whole_shape(pieces[0].shape, len(pieces))
        pieces = pieces[:: self.copies]
        if len(pieces) == 1:
            return pieces[0]
        size = pieces[0].shape[self.dim] // self.parts
        runs = [(piece, part * size, (part + 1) * size) for part in range(self.parts) for piece in pieces]
        return self._end_to_end(runs)

    def cut_streams(self, whole: Stream, ranks: int) -> list[Stream]:
        ranks = self._pieces(whole.shape, ranks)
        if ranks == 1:
            return [whole] * self.copies
        size = whole.shape[self.dim] // (self.parts * ranks)
        places = [range(rank, self.parts * ranks, ranks) for rank in range(ranks)]
        pieces = [self._end_to_end([(whole, at * size, (at + 1) * size) for at in mine]) for mine in places]
        return [piece for piece in pieces for _ in range(self.copies)]

    def _pieces(self, whole: Shape, ranks: int) -> int:
        """How many different pieces there are. Raises CheckpointError if they would not be equal."""
        if ranks % self.copies:
            raise CheckpointError(f"{self.copies} copies of each piece cannot be over {ranks} ranks")
        pieces = ranks // self.copies
        if whole[self.dim] % (self.parts * pieces):
            raise CheckpointError(f"{whole[self.dim]} features cannot be cut evenly over {pieces} ranks")
        return pieces

    def _end_to_end(self, runs: Sequence[tuple[Stream, int, int]]) -> Stream:
        if self.dim == 0:
            return Rows(tuple(runs))
        if self.dim != 1:
            raise CheckpointError(f"files are cut along their rows or columns only, not along dim {self.dim}")
        columns = tuple(Columns(*run) for run in runs)
        return columns[0] if len(columns) == 1 else SideBySide(columns)

    def whole_shape(self, piece: Shape, ranks: int) -> Shape:
        if len(piece) <= self.dim or piece[self.dim] % self.parts:
            raise CheckpointError(f"found shape {list(piece)}, expected {self.parts} equal parts along dim {self.dim}")
        if ranks % self.copies:
            raise CheckpointError(f"{self.copies} copies of each piece cannot be over {ranks} ranks")
        return tuple(size * (ranks // self.copies) if at == self.dim else size for at, size in enumerate(piece))


@dataclass(frozen=True)
class Replicated:
    """Every rank holds the whole."""

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        first, *rest = pieces
        if not all(same_bits(first, other) for other in rest):
            raise CheckpointError(f"the {len(pieces)} ranks hold different copies")
        return first

    def cut(self, whole: Tensor, ranks: int) -> list[Tensor]:
        return [whole] * ranks

    def join_streams(self, pieces: Sequence[Stream]) -> Stream:
        return pieces[0]

    def cut_streams(self, whole: Stream, ranks: int) -> list[Stream]:
        return [whole] * ranks

    def whole_shape(self, piece: Shape, ranks: int) -> Shape:
        return piece
