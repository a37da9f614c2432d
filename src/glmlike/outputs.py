"""The output of a training step: a loss made without logits, and logits that are made when somebody reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.modeling_outputs import CausalLMOutputWithPast


class DeferredLogits:
    """Logits [..., T, V] of a head without bias, not made yet; called, it makes them, differentiable as ever.

    ``dtype`` and ``float()`` are a tensor's, so that what converts outputs (accelerate, for mixed precision) converts
    this too. The head must not change in between: the logits would be of other weights than the loss.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        self.hidden, self.weight = hidden, weight
        device = hidden.device.type
        self.computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        self.dtype = dtype or self.computed
        self.version = weight._version

    def float(self) -> DeferredLogits:
        """The same logits as float32."""
        if self.dtype == torch.float32:
            return self
        other = DeferredLogits(self.hidden, self.weight, torch.float32)
        other.computed, other.version = self.computed, self.version
        return other

    def __call__(self) -> Tensor:
        # Within a graph nothing can depend on the version, and no optimizer's step comes in between.
        if not torch.compiler.is_compiling() and self.weight._version != self.version:
            raise RuntimeError(
                "logits of a training step, read after the head was updated: they would not be those of its loss. Read "
                "outputs.logits before optimizer.step(), or set model.config.chunked_loss = False."
            )
        with torch.autocast(self.hidden.device.type, enabled=False):
            return linear(self.hidden.to(self.computed), self.weight.to(self.computed)).to(self.dtype)

    def __repr__(self) -> str:
        shape = [*self.hidden.shape[:-1], self.weight.shape[0]]
        return f"DeferredLogits({shape}, {self.dtype}: read outputs.logits)"


class LossOutput(CausalLMOutputWithPast):
    """CausalLMOutputWithPast whose ``logits`` may be :class:`DeferredLogits`, made at the first reading.

    ``outputs.logits``, ``outputs["logits"]``, ``outputs[1]``, ``get``, ``to_tuple()`` and ``dict(outputs)`` make and
    keep them. ``outputs.loss`` and ``outputs[0]`` do not, nor do ``items()`` and ``values()``, which hold the deferred
    object itself: what walks over all outputs of a step (DistributedDataParallel, accelerate) wants none of them.
    """

    @property
    def logits(self) -> Any:
        value = vars(self).get("logits")
        if isinstance(value, DeferredLogits):
            value = self.logits = value()
        return value

    @logits.setter
    def logits(self, value: Any) -> None:
        self.__dict__["logits"] = value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401

    def __getitem__(self, key: Any) -> Any:
        if key == "logits" and key in self:
            return self.logits
        if isinstance(key, int):
            return self[list(self)[key]]
        if isinstance(key, slice):
            return tuple(self[name] for name in list(self)[key])
        return super().__getitem__(key)
