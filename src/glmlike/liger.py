"""Liger's kernels in the decoder: what ``TrainingArguments(use_liger_kernel=True)`` does to a glmlike model.

Liger (https://github.com/linkedin/Liger-Kernel) looks a model's type up in a table, where registration puts ours once
somebody has imported Liger. Replaced is only what Liger computes exactly: RMSNorm (its casting mode "llama" is ours),
LayerNorm, the product of SwiGLU, and the rotation of whole heads whose pairs lie half a head apart. GEGLU (Liger's is
the tanh form), feed-forwards without a gate, interleaved, partial and two-dimensional rotations stay as they are. The
loss needs nothing here: :mod:`glmlike.loss` takes Liger's fused kernel by itself on CUDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from glmlike.errors import ConfigError
from glmlike.norms import GlmLikeRMSNorm

if TYPE_CHECKING:
    from glmlike.spec import DecoderSpec


def register_liger(monkey_patch: Any) -> None:
    """Put our model type into the table of ``liger_kernel.transformers.monkey_patch``, unless it is there."""
    monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.setdefault("glmlike", apply_liger_kernel_to_glmlike)


def apply_liger_kernel_to_glmlike(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    layer_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """Replace the forwards of ``model``'s modules, of this instance only, by Liger's where those are exact.

    The arguments are those of Liger's own functions, and so of ``TrainingArguments(liger_kernel_config={...})``.
    ``fused_linear_cross_entropy=False`` trains on logits: it sets ``config.chunked_loss = False``. The norms keep their
    incoming gradient unchanged (``in_place=False``): behind a sandwiched branch the residual has the same one.

    Raises:
        ConfigError: no model is given (a class of ours is never changed), or ``cross_entropy=True``, by which Liger
            replaces torch's function for the whole process.
    """
    if model is None:
        raise ConfigError("no model: load it first, then pass it as model=, or use use_liger_kernel=True in Trainer.")
    if cross_entropy:
        raise ConfigError(
            "cross_entropy=True would replace torch's cross_entropy for the whole process. Leave it out: the loss "
            "of a glmlike model is made without logits."
        )
    config = model.config
    if not fused_linear_cross_entropy:
        config.chunked_loss = False
    decoder = getattr(model, model.base_model_prefix, model)
    if rms_norm or layer_norm:
        _replace_norms(decoder, rms_norm, layer_norm)
    for layer in decoder.layers:
        if swiglu and config.spec.feed_forward == "swiglu":
            _replace_swiglu(layer.mlp)
        if rope and turns_as_llama(config.spec):
            layer.self_attn.rotate = _rotate


def turns_as_llama(spec: DecoderSpec) -> bool:
    """Whether each whole head is turned by one position, in pairs half a head apart: what Liger's rotation does."""
    return spec.positions == "rotary" and spec.rotary_pairing == "halves" and spec.partial_rotary_factor == 1.0


def _replace_norms(decoder: nn.Module, rms_norm: bool, layer_norm: bool) -> None:
    from liger_kernel.transformers import monkey_patch

    for module in list(decoder.modules()):
        if rms_norm and type(module) is GlmLikeRMSNorm:
            monkey_patch._patch_rms_norm_module(module, casting_mode="llama", in_place=False)
        elif layer_norm and type(module) is nn.LayerNorm:
            monkey_patch._patch_layer_norm_module(module)


def _replace_swiglu(mlp: nn.Module) -> None:
    """Its three matrices, with biases, adapters or quantized, are still called as modules."""
    from liger_kernel.transformers import monkey_patch
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    monkey_patch._patch_swiglu_module(mlp, LigerSwiGLUMLP)


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, turn: Any) -> tuple[Tensor, Tensor]:
    """Liger's rotation in the place of :func:`glmlike.rotary.apply_rotary`; which pairs, its kernel knows."""
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    rotated: tuple[Tensor, Tensor] = liger_rotary_pos_emb(query, key, cos, sin)
    return rotated
