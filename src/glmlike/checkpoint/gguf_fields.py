"""A DecoderSpec as GGUF metadata, and back: which llama.cpp architecture it is, and its key-value pairs.

Keys and defaults are those of llama.cpp's loader (src/llama-model.cpp, ``load_hparams``; src/models/*.cpp). GGUF holds
floats as float32; a float read back is the shortest decimal that float32 tells from its neighbours.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

from glmlike.checkpoint.formats.llama_cpp import ARCHITECTURES, LLAMA3_FACTORS, Architecture
from glmlike.errors import CannotExpressError, CheckpointError
from glmlike.spec import DecoderSpec, RopeScaling, freeze_rope

Fields = dict[str, Any]
"""Metadata by key: int for uint32, float for float32, str for string."""

ROPE_SCALING = "glmlike.rope_scaling"
"""Our own key: a spec's ``rope_scaling`` as JSON, since llama.cpp's keys say only what follows from it."""

_INSTEAD = "Convert it to another format, or run it with transformers through this package."

# What llama.cpp's four architectures have in common: (field, value, why another value cannot be run there).
_FIXED: tuple[tuple[str, Any, str], ...] = (
    ("attention_mask", "causal", "llama.cpp has no mask that lets a prefix see itself"),
    ("positions", "rotary", "llama.cpp has no second position (the place in a piece) and no block positions"),
    ("norm", "rms", "the architectures it would need have RMSNorm"),
    ("feed_forward", "swiglu", "the architectures it would need have SwiGLU"),
    ("rotary_precision", "float32", "llama.cpp computes angles in float32"),
    (
        "prefix_length",
        0,
        "GGUF has no place for a P-tuning prefix; set it to 0 to leave it out",
    ),
)


def architecture_of(spec: DecoderSpec) -> Architecture:
    """The llama.cpp architecture that computes exactly what ``spec`` says.

    Raises:
        CannotExpressError: there is none; the message says why, and what can be done.
    """
    reasons = [f"{name}={getattr(spec, name)!r} ({why})" for name, value, why in _FIXED if getattr(spec, name) != value]
    if reasons:
        raise CannotExpressError(f"GGUF (llama.cpp) cannot express {'; '.join(reasons)}. {_INSTEAD}")
    architecture = _candidate(spec)
    reasons = _obstacles(spec, architecture)
    if reasons:
        raise CannotExpressError(
            f"GGUF (llama.cpp) cannot express {'; '.join(reasons)} (architecture {architecture!r}). {_INSTEAD}"
        )
    return architecture


def can_be_gguf(spec: DecoderSpec) -> bool:
    """Whether llama.cpp has an architecture that computes exactly what ``spec`` says."""
    try:
        architecture_of(spec)
    except CannotExpressError:
        return False
    return True


def _candidate(spec: DecoderSpec) -> Architecture:
    if spec.rotary_pairing == "interleaved":
        return "glm4" if spec.residual == "sandwich" else "chatglm"
    only_qkv = spec.qkv_bias and not spec.output_bias and not spec.mlp_bias
    square = spec.query_size == spec.hidden_size
    return "qwen2" if only_qkv and square and spec.rope_type != "llama3" else "llama"


def _obstacles(spec: DecoderSpec, architecture: Architecture) -> list[str]:
    found = []
    halves = spec.rotary_pairing == "halves"
    if halves and spec.residual != "pre":
        found.append(f"residual={spec.residual!r} with rotary_pairing='halves'")
    if halves and spec.partial_rotary_factor != 1:
        found.append(f"partial_rotary_factor={spec.partial_rotary_factor} with rotary_pairing='halves'")
    if architecture in ("chatglm", "glm4"):
        found += [f"{name}=True" for name in ("output_bias", "mlp_bias") if getattr(spec, name)]
    if architecture == "chatglm" and spec.query_size != spec.hidden_size:
        found.append(f"{spec.num_attention_heads} heads of {spec.head_dim} beside hidden_size={spec.hidden_size}")
    if "sliding_attention" in (spec.layer_types or ()):
        found.append("layers with a sliding window (these architectures attend to everything)")
    if spec.max_position_embeddings >= 2**32:
        found.append(f"max_position_embeddings={spec.max_position_embeddings} (a 32-bit field)")
    return found + _rope_obstacles(spec, architecture)


def _rope_obstacles(spec: DecoderSpec, architecture: Architecture) -> list[str]:
    scaling = dict(spec.rope_scaling)
    if spec.rope_type == "llama3":
        return [] if architecture == "llama" else ["rope_type='llama3' outside LLaMA"]
    if spec.rope_type in ("default", "linear"):
        return []
    if spec.rope_type != "yarn":
        return [f"rope_type={spec.rope_type!r}"]
    # llama.cpp's loader reads neither of these for our architectures; its own values are transformers' defaults.
    fixed = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
    return [f"yarn with {k}={scaling[k]!r}" for k, v in fixed.items() if scaling.get(k) not in (None, v)]


def fields_of(spec: DecoderSpec, architecture: Architecture) -> Fields:
    """Every pair that llama.cpp's loader reads for this architecture, and our ``ROPE_SCALING`` where rope is scaled."""
    pairs: Fields = {
        "vocab_size": spec.vocab_size,
        "block_count": spec.num_hidden_layers,
        "context_length": spec.max_position_embeddings,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_attention_heads,
        "attention.head_count_kv": spec.num_key_value_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "rope.dimension_count": spec.rotary_dim,
        "rope.freq_base": float(spec.rope_theta),
        **_scaling_pairs(spec),
    }
    named: Fields = {f"{architecture}.{name}": value for name, value in pairs.items()}
    if spec.rope_type != "default":
        named[ROPE_SCALING] = json.dumps(dict(spec.rope_scaling))
    return named


def _scaling_pairs(spec: DecoderSpec) -> Fields:
    scaling: dict[str, Any] = dict(spec.rope_scaling)
    if spec.rope_type not in ("linear", "yarn"):
        return {}
    factor = float(scaling["factor"])
    pairs: Fields = {"rope.scaling.type": spec.rope_type, "rope.scaling.factor": factor}
    if spec.rope_type == "yarn":
        original = scaling.get("original_max_position_embeddings") or spec.max_position_embeddings
        pairs["rope.scaling.original_context_length"] = int(original)
        if scaling.get("attention_factor") is not None:
            pairs["rope.scaling.attn_factor"] = float(scaling["attention_factor"]) / _yarn_attention(factor)
    return pairs


def _yarn_attention(factor: float) -> float:
    """The factor of queries and keys that llama.cpp and transformers both take from YaRN's paper."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1


def llama3_factors(spec: DecoderSpec) -> list[float]:
    """What each rotary frequency is divided by under LLaMA 3.1's rope settings (transformers: modeling_rope_utils)."""
    scaling: dict[str, Any] = dict(spec.rope_scaling)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])

    def one(pair: int) -> float:
        wavelength: float = 2 * math.pi * spec.rope_theta ** (2 * pair / spec.rotary_dim)
        if wavelength < original / high:
            return 1.0
        if wavelength > original / low:
            return factor
        smooth = (original / wavelength - low) / (high - low)
        return float(1 / ((1 - smooth) / factor + smooth))

    return [one(pair) for pair in range(spec.rotary_dim // 2)]


def read_spec(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Sequence[float] | None, where: str
) -> tuple[Architecture, DecoderSpec]:
    """The architecture and decoder that a GGUF's metadata and tensor names say; ``factors``: its ``rope_freqs``.

    Raises:
        CheckpointError: another architecture, a key that is missing or that says what no decoder of ours has.
        SpecError: the keys are read but describe an impossible decoder.
    """
    name = fields.get("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{where}: general.architecture={name!r}: expected one of {', '.join(ARCHITECTURES)}.")
    architecture = cast(Architecture, name)
    pairs = {k.removeprefix(f"{name}."): v for k, v in fields.items() if k.startswith(f"{name}.")}
    _refuse_unread(pairs, where)
    heads, hidden = _whole(pairs, "attention.head_count", where), _whole(pairs, "embedding_length", where)
    head_dim = _whole(pairs, "attention.key_length", where, hidden // heads)
    if _whole(pairs, "attention.value_length", where, head_dim) != head_dim:
        raise CheckpointError(f"{where}: keys and values of different length, which no decoder of this package has.")
    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{where}: holds no 'token_embd.weight'. The download is incomplete; download it again.")
    context = _whole(pairs, "context_length", where)
    partial = DecoderSpec(
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=hidden,
        intermediate_size=_whole(pairs, "feed_forward_length", where),
        num_hidden_layers=_whole(pairs, "block_count", where),
        num_attention_heads=heads,
        num_key_value_heads=_whole(pairs, "attention.head_count_kv", where, heads),
        head_dim=head_dim,
        max_position_embeddings=context,
        norm_eps=_decimal(pairs, "attention.layer_norm_rms_epsilon", where),
        residual="sandwich" if architecture == "glm4" else "pre",
        rotary_pairing="interleaved" if architecture in ("chatglm", "glm4") else "halves",
        partial_rotary_factor=_share(_whole(pairs, "rope.dimension_count", where, head_dim), head_dim),
        rope_theta=_decimal(pairs, "rope.freq_base", where, 10_000.0),
        qkv_bias=any(f"blk.0.attn_{part}.bias" in shapes for part in ("qkv", "q")),
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_up.bias" in shapes,
        tie_word_embeddings="output.weight" not in shapes,
    )
    return architecture, partial.replace(rope_scaling=_read_scaling(fields, pairs, partial, factors, where))


def _refuse_unread(pairs: Mapping[str, Any], where: str) -> None:
    """Raise for keys that would change what llama.cpp computes and that no decoder of ours has."""
    strange = ("expert_count", "attention.sliding_window", "rope.dimension_sections", "nextn_predict_layers")
    for name in strange:
        if pairs.get(name):
            raise CheckpointError(f"{where}: has {name}={pairs[name]!r}, which no decoder of this package has.")


def _read_scaling(
    fields: Mapping[str, Any],
    pairs: Mapping[str, Any],
    spec: DecoderSpec,
    factors: Sequence[float] | None,
    where: str,
) -> RopeScaling:
    """The rope settings: ours where they say what the other keys and ``rope_freqs`` say, else what those say."""
    candidates = []
    if isinstance(fields.get(ROPE_SCALING), str):
        try:
            candidates.append(freeze_rope(json.loads(fields[ROPE_SCALING])))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise CheckpointError(f"{where}: {ROPE_SCALING} is not a JSON object. Write the file again.") from None
    candidates.append(_said_by_llama_cpp(pairs, factors, where))
    said = {key: value for key, value in pairs.items() if key.startswith("rope.scaling.") and value != "none"}
    for scaling in candidates:
        trial = spec.replace(rope_scaling=scaling)
        same_pairs = {k: _rounded(v) for k, v in _scaling_pairs(trial).items()} == {
            k: _rounded(v) for k, v in said.items()
        }
        if same_pairs and _same_factors(trial, factors):
            return scaling
    raise CheckpointError(
        f"{where}: rope settings {said} with{'' if factors else 'out'} {LLAMA3_FACTORS!r}: none that this package "
        f"knows. Convert the original checkpoint instead."
    )


def _said_by_llama_cpp(pairs: Mapping[str, Any], factors: Sequence[float] | None, where: str) -> RopeScaling:
    kind = pairs.get("rope.scaling.type", "linear")
    if factors:  # every published LLaMA 3.x has these; the factor is that of its lowest frequencies
        original = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return freeze_rope({"rope_type": "llama3", "factor": float(round(max(factors), 3)), **original})
    if kind == "none" or "rope.scaling.factor" not in pairs:
        return freeze_rope({"rope_type": "default"})
    factor = _decimal(pairs, "rope.scaling.factor", where)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and "rope.scaling.original_context_length" in pairs:
        scaling["original_max_position_embeddings"] = pairs["rope.scaling.original_context_length"]
    if kind == "yarn" and "rope.scaling.attn_factor" in pairs:
        scaling["attention_factor"] = _decimal(pairs, "rope.scaling.attn_factor", where) * _yarn_attention(factor)
    return freeze_rope(scaling)


def _same_factors(spec: DecoderSpec, factors: Sequence[float] | None) -> bool:
    if spec.rope_type != "llama3" or factors is None:
        return factors is None and spec.rope_type != "llama3"
    try:
        expected = llama3_factors(spec)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False
    return len(expected) == len(factors) and all(
        math.isclose(a, b, rel_tol=1e-4) for a, b in zip(expected, factors, strict=True)
    )


def _rounded(value: Any) -> Any:
    return struct.pack("<f", value) if isinstance(value, float) else value


def _whole(pairs: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = pairs.get(name, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{where}: {name}={value!r}: expected one whole number of at least 1 for all layers. Download the file "
            "again, or convert the original checkpoint."
        )
    return value


def _decimal(pairs: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    """The shortest decimal of a float32: 1e-5, not 9.999999747378752e-06."""
    value = pairs.get(name, default)
    if not isinstance(value, float):
        raise CheckpointError(f"{where}: {name}={value!r}: expected a number. Download the file again.")
    exact = struct.pack("<f", value)
    shortest = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((short for short in shortest if struct.pack("<f", short) == exact), value)


def _share(rotated: int, head_dim: int) -> float:
    """The share of ``head_dim`` that is ``rotated`` features, not a feature less where the division rounds down."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 2.0)
