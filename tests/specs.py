"""Small decoders of every family: the rows that the contracts are parametrized over."""

from __future__ import annotations

from typing import Any

from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
_HALVES: dict[str, Any] = {"rotary_pairing": "halves", "partial_rotary_factor": 1.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _spec(**fields: Any) -> DecoderSpec:
    return DecoderSpec(**{**_SIZES, **fields})


_INFILLING: dict[str, Any] = {
    **_HALVES,
    "norm": "layer",
    "attention_mask": "prefix",
    "output_bias": True,
    "mlp_bias": True,
    "num_key_value_heads": 4,
}

SPECS: dict[str, DecoderSpec] = {
    "chatglm2": _spec(),
    "chatglm2-32k": _spec(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "chatglm3-32k": _spec(rope_theta=500_000.0),
    "glm-4-9b": _spec(norm_eps=1.5625e-7, rope_theta=5_000_000.0),
    "glm-edge": _spec(partial_rotary_factor=1.0, qkv_bias=False, tie_word_embeddings=True),
    "glm-4-0414": _spec(residual="sandwich"),
    "glm-z1-32b": _spec(residual="sandwich", qkv_bias=False),
    "llama-3": _spec(**_HALVES, qkv_bias=False, rope_theta=500_000.0),
    "llama-3.1": _spec(**_HALVES, qkv_bias=False, rope_scaling=_LLAMA3_ROPE),
    "llama-3.2": _spec(**_HALVES, qkv_bias=False, tie_word_embeddings=True),
    "llama-biased": _spec(**_HALVES, output_bias=True, mlp_bias=True),
    "qwen2.5": _spec(**_HALVES, norm_eps=1e-6),
    "qwen2.5-tied": _spec(**_HALVES, tie_word_embeddings=True),
    "qwen2-sliding": _spec(
        **_HALVES, sliding_window=4, layer_types=("full_attention", "sliding_attention", "sliding_attention")
    ),
    "glm-10b": _spec(
        **_INFILLING,
        intermediate_size=256,
        feed_forward="gelu_erf",
        positions="learned_2d",
        tie_word_embeddings=True,
    ),
    "chatglm-6b": _spec(
        **_INFILLING,
        residual="scaled",
        residual_scale=2.5,
        feed_forward="gelu_tanh",
        positions="rotary_2d",
        rotary_precision="float16",
    ),
    "glm-130b": _spec(
        **_INFILLING,
        residual="scaled",
        residual_scale=6**0.5,
        feed_forward="geglu",
        rotary_precision="float16",
        tie_word_embeddings=True,
    ),
    "infilling-recipe": _spec(**_HALVES, positions="rotary_2d", attention_mask="prefix", tie_word_embeddings=True),
    "tied-recipe": _spec(tie_word_embeddings=True),
    "chatglm2-ptuned": _spec(prefix_length=5),
    "chatglm2-ptuned-projected": _spec(prefix_length=5, prefix_projection=True),
}
SPECS["chatglm-6b-ptuned"] = SPECS["chatglm-6b"].replace(prefix_length=5)
SPECS["chatglm-6b-ptuned-projected"] = SPECS["chatglm-6b"].replace(prefix_length=5, prefix_projection=True)

FAMILY: dict[str, Format] = {
    "chatglm2": "chatglm",
    "chatglm2-32k": "chatglm",
    "chatglm3-32k": "chatglm",
    "glm-4-9b": "glm",
    "glm-edge": "glm",
    "glm-4-0414": "glm4",
    "glm-z1-32b": "glm4",
    "llama-3": "llama",
    "llama-3.1": "llama",
    "llama-3.2": "llama",
    "llama-biased": "llama",
    "qwen2.5": "qwen2",
    "qwen2.5-tied": "qwen2",
    "qwen2-sliding": "qwen2",
    "glm-10b": "glm-10b",
    "chatglm-6b": "chatglm-6b",
    "glm-130b": "glm-130b",
    "infilling-recipe": "glmlike",
    "tied-recipe": "glmlike",
    "chatglm2-ptuned": "chatglm",
    "chatglm2-ptuned-projected": "chatglm",
    "chatglm-6b-ptuned": "chatglm-6b",
    "chatglm-6b-ptuned-projected": "chatglm-6b",
}
"""The format each family's checkpoints are published in."""
