"""Native tensors that are made when they are asked for: what a loader is given in place of a second copy of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LazyTensor:
    """One native tensor, made by indexing it; to transformers' loader what safetensors' slices are.

    ``shape`` and ``dtype`` are those the tensor will have.
    """

    def __init__(self, step: LazyStep, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._step, self._at = step, at
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, or what ``index`` picks of it, as memory of its own."""
        return self._step.take(self._at)[index]

    def is_floating_point(self) -> bool:
        """Whether the tensor is of a floating-point dtype."""
        return self.dtype.is_floating_point


class LazyStep:
    """The native tensors of one step of a plan; made together, and each let go when it has been taken."""

    def __init__(self, make: Callable[[], Sequence[Tensor]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._ready: dict[int, Tensor] = {}

    def take(self, at: int) -> Tensor:
        """The ``at``-th tensor; no view of a file or of its siblings."""
        with self._lock:
            if at not in self._ready:
                self._ready = dict(enumerate(self._make()))
            return self._ready.pop(at).clone()
