"""DecoderSpec: everything that distinguishes one decoder of the GLM family from another.

A spec holds numbers and closed choices and nothing else: no tensors, no names, no files. The model is built from it,
the Hub config is its JSON face, every format table takes its sizes from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from glmlike.errors import SpecError

Norm = Literal["rms", "layer"]
Residual = Literal["pre", "sandwich", "scaled"]
FeedForward = Literal["swiglu", "geglu", "gelu_tanh", "gelu_erf"]
Positions = Literal["rotary", "rotary_2d", "learned_2d"]
RotaryPairing = Literal["interleaved", "halves"]
RotaryPrecision = Literal["float32", "float16"]
AttentionMask = Literal["causal", "prefix"]
LayerType = Literal["full_attention", "sliding_attention"]
RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]

RopeValue = str | int | float | bool | tuple[float, ...] | None
RopeScaling = tuple[tuple[str, RopeValue], ...]

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "residual": get_args(Residual),
    "feed_forward": get_args(FeedForward),
    "positions": get_args(Positions),
    "rotary_pairing": get_args(RotaryPairing),
    "rotary_precision": get_args(RotaryPrecision),
    "attention_mask": get_args(AttentionMask),
}

# (norm, residual, feed_forward, positions, attention_mask) of everything published, and of our own infilling recipe.
_KINDS: frozenset[tuple[str, ...]] = frozenset(
    {
        ("rms", "pre", "swiglu", "rotary", "causal"),  # ChatGLM2/3, GLM-4-9B, GLM-Edge, LLaMA 3, Qwen2.5
        ("rms", "sandwich", "swiglu", "rotary", "causal"),  # GLM-4-0414, GLM-Z1
        ("rms", "pre", "swiglu", "rotary_2d", "prefix"),  # the infilling recipe for new models
        ("layer", "pre", "gelu_erf", "learned_2d", "prefix"),  # GLM-10B line, as its Hub code computes it
        ("layer", "pre", "gelu_tanh", "learned_2d", "prefix"),  # GLM-10B line, as its training code does
        ("layer", "scaled", "gelu_tanh", "rotary_2d", "prefix"),  # ChatGLM-6B
        ("layer", "scaled", "geglu", "rotary", "prefix"),  # GLM-130B
    }
)

# Of those, the ones that the original code gives a P-tuning v2 prefix.
_PREFIX_KINDS: frozenset[tuple[str, ...]] = frozenset(
    {
        ("rms", "pre", "swiglu", "rotary", "causal"),  # ChatGLM2, ChatGLM3
        ("layer", "scaled", "gelu_tanh", "rotary_2d", "prefix"),  # ChatGLM-6B
    }
)

# The largest value of each size that is believed. The family's largest are 150528 tokens, 12288 wide, 70 layers; the
# limits leave two orders of magnitude and exist so that a damaged or hostile config.json fails before it allocates.
_LIMITS: dict[str, int] = {
    "vocab_size": 16_777_216,
    "hidden_size": 1_048_576,
    "intermediate_size": 4_194_304,
    "num_hidden_layers": 4096,
    "num_attention_heads": 16_384,
    "num_key_value_heads": 16_384,
    "head_dim": 65_536,
    "max_position_embeddings": 2**40,
}
_MAX_PREFIX_LENGTH = 1_048_576
_MAX_PARAMETERS = 2 * 10**13
_NUMBERS = ("norm_eps", "partial_rotary_factor", "rope_theta")
_SWITCHES = ("qkv_bias", "output_bias", "mlp_bias", "tie_word_embeddings", "prefix_projection")


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """One decoder of the family: sizes, closed choices, and which projections carry a bias.

    Every layer is two residual branches ``h = norm(x); x = skip(x, h) + post(f(h))``: ``residual="pre"`` adds to ``x``;
    ``"sandwich"`` too, with an RMSNorm on the branch (GLM-4-0414, GLM-Z1); ``"scaled"`` adds to ``residual_scale * h``,
    the normed input (ChatGLM-6B, GLM-130B; DeepNorm, arXiv 2203.00555).

    ``attention_mask="prefix"``: tokens before the first start-of-piece token see each other, the rest is causal.
    ``positions``: ``rotary`` by one position; ``rotary_2d``, half of each head by position and half by the place in the
    piece (ChatGLM-6B); ``learned_2d``, two tables of ``max_position_embeddings + 1`` rows added to the embedding
    (GLM-10B). ``rotary_precision="float16"`` rounds the inverse frequencies to float16 first, as those two models did.

    Sizes are counts (tokens, features, layers, heads). ``partial_rotary_factor`` is the share of each head that is
    rotated, from its first feature on. ``rotary_pairing`` says which two features form one rotating pair: neighbours
    ``(2i, 2i+1)`` (``interleaved``: the GLM line) or ``(i, i + rotary_dim/2)`` (``halves``: LLaMA, Qwen).
    ``rope_scaling`` holds transformers' rope keys beyond theta and the partial factor (``rope_type``, ``factor``, …).

    ``prefix_length`` is the number of keys and values that a P-tuning v2 prefix (arXiv 2110.07602) puts in front of
    every layer's own, 0 for none; ``prefix_projection``: they are not stored but computed, by two matrices from rows of
    ``prefix_row_size``.

    Raises:
        SpecError: a size is missing, not positive, not divisible or absurd; a choice is not one of the closed list;
            or the combination is one that no published checkpoint uses.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 131_072
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    residual: Residual = "pre"
    residual_scale: float | None = None
    feed_forward: FeedForward = "swiglu"
    positions: Positions = "rotary"
    rotary_pairing: RotaryPairing = "interleaved"
    rotary_precision: RotaryPrecision = "float32"
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = (("rope_type", "default"),)
    attention_mask: AttentionMask = "causal"
    layer_types: tuple[LayerType, ...] | None = None
    sliding_window: int | None = None
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    prefix_length: int = 0
    prefix_projection: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", freeze_rope(self.rope_scaling))
        if self.layer_types is not None:
            object.__setattr__(self, "layer_types", tuple(self.layer_types))
        _check_sizes(self)
        _check_prefix_length(self)
        _check_types(self)
        _check_choices(self)
        _check_heads(self)
        _check_rotary(self)
        _check_sliding(self)
        _check_prefix(self)

    @property
    def query_size(self) -> int:
        """Rows of ``q_proj``: query heads x head dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Rows of ``k_proj`` and of ``v_proj``: key-value heads x head dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Features of each head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def prefix_size(self) -> int:
        """Numbers of one prefix token: a key and a value of every key-value head of every layer."""
        return 2 * self.num_hidden_layers * self.key_value_size

    @property
    def prefix_row_size(self) -> int:
        """Width of a stored prefix row: ``prefix_size``, but ``hidden_size`` where ChatGLM-6B projects it.

        ChatGLM2 projects rows that are as wide as the result (both: modeling_chatglm.py, ``PrefixEncoder``).
        """
        projected_like_chatglm_6b = self.prefix_projection and self.positions == "rotary_2d"
        return self.hidden_size if projected_like_chatglm_6b else self.prefix_size

    @property
    def rope_type(self) -> str:
        """transformers' name of the rope scaling: default, linear, dynamic, yarn, longrope or llama3."""
        return str(dict(self.rope_scaling)["rope_type"])

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The ``rope_parameters`` dict transformers keeps in a config (lists where a spec holds tuples)."""
        scaling = {k: list(v) if isinstance(v, tuple) else v for k, v in self.rope_scaling}
        return {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
            **scaling,
        }

    @property
    def num_parameters(self) -> int:
        """Parameters of the language model, a tied head counted once."""
        return _num_parameters(self)

    def replace(self, **changes: Any) -> DecoderSpec:
        """This spec with some fields changed, validated again."""
        return replace(self, **changes)

    def differences(self, other: DecoderSpec) -> dict[str, tuple[Any, Any]]:
        """The fields in which two specs differ: ``{field: (ours, theirs)}``."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def freeze_rope(rope: Mapping[str, Any] | RopeScaling) -> RopeScaling:
    """A rope dict as sorted pairs, lists as tuples, with a ``rope_type`` and without the keys a spec has fields for."""
    items = dict(rope)
    legacy_type = items.pop("type", None)
    items.setdefault("rope_type", legacy_type or "default")
    for own_field in ("rope_theta", "partial_rotary_factor"):
        items.pop(own_field, None)
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in items.items()))


def feed_forward_size(hidden_size: int, multiple_of: int = 64) -> int:
    """The GLM-4 report's feed-forward width: 10/3 x hidden, rounded up to a multiple (GLM-4-9B: 4096 -> 13696)."""
    return -(-hidden_size * 10 // (3 * multiple_of)) * multiple_of


def _check_sizes(spec: DecoderSpec) -> None:
    for name, limit in _LIMITS.items():
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SpecError(f"{name}={value!r}: expected a whole number of at least 1. Correct it in config.json.")
        if value > limit:
            raise SpecError(
                f"{name}={value}: larger than anything this decoder is for (limit {limit}). "
                "The config is damaged or not a decoder's; nothing was allocated."
            )


def _check_types(spec: DecoderSpec) -> None:
    for name in _NUMBERS:
        value = getattr(spec, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise SpecError(f"{name}={value!r}: expected a number.")
    for name in _SWITCHES:
        value = getattr(spec, name)
        if not isinstance(value, bool):
            raise SpecError(f"{name}={value!r}: expected true or false.")
    if not 0 < spec.norm_eps < float("inf"):
        raise SpecError(f"norm_eps={spec.norm_eps!r}: expected a small positive number such as 1e-5.")
    if spec.num_parameters > _MAX_PARAMETERS:
        raise SpecError(
            f"this spec describes {spec.num_parameters:.3g} parameters (limit {_MAX_PARAMETERS:.0g}): "
            "one of its sizes is wrong; nothing was allocated."
        )


def _check_choices(spec: DecoderSpec) -> None:
    for name, choices in _CHOICES.items():
        value = getattr(spec, name)
        if value not in choices:
            raise SpecError(f"{name}={value!r}: expected one of {', '.join(choices)}.")
    kind = (spec.norm, spec.residual, spec.feed_forward, spec.positions, spec.attention_mask)
    if kind not in _KINDS:
        raise SpecError(
            f"norm, residual, feed_forward, positions, attention_mask = {', '.join(kind)}: no published checkpoint has "
            f"this combination and no test covers it. Known: {'; '.join(sorted(map(', '.join, _KINDS)))}."
        )
    if spec.norm == "layer" and not (spec.qkv_bias and spec.output_bias and spec.mlp_bias):
        raise SpecError(
            "norm='layer' without a bias on every projection: no published checkpoint has this combination and no test "
            "covers it. Set qkv_bias, output_bias and mlp_bias."
        )
    _check_residual_scale(spec)
    if spec.output_bias and not spec.qkv_bias:
        raise SpecError(
            "output_bias=True with qkv_bias=False: no published checkpoint has this combination and no test covers "
            "it. Set qkv_bias=True (its bias may be zero) or output_bias=False."
        )
    if spec.residual == "sandwich" and (spec.output_bias or spec.mlp_bias):
        raise SpecError(
            "residual='sandwich' with output_bias or mlp_bias: no published checkpoint has this combination "
            "(GLM-4-0414 has a bias on q, k, v at most) and no test covers it. Set both to False."
        )


def _check_residual_scale(spec: DecoderSpec) -> None:
    scale = spec.residual_scale
    if spec.residual != "scaled":
        if scale is not None:
            raise SpecError(
                f"residual_scale={scale!r} with residual={spec.residual!r}: only 'scaled' has one. Drop it."
            )
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise SpecError(
            f"residual_scale={scale!r}: residual='scaled' needs its factor, a positive number; the published models "
            "have the square root of twice their number of layers."
        )


def _check_heads(spec: DecoderSpec) -> None:
    if spec.num_attention_heads % spec.num_key_value_heads:
        raise SpecError(
            f"num_attention_heads={spec.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={spec.num_key_value_heads}: each key-value head serves the same number of query "
            "heads. Correct one of the two."
        )


def _check_rotary(spec: DecoderSpec) -> None:
    if not 0 < spec.partial_rotary_factor <= 1:
        raise SpecError(
            f"partial_rotary_factor={spec.partial_rotary_factor!r}: expected a share of the head in (0, 1]."
        )
    if spec.rotary_dim < 2 or spec.rotary_dim % 2:
        raise SpecError(
            f"head_dim={spec.head_dim} x partial_rotary_factor={spec.partial_rotary_factor} rotates "
            f"{spec.rotary_dim} features: expected an even number of at least 2."
        )
    if spec.positions == "rotary_2d" and (spec.partial_rotary_factor != 1 or spec.head_dim % 4):
        raise SpecError(
            f"positions='rotary_2d' with head_dim={spec.head_dim}, partial_rotary_factor={spec.partial_rotary_factor}: "
            "each half of the head is rotated whole, in pairs; expected a head_dim divisible by 4 and a factor of 1."
        )
    if spec.positions == "rotary_2d" and (spec.rope_type != "default" or spec.rotary_pairing != "halves"):
        raise SpecError(
            f"positions='rotary_2d' with rope_type={spec.rope_type!r}, rotary_pairing={spec.rotary_pairing!r}: "
            "expected 'default' and 'halves', as in ChatGLM-6B."
        )
    if not spec.rope_theta > 0 or spec.rope_theta == float("inf"):
        raise SpecError(f"rope_theta={spec.rope_theta!r}: expected a positive, finite base such as 10000.0.")
    if spec.rope_type not in get_args(RopeType):
        raise SpecError(f"rope_type={spec.rope_type!r}: expected one of {', '.join(get_args(RopeType))}.")


def _check_sliding(spec: DecoderSpec) -> None:
    if spec.layer_types is None:
        if spec.sliding_window is not None:
            raise SpecError(
                f"sliding_window={spec.sliding_window} without layer_types: say which layers slide, one "
                "'full_attention' or 'sliding_attention' a layer, or drop sliding_window."
            )
        return
    if len(spec.layer_types) != spec.num_hidden_layers:
        raise SpecError(
            f"layer_types names {len(spec.layer_types)} layers but num_hidden_layers={spec.num_hidden_layers}: "
            "expected one entry a layer."
        )
    if spec.attention_mask == "prefix":
        raise SpecError(
            "layer_types with attention_mask='prefix': no published checkpoint has a window in an infilling decoder "
            "and no test covers it. Drop layer_types and sliding_window."
        )
    unknown = set(spec.layer_types) - set(get_args(LayerType))
    if unknown:
        raise SpecError(f"layer_types holds {sorted(unknown)}: expected {' or '.join(get_args(LayerType))}.")
    if "sliding_attention" in spec.layer_types and not (spec.sliding_window or 0) > 0:
        raise SpecError(f"sliding_window={spec.sliding_window!r}: a sliding layer needs a window of at least 1 token.")


def _check_prefix_length(spec: DecoderSpec) -> None:
    length = spec.prefix_length
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= _MAX_PREFIX_LENGTH:
        raise SpecError(
            f"prefix_length={length!r} (pre_seq_len): expected a whole number of prefix tokens, 0 for none, at most "
            f"{_MAX_PREFIX_LENGTH}."
        )


def _check_prefix(spec: DecoderSpec) -> None:
    length = spec.prefix_length
    if not length:
        if spec.prefix_projection:
            raise SpecError("prefix_projection=True with prefix_length=0: there is nothing to project. Correct one.")
        return
    kind = (spec.norm, spec.residual, spec.feed_forward, spec.positions, spec.attention_mask)
    if kind not in _PREFIX_KINDS or spec.layer_types is not None:
        raise SpecError(
            f"prefix_length={length} with {', '.join(kind)}, layer_types={spec.layer_types}: only decoders of the "
            "ChatGLM-6B and ChatGLM2 kinds have P-tuning prefixes; no test covers another. Set prefix_length to 0."
        )


def _num_parameters(spec: DecoderSpec) -> int:
    hidden, queries, keys, inner = spec.hidden_size, spec.query_size, spec.key_value_size, spec.intermediate_size
    attention = hidden * (2 * queries + 2 * keys)
    attention += (queries + 2 * keys) * spec.qkv_bias + hidden * spec.output_bias
    matrices = 2 if spec.feed_forward.startswith("gelu") else 3
    feed_forward = matrices * hidden * inner + ((matrices - 1) * inner + hidden) * spec.mlp_bias
    norm = hidden * (2 if spec.norm == "layer" else 1)
    norms = norm * (4 if spec.residual == "sandwich" else 2)
    tables = spec.vocab_size * hidden * (1 if spec.tie_word_embeddings else 2)
    tables += 2 * (spec.max_position_embeddings + 1) * hidden * (spec.positions == "learned_2d")
    return spec.num_hidden_layers * (attention + feed_forward + norms) + tables + norm + _prefix_parameters(spec)


def _prefix_parameters(spec: DecoderSpec) -> int:
    if not spec.prefix_length:
        return 0
    trans = (spec.prefix_row_size + 1) * spec.hidden_size + (spec.hidden_size + 1) * spec.prefix_size
    return spec.prefix_length * spec.prefix_row_size + trans * spec.prefix_projection
