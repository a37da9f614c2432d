"""How each published ``config.json`` says a DecoderSpec, and back.

One reader and one writer for each format; what a format cannot say is a table (``_EXPRESSIBLE``). Standard library
only: configuration.py (Hub configs) and the checkpoint room (conversion) read the same functions. Field names and
meanings are those of the published configs; a fact that no field states carries its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

from glmlike.errors import CannotExpressError, ConfigError, SpecError
from glmlike.spec import DecoderSpec, freeze_rope

Format = Literal["glmlike", "chatglm", "glm", "glm4", "llama", "qwen2"]
Generation = Literal["chatglm2", "chatglm3", "glm4"]
Config = Mapping[str, Any]

FORMATS: tuple[Format, ...] = get_args(Format)

FUSED_FORMATS: frozenset[Format] = frozenset({"chatglm", "glm", "glm4"})
"""Formats whose files hold several native matrices as one: these cannot be read by tensor-parallel or FSDP loading."""

CARRIED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "initializer_range", "use_cache", "attention_dropout"),
    *("id2label", "label2id", "problem_type", "classifier_dropout", "quantization_config"),
)
"""Config fields that are not the decoder's shape and travel unchanged between formats (``torch_dtype``: ``dtype``)."""

CHATGLM_FIELDS = frozenset(
    {
        *("num_layers", "num_hidden_layers", "padded_vocab_size", "vocab_size", "hidden_size", "ffn_hidden_size"),
        *("kv_channels", "num_attention_heads", "multi_query_group_num", "multi_query_attention", "seq_length"),
        *("layernorm_epsilon", "rmsnorm", "post_layer_norm", "apply_residual_connection_post_layernorm"),
        *("add_bias_linear", "add_qkv_bias", "interleaved_qkv", "rotary_percent", "original_rope", "rope_ratio"),
        *("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "fp32_residual_connection"),
        *("bias_dropout_fusion", "hidden_dropout", "quantization_bit", "pre_seq_len", "prefix_projection"),
        *("generation", "auto_map", "architectures", "model_type", "transformers_version", "tie_word_embeddings"),
    }
)
"""Fields of published ``chatglm`` configs that the spec answers for, or that no published code acts on."""


def detect(config: Config, where: str = "config.json") -> Format:
    """The one format whose fields ``config`` has; folder and repository names play no part.

    Raises:
        ConfigError: no format fits, or the config is of a generation that this version does not read.
    """
    model_type = config.get("model_type")
    if model_type == "chatglm":
        return _detect_chatglm(config, where)
    if model_type == "glm" and "intermediate_size" not in config:
        raise ConfigError(
            f"{where}: model_type='glm' without 'intermediate_size' is the GLM-10B family (learned 2-D positions), "
            "not transformers' native glm; this version does not read it. Known here: " + ", ".join(FORMATS) + "."
        )
    if model_type in FORMATS:
        return cast(Format, model_type)
    known = ", ".join(FORMATS)
    raise ConfigError(f"{where}: model_type={model_type!r}; known: {known}. Pass a folder of one of these.")


def read_spec(config: Config, where: str = "config.json", *, generation: Generation | None = None) -> DecoderSpec:
    """The decoder that ``config`` describes.

    ``generation`` answers the one question no field does: a ChatGLM2 and a ChatGLM3 config are the same, but
    ``rope_ratio`` divides the positions of the former (linear interpolation) and multiplies the rotary base of the
    latter and of GLM-4. Default: the config's own ``generation`` field, else the checkpoint name that the field
    ``_name_or_path`` records, else ChatGLM3.

    Raises:
        ConfigError: unknown format, a missing or contradictory field, or an option no published checkpoint uses.
        SpecError: the fields are read but describe an impossible decoder.
    """
    reader = _READERS[detect(config, where)]
    try:
        return reader(config, where, generation)
    except SpecError as error:
        raise type(error)(f"{where}: {error}") from None


def write_config(spec: DecoderSpec, fmt: Format) -> dict[str, Any]:
    """The architecture fields of ``fmt``'s config.json for ``spec``, ``model_type`` and ``architectures`` included.

    Raises:
        CannotExpressError: the format cannot say this decoder; the message names the formats that can.
    """
    obstacles = cannot_express(spec, fmt)
    if obstacles:
        able = [name for name in FORMATS if not cannot_express(spec, name)]
        raise CannotExpressError(
            f"format {fmt!r} cannot express {', '.join(obstacles)}. Formats that can: {', '.join(able)}."
        )
    return _WRITERS[fmt](spec)


def cannot_express(spec: DecoderSpec, fmt: Format) -> list[str]:
    """What of ``spec`` has no place in ``fmt``, as ``field=value`` phrases; empty when everything has."""
    found = [
        f"{name}={getattr(spec, name)!r}"
        for name, allowed in _EXPRESSIBLE[fmt].items()
        if getattr(spec, name) not in allowed
    ]
    if fmt == "llama" and spec.qkv_bias != spec.output_bias:
        found.append(f"qkv_bias={spec.qkv_bias} with output_bias={spec.output_bias} (llama has one switch for both)")
    if fmt == "chatglm":
        found += _chatglm_rope_obstacles(spec)
    return found


def carried_fields(config: Config) -> dict[str, Any]:
    """The fields of ``config`` that travel unchanged between formats (see ``CARRIED``)."""
    renamed = {"dtype" if key == "torch_dtype" else key: value for key, value in config.items()}
    return {key: renamed[key] for key in CARRIED if renamed.get(key) is not None}


_NO_EXTRA_BIAS: dict[str, tuple[Any, ...]] = {"output_bias": (False,), "mlp_bias": (False,)}
_GLM_ROTARY: dict[str, tuple[Any, ...]] = {"rotary_pairing": ("interleaved",), "layer_types": (None,)}
_HALVES: dict[str, tuple[Any, ...]] = {
    "rotary_pairing": ("halves",),
    "partial_rotary_factor": (1.0,),
    "residual": ("pre",),
}
_EXPRESSIBLE: dict[Format, dict[str, tuple[Any, ...]]] = {
    "glmlike": {},
    "chatglm": {"residual": ("pre",), "partial_rotary_factor": (0.5,), **_GLM_ROTARY, **_NO_EXTRA_BIAS},
    "glm": {"residual": ("pre",), **_GLM_ROTARY, **_NO_EXTRA_BIAS},
    "glm4": {"residual": ("sandwich",), **_GLM_ROTARY, **_NO_EXTRA_BIAS},
    "llama": {"layer_types": (None,), **_HALVES},
    "qwen2": {"qkv_bias": (True,), **_HALVES, **_NO_EXTRA_BIAS},
}


# ---- ChatGLM2, CodeGeeX2, ChatGLM3, GLM-4-9B: model_type "chatglm"

# What the published modelling files branch on and every published config leaves at this value.
_CHATGLM_FIXED: dict[str, Any] = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "multi_query_attention": True,
    "interleaved_qkv": False,
    "rotary_percent": 0.5,
}


def _detect_chatglm(config: Config, where: str) -> Format:
    if "vision_config" in config:
        raise ConfigError(f"{where}: GLM-4V (has 'vision_config'): this version reads text checkpoints only.")
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        raise ConfigError(
            f"{where}: ChatGLM-6B (has 'position_encoding_2d' or 'inner_hidden_size'): this version does not read it. "
            f"Known here: {', '.join(FORMATS)}."
        )
    if "padded_vocab_size" not in config and "ffn_hidden_size" not in config:
        raise ConfigError(
            f"{where}: model_type='chatglm' with neither 'padded_vocab_size' (ChatGLM2, ChatGLM3, GLM-4) nor "
            "'inner_hidden_size' (ChatGLM-6B): no published generation has such a config. Restore the original file."
        )
    return "chatglm"


def _read_chatglm(config: Config, where: str, generation: Generation | None) -> DecoderSpec:
    for name, expected in _CHATGLM_FIXED.items():
        if _or(config.get(name), expected) != expected:
            raise ConfigError(
                f"{where}: {name}={config[name]!r}; every published checkpoint has {expected!r} and nothing else is "
                "supported. Correct the config or convert the checkpoint with its own tools first."
            )
    for name, what in (("quantization_bit", "pre-quantized weights"), ("pre_seq_len", "a P-tuning v2 prefix")):
        if config.get(name):
            raise ConfigError(f"{where}: {name}={config[name]!r}: {what}, which this version does not read.")
    ratio = _number(config.get("rope_ratio") or 1, "rope_ratio", where)
    theta = 10_000.0
    scaling: dict[str, Any] = {"rope_type": "default"}
    if ratio != 1 and _chatglm_generation(config, generation) == "chatglm2":
        scaling = {"rope_type": "linear", "factor": float(ratio)}
    else:
        theta *= ratio
    return DecoderSpec(
        vocab_size=_need(config, "padded_vocab_size", where),
        hidden_size=_need(config, "hidden_size", where),
        intermediate_size=_need(config, "ffn_hidden_size", where),
        num_hidden_layers=_agree(config, ("num_layers", "num_hidden_layers"), where),
        num_attention_heads=_need(config, "num_attention_heads", where),
        num_key_value_heads=_need(config, "multi_query_group_num", where),
        head_dim=_need(config, "kv_channels", where),
        max_position_embeddings=_or(config.get("seq_length"), 32_768),
        norm_eps=_or(config.get("layernorm_epsilon"), 1e-5),
        rope_theta=theta,
        rope_scaling=freeze_rope(scaling),
        qkv_bias=_or(config.get("add_qkv_bias"), False),
        tie_word_embeddings=_or(config.get("tie_word_embeddings"), False),
    )


def _chatglm_generation(config: Config, generation: Generation | None) -> str:
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


def _chatglm_rope_obstacles(spec: DecoderSpec) -> list[str]:
    scaling = dict(spec.rope_scaling)
    if spec.rope_type == "default":
        return []
    if spec.rope_type == "linear" and spec.rope_theta == 10_000.0 and set(scaling) <= {"rope_type", "factor"}:
        return []
    return [f"rope_scaling={scaling}"]


def _write_chatglm(spec: DecoderSpec) -> dict[str, Any]:
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
        **{name: value for name, value in _CHATGLM_FIXED.items() if name not in ("interleaved_qkv", "rotary_percent")},
        "original_rope": True,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
    }
    return {**out, "generation": "chatglm2"} if linear else out


# ---- the formats with LLaMA's field names: glmlike, glm, glm4, llama, qwen2


def _read_glmlike(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    choices = ("norm", "residual", "feed_forward", "positions", "rotary_pairing", "attention_mask")
    layer_types, window = config.get("layer_types"), config.get("sliding_window")
    if layer_types is None and window is not None:  # transformers' caches read it so: every layer slides
        layer_types = ("sliding_attention",) * _layer_count(config)
    return _read_llama_style(
        config,
        where,
        defaults={"partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072},
        qkv_bias=_or(config.get("attention_bias"), True),
        output_bias=_or(config.get("attention_output_bias"), False),
        mlp_bias=_or(config.get("mlp_bias"), False),
        layer_types=layer_types,
        sliding_window=window,
        **{name: config[name] for name in choices if name in config},
    )


def _read_glm(config: Config, where: str, _: Generation | None) -> DecoderSpec:
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
        qkv_bias=_or(config.get("attention_bias"), True),
        residual="sandwich" if config["model_type"] == "glm4" else "pre",
    )


def _read_llama(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    bias = _or(config.get("attention_bias"), False)
    return _read_llama_style(
        config,
        where,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        force_full_rotary=True,
        rotary_pairing="halves",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=_or(config.get("mlp_bias"), False),
    )


def _read_qwen2(config: Config, where: str, _: Generation | None) -> DecoderSpec:
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
    first = _or(config.get("max_window_layers"), 28)
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
    if _or(config.get("hidden_act"), "silu") not in ("silu", "swish"):
        raise ConfigError(
            f"{where}: hidden_act={config['hidden_act']!r}: expected 'silu' (SwiGLU), as in every published checkpoint."
        )
    rope = _rope(config, where)
    factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    heads = _need(config, "num_attention_heads", where)
    return DecoderSpec(
        vocab_size=_need(config, "vocab_size", where),
        hidden_size=_need(config, "hidden_size", where),
        intermediate_size=_need(config, "intermediate_size", where),
        num_hidden_layers=_need(config, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=_or(config.get("num_key_value_heads"), defaults.get("num_key_value_heads", heads)),
        head_dim=_or(config.get("head_dim"), defaults.get("head_dim")) or head_dim(config, where),
        max_position_embeddings=_or(config.get("max_position_embeddings"), defaults["max_position_embeddings"]),
        norm_eps=_or(config.get("rms_norm_eps"), defaults["rms_norm_eps"]),
        partial_rotary_factor=1.0 if force_full_rotary else _or(factor, defaults.get("partial_rotary_factor", 1.0)),
        rope_theta=_number(_or(rope.get("rope_theta"), _or(config.get("rope_theta"), 10_000.0)), "rope_theta", where),
        rope_scaling=freeze_rope(rope),
        tie_word_embeddings=_or(config.get("tie_word_embeddings"), False),
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


def _write_glmlike(spec: DecoderSpec) -> dict[str, Any]:
    sliding: dict[str, Any] = {"sliding_window": spec.sliding_window}
    if spec.layer_types is not None:
        sliding["layer_types"] = list(spec.layer_types)
    return {
        **_write_llama_style(spec, "glmlike", "GlmLikeForCausalLM"),
        "norm": spec.norm,
        "residual": spec.residual,
        "feed_forward": spec.feed_forward,
        "positions": spec.positions,
        "rotary_pairing": spec.rotary_pairing,
        "attention_mask": spec.attention_mask,
        "attention_bias": spec.qkv_bias,
        "attention_output_bias": spec.output_bias,
        "mlp_bias": spec.mlp_bias,
        **sliding,
    }


def _write_glm(spec: DecoderSpec) -> dict[str, Any]:
    return {**_write_llama_style(spec, "glm", "GlmForCausalLM"), "attention_bias": spec.qkv_bias}


def _write_glm4(spec: DecoderSpec) -> dict[str, Any]:
    return {**_write_llama_style(spec, "glm4", "Glm4ForCausalLM"), "attention_bias": spec.qkv_bias}


def _write_llama(spec: DecoderSpec) -> dict[str, Any]:
    biases = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
    return _without_partial_factor({**_write_llama_style(spec, "llama", "LlamaForCausalLM"), **biases})


def _write_qwen2(spec: DecoderSpec) -> dict[str, Any]:
    sliding: dict[str, Any] = {"use_sliding_window": spec.layer_types is not None}
    if spec.layer_types is not None:
        sliding |= {"sliding_window": spec.sliding_window, "layer_types": list(spec.layer_types)}
    return _without_partial_factor({**_write_llama_style(spec, "qwen2", "Qwen2ForCausalLM"), **sliding})


def _without_partial_factor(config: dict[str, Any]) -> dict[str, Any]:
    config["rope_parameters"] = {k: v for k, v in config["rope_parameters"].items() if k != "partial_rotary_factor"}
    return config


# ---- fields


def _rope(config: Config, where: str) -> dict[str, Any]:
    """Rope keys from ``rope_parameters`` (transformers 5) over ``rope_scaling`` (transformers 4)."""
    parts = [config.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(f"{where}: rope_scaling and rope_parameters must be objects, found {parts}.")
    rope = {**parts[0], **parts[1]}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ConfigError(f"{where}: rope_parameters differ by layer type, which no decoder of this family has.")
    return rope


def _need(config: Config, name: str, where: str) -> Any:
    if config.get(name) is None:
        raise ConfigError(f"{where}: no {name!r}, which a {config.get('model_type')!r} config must say. Add it.")
    return config[name]


def _agree(config: Config, names: tuple[str, ...], where: str) -> Any:
    """The value of the first of several names for one thing; they must not contradict each other."""
    given = {name: config[name] for name in names if config.get(name) is not None}
    if len(set(given.values())) > 1:
        raise ConfigError(f"{where}: contradictory {given}: these mean the same number. Correct one.")
    return next(iter(given.values())) if given else _need(config, names[0], where)


def head_dim(config: Config, where: str) -> int:
    """``hidden_size / num_attention_heads``, for configs that leave ``head_dim`` out."""
    hidden, heads = _need(config, "hidden_size", where), _need(config, "num_attention_heads", where)
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size={hidden} is not divisible by num_attention_heads={heads} and 'head_dim' is absent. "
            "Correct one of the two or add 'head_dim'."
        )
    return hidden // heads


def _number(value: Any, name: str, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{where}: {name}={value!r}: expected a number.")
    return float(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


_READERS: dict[Format, Callable[[Config, str, Generation | None], DecoderSpec]] = {
    "glmlike": _read_glmlike,
    "chatglm": _read_chatglm,
    "glm": _read_glm,
    "glm4": _read_glm,
    "llama": _read_llama,
    "qwen2": _read_qwen2,
}
_WRITERS: dict[Format, Callable[[DecoderSpec], dict[str, Any]]] = {
    "glmlike": _write_glmlike,
    "chatglm": _write_chatglm,
    "glm": _write_glm,
    "glm4": _write_glm4,
    "llama": _write_llama,
    "qwen2": _write_qwen2,
}
