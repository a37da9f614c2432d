"""Streams of weights with an adapter in them, made a stretch of rows at a time.

The numbers are those of PEFT's ``merge_and_unload`` on a model that PEFT loaded the adapter onto with its defaults:
the change is computed in float32 (PEFT loads half-precision adapters as float32), added in float32, and rounded once
to the dtype of the base (peft/tuners/lora/layer.py ``merge``, dora.py ``get_weight_norm``).

A product is computed by blocks of rows whose places are fixed, so that the same bytes come out whatever stretches are
asked for: the kernels of a matrix product may round otherwise for another number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from glmlike.checkpoint.adapter_files import Lora
from glmlike.checkpoint.adapters import NativePart
from glmlike.checkpoint.layouts import Shape
from glmlike.checkpoint.streams import LastMade, Stream, row_size, torch_dtype
from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 17  # numbers of a matrix that are float32 at a time


@dataclass(frozen=True)
class Merged:
    """A matrix with the change of an adapter in it; of DoRA, its rows (or an embedding's columns) rescaled as well.

    DoRA's norms are those of the whole matrix, which is read once for them. Raises CheckpointError while it is read if
    a number becomes infinite or NaN.
    """

    inner: Stream
    part: NativePart
    _made: LastMade = field(init=False, repr=False, compare=False)
    exact = False
    verb = "merge"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_made", LastMade(self._load))

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    @property
    def overhead(self) -> float:
        return self.inner.overhead + 1.0

    @property
    def held(self) -> int:
        """What a worker holds besides: matrices of the adapter, as stored and as float32, and some blocks."""
        return (LastMade.KEPT + 3) * 4 * self.part.whole.numbers + 4 * 4 * max(_BLOCK, self.shape[1])

    def read_into(self, view: memoryview, start: int) -> None:
        first = start // self.grain
        factor = self._factor
        for low, numbers, merged in self._merged(view, first):
            high = low + len(numbers)
            if factor is not None:
                merged *= factor if self.part.whole.embedding else factor[low:high, None]
            numbers.copy_(merged)
            _require_finite(numbers)

    def is_hole(self, start: int, stop: int) -> bool:
        return False

    def _load(self) -> Sequence[Tensor]:
        lora = _required(self.part.load())
        return _wide(lora.rows), _wide(lora.shared)

    def _merged(self, view: memoryview, first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Block after block of the rows from ``first`` on: the first row, the base's numbers in ``view``, the sum."""
        import torch

        self.inner.read_into(view, first * self.grain)
        numbers = torch.frombuffer(view, dtype=torch_dtype(self.dtype)).view(-1, self.shape[1])
        rows, last = max(1, _BLOCK // self.shape[1]), first + len(numbers)
        for at in range(first // rows * rows, last, rows):
            low, high = max(at, first), min(at + rows, last)
            change = (self._made.get(0)[at : at + rows] @ self._made.get(1)) * self.part.whole.scaling
            mine = numbers[low - first : high - first]
            if self._rounds_change:
                change = change.to(mine.dtype)
            yield low, mine, mine + change[low - at : high - at]

    @property
    def _rounds_change(self) -> bool:
        """PEFT rounds the change of an embedding, and of nothing else."""
        return self.part.whole.embedding and self.part.whole.magnitude is None

    @cached_property
    def _factor(self) -> Tensor | None:
        """What DoRA multiplies each row of the sum by (of an embedding: each column), from a reading of all of it."""
        import torch

        magnitude = _required(self.part.load()).magnitude
        if magnitude is None:
            return None
        rows = max(1, _BLOCK // self.shape[1])
        # Nothing that is kept is allocated between blocks: glibc could not use the room of a block again before it.
        dtype = torch.promote_types(torch_dtype(self.dtype), self._made.get(0).dtype)
        norms, squares = torch.empty(self.shape[0], dtype=dtype), torch.zeros(self.shape[1], dtype=dtype)
        buffer = memoryview(bytearray(min(rows, self.shape[0]) * self.grain))
        for first in range(0, self.shape[0], rows):
            view = buffer[: (self.shape[0] - first) * self.grain]
            for low, _, merged in self._merged(view, first):
                if self.part.whole.embedding:
                    for square in merged * merged:  # row by row, as torch.linalg.norm(dim=0) adds them up
                        squares += square
                else:
                    torch.linalg.norm(merged, dim=1, out=norms[low : low + len(merged)])
        whole = squares.double().sqrt().to(squares.dtype) if self.part.whole.embedding else norms
        return _wide(magnitude) / whole


@dataclass(frozen=True)
class Shifted:
    """A bias with that of an adapter (lora_bias) added to it."""

    inner: Stream
    part: NativePart
    exact = False
    verb = "merge"

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    @property
    def grain(self) -> int:
        return row_size(self)

    @property
    def overhead(self) -> float:
        return self.inner.overhead + 6.0

    @property
    def held(self) -> int:
        """What a worker holds besides: matrices of the adapter, read with its bias."""
        return 8 * self.part.whole.numbers

    def read_into(self, view: memoryview, start: int) -> None:
        import torch

        lora = _required(self.part.load())
        assert lora.bias is not None
        self.inner.read_into(view, start)
        numbers = torch.frombuffer(view, dtype=torch_dtype(self.dtype))
        first = start // self.grain
        numbers.copy_(numbers + _wide(lora.bias[first : first + len(numbers)]) * lora.scaling)
        _require_finite(numbers)

    def is_hole(self, start: int, stop: int) -> bool:
        return False


def _required(lora: Lora | None) -> Lora:
    if lora is None:
        raise CheckpointError("the adapter changed while it was read")
    return lora


def _require_finite(numbers: Tensor) -> None:
    import torch

    if not torch.isfinite(numbers).all():
        raise CheckpointError("with the adapter in it, it is not finite: the adapter or the base is broken")


def _wide(tensor: Tensor) -> Tensor:
    """As PEFT loads an adapter: half precision becomes float32."""
    return tensor.float() if tensor.element_size() < 4 else tensor
