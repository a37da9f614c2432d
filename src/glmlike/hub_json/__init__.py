"""How each published ``config.json`` says a DecoderSpec, and back.

One reader and one writer for each format; what a format cannot say is a table (``_EXPRESSIBLE``). Standard library
only: configuration.py (Hub configs) and the checkpoint room (conversion) read the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from glmlike.errors import CannotExpressError, ConfigError, SpecError
from glmlike.hub_json import chatglm, early, llama_style, meta, sat
from glmlike.hub_json.chatglm import CHATGLM_FIELDS, rope_ratio_is_ambiguous
from glmlike.hub_json.early import dropped_rows
from glmlike.hub_json.fields import FORMATS, INTEGER_METHOD, Config, Format, Generation, head_dim, integer_bits
from glmlike.hub_json.llama_style import read_native, rotary_defaults
from glmlike.hub_json.sat import is_glm_130b
from glmlike.spec import DecoderSpec

__all__ = [
    "CARRIED",
    "CHATGLM_FIELDS",
    "FORMATS",
    "FUSED_FORMATS",
    "INTEGER_METHOD",
    "Config",
    "Format",
    "Generation",
    "cannot_express",
    "carried_fields",
    "detect",
    "dropped_rows",
    "head_dim",
    "integer_bits",
    "is_glm_130b",
    "is_launch_arguments",
    "read_native",
    "read_spec",
    "rope_ratio_is_ambiguous",
    "rotary_defaults",
    "token_ids",
    "write_config",
]

FUSED_FORMATS: frozenset[Format] = frozenset({"glm-10b", "glm-130b", "chatglm-6b", "chatglm", "glm", "glm4"})
"""Formats whose files hold several native matrices as one: these cannot be read by tensor-parallel or FSDP loading."""

CARRIED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "initializer_range", "use_cache", "attention_dropout"),
    *("mask_token_id", "smask_token_id", "gmask_token_id", "sop_token_id"),
    *("prefix_dropout", "id2label", "label2id", "problem_type", "classifier_dropout", "quantization_config"),
)
"""Config fields that are not the decoder's shape and travel unchanged between formats (``torch_dtype``: ``dtype``)."""


def detect(config: Config, where: str = "config.json") -> Format:
    """The one format whose fields ``config`` has; folder and repository names play no part.

    Raises:
        ConfigError: no format fits, or the config is of a generation that this version does not read.
    """
    model_type = config.get("model_type")
    if model_type == "chatglm":
        return chatglm.detect(config, where)
    if model_type == "glm" and early.is_glm_10b(config):
        return "glm-10b"
    if sat.is_glm_130b(config):
        return "glm-130b"
    if meta.is_meta(config):
        return "meta"
    if model_type in FORMATS:
        return cast(Format, model_type)
    known = ", ".join(FORMATS)
    raise ConfigError(f"{where}: model_type={model_type!r}; known formats: {known}. Pass a folder of one of these.")


def is_launch_arguments(config: Config) -> bool:
    """Whether ``config`` says a decoder without a ``model_type``: the arguments beside rank files."""
    return sat.is_glm_130b(config) or meta.is_meta(config)


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
    if fmt in ("chatglm-6b", "glm-10b", "glm-130b"):
        found += early.obstacles(spec)
    if fmt == "meta":
        found += meta.obstacles(spec)
    if fmt == "chatglm":
        found += chatglm.rope_obstacles(spec)
    return found


def token_ids(config: Config) -> dict[str, Any]:
    """The ids of blanks and of the start of a piece under our names, where the config or its vocabulary says them."""
    if meta.is_meta(config):
        return meta.token_ids(config)
    return sat.token_ids(config) if sat.is_glm_130b(config) else early.token_ids(config)


def carried_fields(config: Config) -> dict[str, Any]:
    """The fields of ``config`` that travel unchanged between formats (see ``CARRIED``)."""
    config = {**config, **token_ids(config)}
    renamed = {"dtype" if key == "torch_dtype" else key: value for key, value in config.items()}
    return {key: renamed[key] for key in CARRIED if renamed.get(key) is not None}


# What the causal formats have no field for, since none of their models differs in it.
_CAUSAL: dict[str, tuple[Any, ...]] = {
    "norm": ("rms",),
    "feed_forward": ("swiglu",),
    "positions": ("rotary",),
    "rotary_precision": ("float32",),
    "attention_mask": ("causal",),
}
_NO_PREFIX: dict[str, tuple[Any, ...]] = {"prefix_length": (0,)}  # a P-tuning v2 prefix: ChatGLM repositories only
_NO_EXTRA_BIAS: dict[str, tuple[Any, ...]] = {**_CAUSAL, "output_bias": (False,), "mlp_bias": (False,)}
_GLM_ROTARY: dict[str, tuple[Any, ...]] = {"rotary_pairing": ("interleaved",), "layer_types": (None,)}
_HALVES: dict[str, tuple[Any, ...]] = {
    "rotary_pairing": ("halves",),
    "partial_rotary_factor": (1.0,),
    "residual": ("pre",),
}
_EXPRESSIBLE: dict[Format, dict[str, tuple[Any, ...]]] = {
    "glmlike": {},
    "glm-10b": {
        **{name: (value,) for name, value in early.GLM_10B.items()},
        "residual": ("pre",),
        "tie_word_embeddings": (True,),
        "norm_eps": (1e-5,),
        "layer_types": (None,),
        **_NO_PREFIX,
    },
    "glm-130b": {
        **{name: (value,) for name, value in sat.GLM_130B.items()},
        "rope_theta": (10_000.0,),
        "layer_types": (None,),
    },
    "chatglm-6b": {
        **{name: (value,) for name, value in early.CHATGLM_6B.items()},
        "tie_word_embeddings": (False,),
        "rope_theta": (10_000.0,),
        "layer_types": (None,),
    },
    "chatglm": {"residual": ("pre",), "partial_rotary_factor": (0.5,), **_GLM_ROTARY, **_NO_EXTRA_BIAS},
    "glm": {"residual": ("pre",), **_GLM_ROTARY, **_NO_EXTRA_BIAS, **_NO_PREFIX},
    "glm4": {"residual": ("sandwich",), **_GLM_ROTARY, **_NO_EXTRA_BIAS, **_NO_PREFIX},
    "llama": {"layer_types": (None,), **_CAUSAL, **_HALVES, **_NO_PREFIX},
    "qwen2": {"qkv_bias": (True,), **_HALVES, **_NO_EXTRA_BIAS, **_NO_PREFIX},
    "meta": {"qkv_bias": (False,), "layer_types": (None,), **_HALVES, **_NO_EXTRA_BIAS, **_NO_PREFIX},
}

_READERS: dict[Format, Callable[[Config, str, Generation | None], DecoderSpec]] = {
    "glmlike": llama_style.read_glmlike,
    "glm-10b": early.read_glm_10b,
    "glm-130b": sat.read,
    "chatglm-6b": early.read_chatglm_6b,
    "chatglm": chatglm.read,
    "glm": llama_style.read_glm,
    "glm4": llama_style.read_glm,
    "llama": llama_style.read_llama,
    "qwen2": llama_style.read_qwen2,
    "meta": meta.read,
}
_WRITERS: dict[Format, Callable[[DecoderSpec], dict[str, Any]]] = {
    "glmlike": llama_style.write_glmlike,
    "glm-10b": early.write_glm_10b,
    "glm-130b": sat.write,
    "chatglm-6b": early.write_chatglm_6b,
    "chatglm": chatglm.write,
    "glm": llama_style.write_glm,
    "glm4": llama_style.write_glm4,
    "llama": llama_style.write_llama,
    "qwen2": llama_style.write_qwen2,
    "meta": meta.write,
}
