"""Reading single fields of a config.json; every failure says which field, what it holds and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from glmlike.errors import ConfigError

Format = Literal[
    "glmlike",
    "glm-10b",
    "glm-130b",
    "chatglm-6b",
    "chatglm",
    "glm",
    "glm4",
    "llama",
    "qwen2",
    "meta",
]
Generation = Literal["chatglm2", "chatglm3", "glm4"]
Config = Mapping[str, Any]

FORMATS: tuple[Format, ...] = get_args(Format)


def rope_settings(config: Config, where: str) -> dict[str, Any]:
    """Rope keys from ``rope_parameters`` (transformers 5) over ``rope_scaling`` (transformers 4)."""
    parts = [config.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(f"{where}: rope_scaling and rope_parameters must be objects, found {parts}.")
    rope = {**parts[0], **parts[1]}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ConfigError(f"{where}: rope_parameters differ by layer type, which no decoder of this family has.")
    return rope


def need(config: Config, name: str, where: str) -> Any:
    """The value of a field that must be there."""
    if config.get(name) is None:
        raise ConfigError(f"{where}: no {name!r}, which a {config.get('model_type')!r} config must say. Add it.")
    return config[name]


def agree(config: Config, names: tuple[str, ...], where: str) -> Any:
    """The value of the first of several names for one thing; they must not contradict each other."""
    given = {name: config[name] for name in names if config.get(name) is not None}
    if len(set(given.values())) > 1:
        raise ConfigError(f"{where}: contradictory {given}: these mean the same number. Correct one.")
    return next(iter(given.values())) if given else need(config, names[0], where)


def head_dim(config: Config, where: str) -> int:
    """``hidden_size / num_attention_heads``, for configs that leave ``head_dim`` out."""
    hidden, heads = need(config, "hidden_size", where), need(config, "num_attention_heads", where)
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size={hidden} is not divisible by num_attention_heads={heads} and 'head_dim' is absent. "
            "Correct one of the two or add 'head_dim'."
        )
    return hidden // heads


def number(value: Any, name: str, where: str) -> float:
    """A value as a float, if it is a number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{where}: {name}={value!r}: expected a number.")
    return float(value)


def or_default(value: Any, default: Any) -> Any:
    """``default`` where the value is null or absent."""
    return default if value is None else value


def read_prefix(config: Config) -> dict[str, Any]:
    """The P-tuning prefix of a ChatGLM config; without ``pre_seq_len`` the original code looks at nothing else."""
    length = or_default(config.get("pre_seq_len"), 0)
    projection = or_default(config.get("prefix_projection"), False)
    return {"prefix_length": length, "prefix_projection": projection} if length else {}


def write_prefix(length: int, projection: bool) -> dict[str, Any]:
    """The fields that :func:`read_prefix` reads; none without a prefix."""
    return {"pre_seq_len": length, "prefix_projection": projection} if length else {}


INTEGER_METHOD = "glm_int"
"""``quant_method`` of a ``quantization_config`` for the integers of the pre-quantized ChatGLM releases."""


def integer_bits(config: Config, where: str) -> int | None:
    """The width of the integers that ``config`` says its matrices are stored in: 4 or 8; None: it says nothing.

    It says so with ``quantization_bit`` (published repositories) or with our ``quantization_config``. Whether the files
    hold integers is another question: ChatGLM-6B repositories were also published with floats and a
    ``quantization_bit``, which their code then applies after loading.

    Raises:
        ConfigError: another width, or ``quantization_bit`` beside the ``quantization_config`` of another method.
    """
    other = config.get("quantization_config") or {}
    ours = isinstance(other, Mapping) and other.get("quant_method") == INTEGER_METHOD
    bits = config.get("quantization_bit") or (other.get("bits") if ours else None)
    if not bits:
        return None
    if type(bits) is not int or bits not in (4, 8):
        raise ConfigError(
            f"{where}: quantization_bit={bits!r}: expected 4 or 8 (the published widths), or none where weights are "
            "floats. Correct config.json."
        )
    if other and not ours:
        raise ConfigError(
            f"{where}: quantization_bit={bits} beside a 'quantization_config': weights are quantized one way or the "
            "other. Remove the one that does not describe the files."
        )
    return bits
