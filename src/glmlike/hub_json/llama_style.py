"""The formats with LLaMA's field names: glmlike, glm, glm4, llama, qwen2; defaults as in transformers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmlike.errors import ConfigError, SpecError
from glmlike.hub_json.fields import Config, Generation, head_dim, need, number, or_default, rope_settings
from glmlike.spec import DecoderSpec, freeze_rope


def rotary_defaults(positions: str | None) -> tuple[str, float]:
    """Pairing and rotated share of a config that leaves them out: the GLM line's; with 2-D positions ChatGLM-6B's."""
    return ("halves", 1.0) if positions == "rotary_2d" else ("interleaved", 0.5)


def read_glmlike(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """The decoder of one of our own config.json files."""
    choices = ("norm", "residual", "residual_scale", "feed_forward", "positions", "rotary_precision")
    layer_types, window = config.get("layer_types"), config.get("sliding_window")
    if layer_types is None and window is not None:  # transformers' caches read it so: every layer slides
        layer_types = ("sliding_attention",) * _layer_count(config)
    pairing, factor = rotary_defaults(config.get("positions"))
    return _read_llama_style(
        config,
        where,
        defaults={"partial_rotary_factor": factor, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072},
        qkv_bias=or_default(config.get("attention_bias"), True),
        output_bias=or_default(config.get("attention_output_bias"), False),
        mlp_bias=or_default(config.get("mlp_bias"), False),
        layer_types=layer_types,
        sliding_window=window,
        prefix_length=or_default(config.get("prefix_length"), 0),
        prefix_projection=or_default(config.get("prefix_projection"), False),
        rotary_pairing=or_default(config.get("rotary_pairing"), pairing),
        **{name: config[name] for name in (*choices, "attention_mask") if name in config},
    )


def read_native(config: Config, where: str) -> DecoderSpec:
    """The decoder of our own fields, whose errors begin with ``where``; knows no other format.

    Raises:
        ConfigError, SpecError: see :func:`glmlike.hub_json.read_spec`.
    """
    try:
        return read_glmlike(config, where, None)
    except SpecError as error:
        raise type(error)(f"{where}: {error}") from None


def read_glm(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """GLM-4-9b-hf, GLM-Edge (glm) and GLM-4-0414, GLM-Z1 (glm4); defaults are those of GlmConfig and Glm4Config."""
    return _read_llama_style(
        config,
        where,
        defaults={
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1.5625e-7,
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 2,
            "head_dim": 128,
        },
        qkv_bias=or_default(config.get("attention_bias"), True),
        residual="sandwich" if config["model_type"] == "glm4" else "pre",
    )


def read_llama(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """LLaMA 3; one switch says whether q, k, v and the output projection have a bias."""
    bias = or_default(config.get("attention_bias"), False)
    return _read_llama_style(
        config,
        where,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        force_full_rotary=True,
        rotary_pairing="halves",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=or_default(config.get("mlp_bias"), False),
    )


def read_qwen2(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """Qwen2.5; q, k and v always have a bias."""
    layer_types, window = _qwen2_sliding(config)
    return _read_llama_style(
        config,
        where,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "num_key_value_heads": 32},
        force_full_rotary=True,
        rotary_pairing="halves",
        qkv_bias=True,
        layer_types=layer_types,
        sliding_window=window,
    )


def _qwen2_sliding(config: Config) -> tuple[tuple[str, ...] | None, int | None]:
    """Qwen2Config: layers from ``max_window_layers`` on slide, if ``use_sliding_window``; else none does."""
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    if window is None:
        return None, None
    layers = _layer_count(config)
    first = or_default(config.get("max_window_layers"), 28)
    derived = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    return tuple(config.get("layer_types") or derived), window


def _layer_count(config: Config) -> int:
    """The number of layers, or 0 where it is none; the spec refuses that, and absurd ones, with its own sentence."""
    layers = config.get("num_hidden_layers")
    return layers if isinstance(layers, int) and 0 < layers < 10_000 else 0


def _read_llama_style(
    config: Config,
    where: str,
    *,
    defaults: Mapping[str, Any],
    force_full_rotary: bool = False,
    **choices: Any,
) -> DecoderSpec:
    if or_default(config.get("hidden_act"), "silu") not in ("silu", "swish"):
        raise ConfigError(
            f"{where}: hidden_act={config['hidden_act']!r}: expected 'silu' (SwiGLU), as in every published checkpoint."
        )
    rope = rope_settings(config, where)
    factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    factor = 1.0 if force_full_rotary else or_default(factor, defaults.get("partial_rotary_factor", 1.0))
    theta = or_default(rope.get("rope_theta"), or_default(config.get("rope_theta"), 10_000.0))
    heads = need(config, "num_attention_heads", where)
    return DecoderSpec(
        vocab_size=need(config, "vocab_size", where),
        hidden_size=need(config, "hidden_size", where),
        intermediate_size=need(config, "intermediate_size", where),
        num_hidden_layers=need(config, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=or_default(config.get("num_key_value_heads"), defaults.get("num_key_value_heads", heads)),
        head_dim=or_default(config.get("head_dim"), defaults.get("head_dim")) or head_dim(config, where),
        max_position_embeddings=or_default(config.get("max_position_embeddings"), defaults["max_position_embeddings"]),
        norm_eps=or_default(config.get("rms_norm_eps"), defaults["rms_norm_eps"]),
        partial_rotary_factor=1.0
        if force_full_rotary
        else or_default(factor, defaults.get("partial_rotary_factor", 1.0)),
        rope_theta=number(theta, "rope_theta", where),
        rope_scaling=freeze_rope(rope),
        tie_word_embeddings=or_default(config.get("tie_word_embeddings"), False),
        **choices,
    )


def _write_llama_style(spec: DecoderSpec, model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": spec.rope_parameters,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }


def write_glmlike(spec: DecoderSpec) -> dict[str, Any]:
    """Our own fields; every choice of the spec is said."""
    sliding: dict[str, Any] = {"sliding_window": spec.sliding_window}
    if spec.layer_types is not None:
        sliding["layer_types"] = list(spec.layer_types)
    return {
        **_write_llama_style(spec, "glmlike", "GlmLikeForCausalLM"),
        "norm": spec.norm,
        "residual": spec.residual,
        "residual_scale": spec.residual_scale,
        "feed_forward": spec.feed_forward,
        "positions": spec.positions,
        "rotary_pairing": spec.rotary_pairing,
        "rotary_precision": spec.rotary_precision,
        "attention_mask": spec.attention_mask,
        "attention_bias": spec.qkv_bias,
        "attention_output_bias": spec.output_bias,
        "mlp_bias": spec.mlp_bias,
        "prefix_length": spec.prefix_length,
        "prefix_projection": spec.prefix_projection,
        **sliding,
    }


def write_glm(spec: DecoderSpec) -> dict[str, Any]:
    """The fields of GlmConfig."""
    return {**_write_llama_style(spec, "glm", "GlmForCausalLM"), "attention_bias": spec.qkv_bias}


def write_glm4(spec: DecoderSpec) -> dict[str, Any]:
    """The fields of Glm4Config."""
    return {**_write_llama_style(spec, "glm4", "Glm4ForCausalLM"), "attention_bias": spec.qkv_bias}


def write_llama(spec: DecoderSpec) -> dict[str, Any]:
    """The fields of LlamaConfig."""
    biases = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
    return _without_partial_factor({**_write_llama_style(spec, "llama", "LlamaForCausalLM"), **biases})


def write_qwen2(spec: DecoderSpec) -> dict[str, Any]:
    """The fields of Qwen2Config."""
    sliding: dict[str, Any] = {"use_sliding_window": spec.layer_types is not None}
    if spec.layer_types is not None:
        sliding |= {"sliding_window": spec.sliding_window, "layer_types": list(spec.layer_types)}
    return _without_partial_factor({**_write_llama_style(spec, "qwen2", "Qwen2ForCausalLM"), **sliding})


def _without_partial_factor(config: dict[str, Any]) -> dict[str, Any]:
    config["rope_parameters"] = {k: v for k, v in config["rope_parameters"].items() if k != "partial_rotary_factor"}
    return config
