"""Meta's original LLaMA folders: ``params.json``, arguments of its model.py (``ModelArgs``), says the decoder.

Facts that no field states, from that code: RMSNorm, SwiGLU, no biases, head size ``dim / n_heads``, the feed-forward
size as computed by its ``FeedForward``, and the scaling of LLaMA 3.1's angles (``apply_scaling``: factor 8, 1 and 4,
8192 positions; 3.2 was trained with factor 32). How long a text a model was trained for is in none of its files.
"""

from __future__ import annotations

from typing import Any

from glmlike.errors import ConfigError
from glmlike.hub_json.fields import Config, Generation, need, number, or_default
from glmlike.spec import DecoderSpec, freeze_rope

ARGUMENTS = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len"),
)
"""The fields of a params.json that are the decoder's; all are Meta's."""

# Fields of other models that are published in files of the same names.
_OTHERS = (
    "moe",
    "moe_args",
    "lora_args",
    "quantization_args",
    "head_dim",
    "hidden_dim",
    "sliding_window",
    "vision_encoder",
)
_SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FEED_FORWARDS = [
    (multiplier, multiple) for multiplier in (None, 1.3, 1.0, 1.5, 1.4, 1.2) for multiple in (256, 1024, 4096)
]

# By the rows of the published vocabularies: LLaMA 1 and 2, Code Llama; LLaMA 3 (its end of text, of message, of turn).
_TOKENS: dict[int, dict[str, Any]] = {
    32_000: {"bos_token_id": 1, "eos_token_id": 2},
    32_016: {"bos_token_id": 1, "eos_token_id": 2},
    128_256: {"bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009]},
}


def is_meta(config: Config) -> bool:
    """Whether a config is the ``params.json`` of Meta's LLaMA."""
    return {"dim", "n_layers", "n_heads"} <= config.keys() and config.get("model_type") is None


def read(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """The decoder of a ``params.json``.

    ``vocab_size`` is to be one (published files have -1: it follows from the embedding); ``tie_word_embeddings``, which
    they do not say, follows from the tensors.
    """
    others = [name for name in config if (name in _OTHERS or name.startswith("vision_")) and config[name] is not None]
    if others:
        raise ConfigError(f"{where}: has {others[0]!r}, which Meta's LLaMA text models do not. This is another model.")
    dim, layers, heads = (_whole(config, name, where) for name in ("dim", "n_layers", "n_heads"))
    if dim % heads:
        raise ConfigError(f"{where}: dim={dim} is not divisible by n_heads={heads}. Correct one.")
    tied = or_default(config.get("tie_word_embeddings"), False)
    theta = number(or_default(config.get("rope_theta"), 10_000.0), "rope_theta", where)
    scaled = or_default(config.get("use_scaled_rope"), False)
    return DecoderSpec(
        vocab_size=_whole(config, "vocab_size", where),
        hidden_size=dim,
        intermediate_size=_feed_forward(config, dim, where),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if config.get("n_kv_heads") is None else _whole(config, "n_kv_heads", where),
        head_dim=dim // heads,
        max_position_embeddings=or_default(config.get("max_seq_len"), _positions(config)),
        norm_eps=or_default(config.get("norm_eps"), 1e-5),
        rope_theta=theta,
        rope_scaling=freeze_rope(_scaling(config, where) if scaled else {"rope_type": "default"}),
        rotary_pairing="halves",
        partial_rotary_factor=1.0,
        qkv_bias=False,
        tie_word_embeddings=tied,
    )


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The fields that :func:`read` reads; those that published files leave out only where they are needed."""
    multiplier, multiple = _sizes_for(spec.hidden_size, spec.intermediate_size)
    found: dict[str, Any] = {
        "dim": spec.hidden_size,
        "n_layers": spec.num_hidden_layers,
        "n_heads": spec.num_attention_heads,
        "n_kv_heads": spec.num_key_value_heads,
        "vocab_size": spec.vocab_size,
        "multiple_of": multiple,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "use_scaled_rope": spec.rope_type == "llama3",
        "tie_word_embeddings": spec.tie_word_embeddings,
    }
    found = {name: value for name, value in found.items() if value is not None}
    if spec.max_position_embeddings != _positions(found):
        found["max_seq_len"] = spec.max_position_embeddings
    if found["use_scaled_rope"] and dict(spec.rope_scaling)["factor"] != _factor(found):
        found["rope_scaling_factor"] = dict(spec.rope_scaling)["factor"]
    return found


def obstacles(spec: DecoderSpec) -> list[str]:
    """What of ``spec`` no ``params.json`` can say, beyond single fields."""
    found = []
    if spec.head_dim * spec.num_attention_heads != spec.hidden_size:
        found.append(
            f"head_dim={spec.head_dim} with {spec.num_attention_heads} heads of hidden_size={spec.hidden_size}"
        )
    scaling = {name: value for name, value in spec.rope_scaling if name != "factor"}
    if spec.rope_type != "default" and scaling != _SCALING:
        found.append(f"rope_scaling={dict(spec.rope_scaling)}")
    return found


def token_ids(config: Config) -> dict[str, Any]:
    """The ids of the published vocabularies, by their number of rows."""
    return dict(_TOKENS.get(config.get("vocab_size", 0), {}))


def _whole(config: Config, name: str, where: str) -> int:
    value = need(config, name, where)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{where}: {name}={value!r:.40}: expected a whole number of at least 1.")
    return value


def _feed_forward(config: Config, dim: int, where: str) -> int:
    multiple = 256 if config.get("multiple_of") is None else _whole(config, "multiple_of", where)
    multiplier = config.get("ffn_dim_multiplier")
    if multiplier is not None and not 0 < number(multiplier, "ffn_dim_multiplier", where) < 1e6:
        raise ConfigError(f"{where}: ffn_dim_multiplier={multiplier!r:.40}: expected a positive number.")
    if max(dim, multiple) > 2**40:
        raise ConfigError(f"{where}: dim={dim:.3g}, multiple_of={multiple:.3g}: larger than anything published.")
    return _rounded(dim, multiplier, multiple)


def _rounded(dim: int, multiplier: float | None, multiple: int) -> int:
    """``FeedForward`` of the published model.py: two thirds of four times ``dim``, times a factor, rounded up."""
    inner = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        inner = int(multiplier * inner)
    return multiple * ((inner + multiple - 1) // multiple)


def _sizes_for(dim: int, inner: int) -> tuple[float | None, int]:
    """A multiplier and a multiple that give ``inner``: those of a published model where one does."""
    base = int(2 * (4 * dim) / 3)
    own = (None, inner) if inner >= base else (inner / base, inner)
    safe = ((inner + 0.5) / base, inner)  # where inner / base * base is just below inner
    return next((sizes for sizes in (*_FEED_FORWARDS, own, safe) if _rounded(dim, *sizes) == inner), own)


def _positions(config: Config) -> int:
    """The longest text of the published model with these fields (LLaMA 3.1 and later, 3, Code Llama, 1, 2)."""
    theta = or_default(config.get("rope_theta"), 10_000.0)
    if config.get("use_scaled_rope"):
        return 131_072
    if theta != 10_000.0:
        return 16_384 if theta == 1_000_000.0 else 8192
    return 2048 if config.get("norm_eps") == 1e-6 else 4096


def _factor(config: Config) -> float:
    return 32.0 if config.get("tie_word_embeddings") else 8.0


def _scaling(config: Config, where: str) -> dict[str, Any]:
    given = config.get("rope_scaling_factor")
    return {**_SCALING, "factor": _factor(config) if given is None else number(given, "rope_scaling_factor", where)}
