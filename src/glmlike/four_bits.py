"""bitsandbytes' 4-bit matrices on CPUs with AVX512-BF16: computed in one form, trained and saved in another.

The first inference on such a CPU puts a matrix in a form of its own for good: scales transposed and rounded to
bfloat16, double quantization undone. bitsandbytes (0.50) knows a way back but leaves the scales as they are, or
quantizes them once more, so that whatever is saved after a forward holds other numbers (functional.py,
``_convert_weight_packed_for_cpu_inverse``); and the form has no backward pass. Here the way back gives the numbers that
were computed with.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_4bit_exact(model: nn.Module) -> None:
    """Have every 4-bit matrix of ``model`` put in its ordinary form before it is saved, and before it is trained on."""
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            module.register_state_dict_pre_hook(_before_saving)  # type: ignore[no-untyped-call]
            module.register_forward_pre_hook(_before_training)


def _before_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    unpack(module)


def _before_training(module: nn.Module, inputs: Any) -> None:
    if module.training:
        unpack(module)


def unpack(module: Any) -> None:
    """Put the matrix of one module in its ordinary form, if it is in that of the CPU; what it computes stays the same.

    A doubly quantized one has plain float32 scales from then on: rounding them again would change the numbers.
    """
    state = module.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    scales = state.absmax.T.float().flatten()
    state.original_nested = False
    module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu_inverse(module.weight.data, state)
    module.weight.quant_state.absmax = scales
    module.quant_state = module.weight.quant_state
