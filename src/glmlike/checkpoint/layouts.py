"""Layouts: pairs of inverse functions between native tensors and the foreign tensors that hold the same numbers.

A layout knows no names, specs or files. Next to the two functions on tensors stand the same two on shapes, so that a
plan is checked against file headers before a byte is read. Layouts return views where they can and never change dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


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


@dataclass(frozen=True)
class Neighbours:
    """Rows of heads that rotate natively in pairs ``(i, i + head_dim/2)``, foreign in pairs ``(2i, 2i + 1)``.

    What llama.cpp's converter does to q and k of LLaMA (``LlamaModel.permute``).
    """

    heads: int
    natives = 1
    foreigns = 1

    def to_native(self, foreign: Sequence[Tensor]) -> list[Tensor]:
        return [self._swap(foreign[0], (-1, 2))]

    def to_foreign(self, native: Sequence[Tensor]) -> list[Tensor]:
        return [self._swap(native[0], (2, -1))]

    def _swap(self, rows: Tensor, pairs: tuple[int, int]) -> Tensor:
        if rows.shape[0] % (2 * self.heads):
            raise CheckpointError(f"found {rows.shape[0]} rows, expected a multiple of 2 x {self.heads} heads")
        return rows.reshape(self.heads, *pairs, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return list(native)


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
        raise CheckpointError(
            f"the {self.dropped} rows that stood before these {self.rows} were dropped when they were read; a file "
            f"with {self.dropped + self.rows} rows cannot be written"
        )

    def foreign_shapes(self, native: Sequence[Shape]) -> list[Shape]:
        return [(self.dropped + shape[0], *shape[1:]) for shape in native]
