"""llama.cpp's tensors of the architectures ``chatglm``, ``glm4``, ``llama`` and ``qwen2`` (GGUF files).

Names and shapes are those of its src/models/*.cpp. ``chatglm`` and ``glm4`` rotate neighbours, as GLM does natively,
and hold gate and up in ``ffn_up`` = [gate; up]; ``llama`` rotates neighbours as well, which LLaMA does not; ``qwen2``
rotates halves, as Qwen does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from glmlike.checkpoint.layouts import Fused, Layout, Neighbours, Same
from glmlike.checkpoint.native import LAYER
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

Architecture = Literal["chatglm", "glm4", "llama", "qwen2"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

LLAMA3_FACTORS = "rope_freqs.weight"
"""What llama.cpp divides the rotary frequencies of ``llama`` by; follows from LLaMA 3.1's rope settings."""

_LAYER = "blk.{layer}."


def table(spec: DecoderSpec, architecture: Architecture, fused: Collection[str] | None = None) -> list[Rule]:
    """The rows of one architecture; ``fused`` are the kinds (weight, bias) of q, k and v that stand in one tensor.

    llama.cpp reads ``attn_qkv`` and ``attn_q``, ``attn_k``, ``attn_v`` alike; its converter writes the former for
    ChatGLM2, ChatGLM3 and GLM-4-9B as published, the latter for everything else, and so does this table by default.
    """
    if fused is None:
        fused = ("weight", "bias") if architecture == "chatglm" else ()
    return [
        same("model.embed_tokens.weight", "token_embd.weight"),
        same(LAYER + "input_layernorm.weight", _LAYER + "attn_norm.weight"),
        *(rule for kind in _kinds(spec.qkv_bias) for rule in _qkv(spec, architecture, kind, kind in fused)),
        *(same(f"{LAYER}self_attn.o_proj.{kind}", f"{_LAYER}attn_output.{kind}") for kind in _kinds(spec.output_bias)),
        *_post_norms(spec),
        same(LAYER + "post_attention_layernorm.weight", _LAYER + "ffn_norm.weight"),
        *(rule for kind in _kinds(spec.mlp_bias) for rule in _feed_forward(spec, architecture, kind)),
        same("model.norm.weight", "output_norm.weight"),
        *([] if spec.tie_word_embeddings else [same("lm_head.weight", "output.weight")]),
    ]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _qkv(spec: DecoderSpec, architecture: Architecture, kind: str, fused: bool) -> list[Rule]:
    parts = tuple(f"{LAYER}self_attn.{part}_proj.{kind}" for part in "qkv")
    if fused:
        rows = Fused((spec.query_size, spec.key_value_size, spec.key_value_size))
        return [Rule(parts, (f"{_LAYER}attn_qkv.{kind}",), rows)]
    layouts: dict[str, Layout] = dict.fromkeys("qk", Neighbours(spec.head_dim))
    return [
        Rule(
            (name,), (f"{_LAYER}attn_{part}.{kind}",), layouts.get(part, Same()) if architecture == "llama" else Same()
        )
        for part, name in zip("qkv", parts, strict=True)
    ]


def _post_norms(spec: DecoderSpec) -> list[Rule]:
    if spec.residual != "sandwich":
        return []
    return [
        same(LAYER + "post_self_attn_layernorm.weight", _LAYER + "post_attention_norm.weight"),
        same(LAYER + "post_mlp_layernorm.weight", _LAYER + "post_ffw_norm.weight"),
    ]


def _feed_forward(spec: DecoderSpec, architecture: Architecture, kind: str) -> list[Rule]:
    gate, up, down = (f"{LAYER}mlp.{part}_proj.{kind}" for part in ("gate", "up", "down"))
    below = same(down, f"{_LAYER}ffn_down.{kind}")
    if architecture in ("chatglm", "glm4"):
        halves = Fused((spec.intermediate_size, spec.intermediate_size))
        return [Rule((gate, up), (f"{_LAYER}ffn_up.{kind}",), halves), below]
    return [same(gate, f"{_LAYER}ffn_gate.{kind}"), same(up, f"{_LAYER}ffn_up.{kind}"), below]
