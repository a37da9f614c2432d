"""The table of model types, and the functions that replace the forwards of modules."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, Any] = {"llama": None}
calls: list[str] = []
"""The kernels that ran, for tests."""


def _apply_liger_kernel_to_instance(model: Any, **kwargs: Any) -> None:
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type]
    known = inspect.signature(apply).parameters
    apply(model=model, **{key: value for key, value in kwargs.items() if key in known})


def _bind(module: nn.Module, forward: Any) -> None:
    module.__dict__["forward"] = forward.__get__(module, module.__class__)


def _patch_rms_norm_module(
    module: Any, offset: float = 0.0, eps: float = 1e-6, casting_mode: str = "llama", in_place: bool = True
) -> None:
    assert (offset, casting_mode, in_place) == (0.0, "llama", False)
    module.variance_epsilon = getattr(module, "variance_epsilon", None) or eps
    _bind(module, _rms_norm)


def _rms_norm(self: Any, hidden: Tensor) -> Tensor:
    calls.append("rms_norm")
    wide = hidden.float()
    return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)).to(hidden)


def _patch_layer_norm_module(module: Any, eps: float = 1e-6) -> None:
    module.variance_epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None) or eps
    _bind(module, _layer_norm)


def _layer_norm(self: Any, hidden: Tensor) -> Tensor:
    calls.append("layer_norm")
    return nn.functional.layer_norm(hidden, hidden.shape[-1:], self.weight, self.bias, self.variance_epsilon)


def _patch_swiglu_module(module: nn.Module, liger_module: Any) -> None:
    _bind(module, liger_module.forward)
