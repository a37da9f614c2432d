"""ChatGLM-6B (``model_type: "chatglm"``) and the GLM-10B line (``model_type: "glm"``): blank infilling, LayerNorm.

Field names are those of the published configs. Facts that no field states: LayerNorm; both models' activations; the
residual factor of ChatGLM-6B, ``sqrt(2 * layers)`` for the published 28 layers (its code says 28 at any depth, so a
model of another depth that was trained with that code needs ``residual_scale`` in its config); GLM-10B's tied head, and
its tables of ``max_sequence_length + 1`` rows.
"""

from __future__ import annotations

import math
from typing import Any

from glmlike.errors import ConfigError
from glmlike.hub_json.fields import (
    Config,
    Generation,
    agree,
    integer_bits,
    need,
    or_default,
    read_prefix,
    write_prefix,
)
from glmlike.spec import DecoderSpec

_LAYER_NORM: dict[str, Any] = {
    "norm": "layer",
    "attention_mask": "prefix",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "rotary_pairing": "halves",
    "partial_rotary_factor": 1.0,
}
CHATGLM_6B: dict[str, Any] = {
    **_LAYER_NORM,
    "residual": "scaled",
    "feed_forward": "gelu_tanh",
    "positions": "rotary_2d",
    "rotary_precision": "float16",
}
GLM_10B: dict[str, Any] = {**_LAYER_NORM, "feed_forward": "gelu_erf", "positions": "learned_2d"}

# Token ids of the GLM-10B line: no published config says them. They follow from the tokenizer, and that from the sizes
# (THUDM/GLM: data_utils/tokenization.py, config_tasks). End of text there is the end of a piece.
_GPT2 = {"mask_token_id": 50_260, "gmask_token_id": 50_263, "smask_token_id": 50_264, "sop_token_id": 50_257} | {
    "eos_token_id": 50_258,
    "pad_token_id": 50_256,
}
_ROBERTA = {"mask_token_id": 50_264, "sop_token_id": 50_265, "eos_token_id": 50_266, "pad_token_id": 2}
_BERT = {"mask_token_id": 103, "gmask_token_id": 30_524, "smask_token_id": 30_525, "sop_token_id": 30_522} | {
    "eos_token_id": 30_523,
    "pad_token_id": 0,
}
_CHINESE = {"mask_token_id": 50_003, "smask_token_id": 50_008, "sop_token_id": 50_006, "eos_token_id": 50_007} | {
    "pad_token_id": 50_000
}
# glm-10b-chinese was trained with [gMASK] where eop is: before the first sop the id is a blank, after it the end.
_CHINESE_GMASK = {4096: 50_007, 1024: 50_009}


def _glm_tokens(config: Config) -> dict[str, int]:
    """What the sizes of a published checkpoint say; a config's own ids stand above it."""
    rows, hidden = config.get("vocab_size"), config.get("hidden_size")
    if rows == 50_304:
        # glm-roberta-large: 50267 tokens and GLM-2B's and GLM-10B's 50266 are padded to the same number of rows.
        return _ROBERTA if (hidden, config.get("max_sequence_length")) == (1024, 512) else _GPT2
    if rows == 50_048 and hidden in _CHINESE_GMASK:
        return {**_CHINESE, "gmask_token_id": _CHINESE_GMASK[hidden]}
    return _BERT if rows == 30_592 else {}


# The first release of ChatGLM-6B (v1.0, March 2023) began its vocabulary with 20000 image tokens. They were removed in
# April: rows 20000: of both tables stayed, and every id is 20000 less (ChatGLM-6B: UPDATE.md).
_FIRST_VOCABULARY, _IMAGE_TOKENS = 150_528, 20_000
_V1_1_TOKENS: dict[str, int] = {
    "mask_token_id": 130_000,
    "gmask_token_id": 130_001,
    "smask_token_id": 130_002,
    "sop_token_id": 130_004,
    "bos_token_id": 130_004,
    "eos_token_id": 130_005,
    "pad_token_id": 3,
}


def is_chatglm_6b(config: Config) -> bool:
    """Whether a config is ChatGLM-6B's."""
    return config.get("model_type") == "chatglm" and ("position_encoding_2d" in config or "inner_hidden_size" in config)


def dropped_rows(config: Config) -> int:
    """How many rows of image tokens the tables of a ChatGLM-6B's files begin with: 20000 in v1.0, 0 since."""
    return _IMAGE_TOKENS if is_chatglm_6b(config) and config.get("vocab_size") == _FIRST_VOCABULARY else 0


def is_glm_10b(config: Config) -> bool:
    """Whether a config is of the GLM-10B line; transformers' own ``glm`` has other fields."""
    early = "block_position_encoding" in config or "max_sequence_length" in config
    return config.get("model_type") == "glm" and early and "intermediate_size" not in config


def read_chatglm_6b(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """The decoder of a ChatGLM-6B config."""
    integer_bits(config, where)
    if not or_default(config.get("position_encoding_2d"), True):
        raise ConfigError(
            f"{where}: position_encoding_2d=false: every published ChatGLM-6B has it. Correct the config."
        )
    heads, hidden = need(config, "num_attention_heads", where), need(config, "hidden_size", where)
    num_layers = agree(config, ("num_layers", "num_hidden_layers"), where)
    layers = num_layers if isinstance(num_layers, int) and num_layers > 0 else 1  # the spec refuses anything else
    return DecoderSpec(
        vocab_size=_FIRST_VOCABULARY - dropped_rows(config)
        if dropped_rows(config)
        else need(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=or_default(
            config.get("inner_hidden_size"), 4 * hidden if isinstance(hidden, int) else hidden
        ),
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=_head_dim(hidden, heads, where),
        max_position_embeddings=or_default(config.get("max_sequence_length"), 2048),
        norm_eps=or_default(config.get("layernorm_epsilon"), 1e-5),
        residual_scale=or_default(config.get("residual_scale"), math.sqrt(2 * layers)),
        tie_word_embeddings=or_default(config.get("tie_word_embeddings"), False),
        **CHATGLM_6B,
        **read_prefix(config),
    )


def read_glm_10b(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """The decoder of a config of the GLM-10B line."""
    for name, expected in (("relative_encoding", False), ("block_position_encoding", True), ("attention_scale", 1.0)):
        if or_default(config.get(name), expected) != expected:
            raise ConfigError(f"{where}: {name}={config[name]!r}: every published checkpoint has {expected!r}.")
    heads, hidden = need(config, "num_attention_heads", where), need(config, "hidden_size", where)
    return DecoderSpec(
        vocab_size=need(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=4 * hidden if isinstance(hidden, int) else hidden,
        num_hidden_layers=agree(config, ("num_layers", "num_hidden_layers"), where),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=_head_dim(hidden, heads, where),
        max_position_embeddings=need(config, "max_sequence_length", where),
        tie_word_embeddings=True,
        **GLM_10B,
    )


def _head_dim(hidden: Any, heads: Any, where: str) -> int:
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size={hidden} is not divisible by num_attention_heads={heads}. Correct one."
        )
    return hidden // heads


def write_chatglm_6b(spec: DecoderSpec) -> dict[str, Any]:
    """The architecture fields of a ChatGLM-6B config; ``residual_scale`` beside them, which the original fixes."""
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": spec.num_hidden_layers,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "inner_hidden_size": spec.intermediate_size,
        "num_attention_heads": spec.num_attention_heads,
        "max_sequence_length": spec.max_position_embeddings,
        "layernorm_epsilon": spec.norm_eps,
        "position_encoding_2d": True,
        "residual_scale": spec.residual_scale,
        **write_prefix(spec.prefix_length, spec.prefix_projection),
    }


def write_glm_10b(spec: DecoderSpec) -> dict[str, Any]:
    """The architecture fields of a config of the GLM-10B line."""
    return {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "num_layers": spec.num_hidden_layers,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "max_sequence_length": spec.max_position_embeddings,
        "block_position_encoding": True,
        "relative_encoding": False,
        "attention_scale": 1.0,
    }


def obstacles(spec: DecoderSpec) -> list[str]:
    """Sizes that follow from others in both configs, and here do not."""
    found = []
    if spec.num_key_value_heads != spec.num_attention_heads:
        found.append(
            f"num_key_value_heads={spec.num_key_value_heads} (one for each of {spec.num_attention_heads} heads)"
        )
    if spec.query_size != spec.hidden_size:
        found.append(f"head_dim={spec.head_dim} (hidden_size / num_attention_heads)")
    if spec.positions == "learned_2d" and spec.intermediate_size != 4 * spec.hidden_size:
        found.append(f"intermediate_size={spec.intermediate_size} (4 x hidden_size)")
    return found


def token_ids(config: Config) -> dict[str, Any]:
    """The ids of blanks and of the start of a piece under our names, where the config or its vocabulary says them."""
    if is_glm_10b(config):
        return {**_glm_tokens(config), **_said(config)}
    if not is_chatglm_6b(config):
        return {}
    if dropped_rows(config):
        return dict(_V1_1_TOKENS)  # with v1.1's rows go v1.1's ids; those in the file are of the old vocabulary
    smask = {"smask_token_id": 130_002} if config.get("vocab_size") == 130_528 else {}
    start = {} if config.get("bos_token_id") is None else {"sop_token_id": config["bos_token_id"]}
    return {**smask, **start, **_said(config)}


def _said(config: Config) -> dict[str, Any]:
    names = ("mask_token_id", "smask_token_id", "gmask_token_id", "sop_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
