"""ChatGLM2, CodeGeeX2, ChatGLM3, GLM-4-9B: ``model_type: "chatglm"``.

Field names and meanings are those of the published configs and configuration_chatglm.py files.
"""

from __future__ import annotations

from typing import Any, cast, get_args

from glmlike.errors import ConfigError
from glmlike.hub_json.early import is_chatglm_6b
from glmlike.hub_json.fields import (
    Config,
    Format,
    Generation,
    agree,
    integer_bits,
    need,
    number,
    or_default,
    read_prefix,
    write_prefix,
)
from glmlike.spec import DecoderSpec, freeze_rope

CHATGLM_FIELDS = frozenset(
    {
        *("num_layers", "num_hidden_layers", "padded_vocab_size", "vocab_size", "hidden_size", "ffn_hidden_size"),
        *("kv_channels", "num_attention_heads", "multi_query_group_num", "multi_query_attention", "seq_length"),
        *("layernorm_epsilon", "rmsnorm", "post_layer_norm", "apply_residual_connection_post_layernorm"),
        *("add_bias_linear", "add_qkv_bias", "interleaved_qkv", "rotary_percent", "original_rope", "rope_ratio"),
        *("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "fp32_residual_connection"),
        *("bias_dropout_fusion", "hidden_dropout", "quantization_bit", "quantization_embeddings"),
        *("pre_seq_len", "prefix_projection"),
        *("generation", "auto_map", "architectures", "model_type", "transformers_version", "tie_word_embeddings"),
    }
)
"""Fields of published ``chatglm`` configs that the spec answers for, or that no published code acts on."""

# What the published modelling files branch on and every published config leaves at this value.
_FIXED: dict[str, Any] = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "multi_query_attention": True,
    "interleaved_qkv": False,
    "rotary_percent": 0.5,
}


def detect(config: Config, where: str) -> Format:
    """``"chatglm"`` or ``"chatglm-6b"``, or a ConfigError that names what this version does not read."""
    if "vision_config" in config:
        raise ConfigError(f"{where}: GLM-4V (has 'vision_config'): this version reads text checkpoints only.")
    if is_chatglm_6b(config):
        return "chatglm-6b"
    if "padded_vocab_size" not in config and "ffn_hidden_size" not in config:
        raise ConfigError(
            f"{where}: model_type='chatglm' with neither 'padded_vocab_size' (ChatGLM2, ChatGLM3, GLM-4) nor "
            "'inner_hidden_size' (ChatGLM-6B): no published generation has such a config. Restore the original file."
        )
    return "chatglm"


def read(config: Config, where: str, generation: Generation | None) -> DecoderSpec:
    """The decoder of a ``chatglm`` config.json."""
    for name, expected in _FIXED.items():
        if or_default(config.get(name), expected) != expected:
            raise ConfigError(
                f"{where}: {name}={config[name]!r}; every published checkpoint has {expected!r} and nothing else is "
                "supported. Correct the config or convert the checkpoint with its own tools first."
            )
    integer_bits(config, where)
    ratio = number(config.get("rope_ratio") or 1, "rope_ratio", where)
    theta = 10_000.0
    scaling: dict[str, Any] = {"rope_type": "default"}
    if ratio != 1 and _generation(config, generation) == "chatglm2":
        scaling = {"rope_type": "linear", "factor": float(ratio)}
    else:
        theta *= ratio
    return DecoderSpec(
        vocab_size=need(config, "padded_vocab_size", where),
        hidden_size=need(config, "hidden_size", where),
        intermediate_size=need(config, "ffn_hidden_size", where),
        num_hidden_layers=agree(config, ("num_layers", "num_hidden_layers"), where),
        num_attention_heads=need(config, "num_attention_heads", where),
        num_key_value_heads=need(config, "multi_query_group_num", where),
        head_dim=need(config, "kv_channels", where),
        max_position_embeddings=or_default(config.get("seq_length"), 32_768),
        norm_eps=or_default(config.get("layernorm_epsilon"), 1e-5),
        rope_theta=theta,
        rope_scaling=freeze_rope(scaling),
        qkv_bias=or_default(config.get("add_qkv_bias"), False),
        tie_word_embeddings=or_default(config.get("tie_word_embeddings"), False),
        **read_prefix(config),
    )


def _generation(config: Config, generation: Generation | None) -> str:
    said = generation or config.get("generation")
    if said is not None:
        if said not in get_args(Generation):
            raise ConfigError(f"generation={said!r}: expected one of {', '.join(get_args(Generation))}.")
        return str(said)
    recorded = str(config.get("_name_or_path", "")).lower().rstrip("/").rsplit("/", 1)[-1]
    return "chatglm2" if recorded.startswith("chatglm2") else "chatglm3"


def rope_ratio_is_ambiguous(config: Config) -> bool:
    """Whether no field of a ``chatglm`` config tells ChatGLM2's meaning of ``rope_ratio`` from ChatGLM3's."""
    recorded = str(config.get("_name_or_path", "")).lower()
    return (
        (config.get("rope_ratio") or 1) != 1
        and config.get("padded_vocab_size") == 65_024
        and config.get("generation") is None
        and not any(name in recorded for name in ("chatglm2", "chatglm3"))
    )


def rope_obstacles(spec: DecoderSpec) -> list[str]:
    """Rope settings that ``rope_ratio`` cannot say."""
    scaling = dict(spec.rope_scaling)
    if spec.rope_type == "default":
        return []
    if spec.rope_type == "linear" and spec.rope_theta == 10_000.0 and set(scaling) <= {"rope_type", "factor"}:
        return []
    return [f"rope_scaling={scaling}"]


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The architecture fields of a ``chatglm`` config.json."""
    scaling = dict(spec.rope_scaling)
    linear = spec.rope_type == "linear"
    ratio = float(cast(float, scaling["factor"])) if linear else spec.rope_theta / 10_000.0
    out: dict[str, Any] = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": spec.num_hidden_layers,
        "padded_vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.intermediate_size,
        "kv_channels": spec.head_dim,
        "num_attention_heads": spec.num_attention_heads,
        "multi_query_group_num": spec.num_key_value_heads,
        "seq_length": spec.max_position_embeddings,
        "layernorm_epsilon": spec.norm_eps,
        "add_qkv_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tie_word_embeddings,
        **{name: value for name, value in _FIXED.items() if name not in ("interleaved_qkv", "rotary_percent")},
        "original_rope": True,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
        **write_prefix(spec.prefix_length, spec.prefix_projection),
    }
    return {**out, "generation": "chatglm2"} if linear else out
