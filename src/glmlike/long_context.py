"""Beyond the trained length: a config whose rotary positions are stretched by one of transformers' rope types.

``linear`` divides positions (arXiv 2306.15595) and wants a little training after; ``dynamic`` raises the rotary base as
the text grows and leaves short texts as they were; ``yarn`` stretches slow frequencies alone (arXiv 2309.00071);
``llama3`` does so with Meta's bounds (Llama 3.1); ``longrope`` takes factors searched for (arXiv 2402.13753). How much
each helps is the model's affair: examples/needle.py measures it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, get_args

from transformers.configuration_utils import PreTrainedConfig

from glmlike.configuration import GlmLikeConfig, as_native
from glmlike.errors import ConfigError
from glmlike.spec import DecoderSpec

Scaling = Literal["linear", "dynamic", "yarn", "longrope", "llama3"]

_LLAMA3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # config.json of Llama 3.1
_SEARCHED = ("short_factor", "long_factor")


def scale(
    config: PreTrainedConfig, kind: Scaling, factor: float, *, trained_length: int | None = None, **parameters: Any
) -> GlmLikeConfig:
    """A copy of ``config`` for texts ``factor`` times as long as the trained ones; give it to ``from_pretrained``.

    ``model = GlmLikeForCausalLM.from_pretrained(folder, config=scale(GlmLikeConfig.from_pretrained(folder), "yarn",
    4))``. ``trained_length`` is ``max_position_embeddings`` unless said. The rotary base, the rotated share and the
    pairing stay; ``max_position_embeddings`` becomes the new length, but for ``dynamic``, which reads the trained one
    there. A ``linear`` scaling of what was trained linearly multiplies. ``parameters`` are the kind's others
    (``beta_fast``, ``attention_factor``, ``short_factor`` …), with transformers' names.

    Raises:
        ConfigError: an unknown kind or a factor not above 1; positions that cannot be stretched (learned, or
            two-dimensional, or with frequencies rounded to float16); a decoder trained with another scaling; longrope
            without its factors.
    """
    native = copy.deepcopy(as_native(config))
    spec = native.spec
    trained = trained_length or spec.max_position_embeddings
    if kind not in get_args(Scaling):
        raise ConfigError(f"scaling {kind!r}: expected one of {', '.join(get_args(Scaling))}.")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 < factor < float("inf"):
        raise ConfigError(f"factor={factor!r}: expected a number above 1, the wanted length over the trained one.")
    _require_stretchable(spec, kind)
    total = factor * (dict(spec.rope_scaling)["factor"] if spec.rope_type == "linear" else 1)  # type: ignore[operator]
    rope: dict[str, Any] = {"rope_type": kind, "factor": float(total)}
    if kind in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = trained
    if kind == "llama3":
        rope |= _LLAMA3_BOUNDS
    rope |= parameters
    if kind == "longrope":
        _require_searched(rope, spec.rotary_dim // 2)
    own = {"rope_theta": spec.rope_theta, "partial_rotary_factor": spec.partial_rotary_factor}
    native.rope_parameters = {**own, **rope}
    native.max_position_embeddings = trained if kind == "dynamic" else int(trained * factor)
    return native


def stretched(model: str | Path, rope: str, **loading: Any) -> GlmLikeConfig:
    """The config of a folder or Hub id, scaled as the commands' ``--rope`` says: KIND:FACTOR, such as "yarn:4".

    ``loading`` goes to ``from_pretrained`` (``revision``, ``subfolder``).

    Raises:
        ConfigError: no such form, or what ``scale`` refuses.
    """
    kind, _, factor = rope.partition(":")
    try:
        times = float(factor)
    except ValueError:
        raise ConfigError(f"--rope {rope}: expected KIND:FACTOR, such as yarn:4.") from None
    return scale(GlmLikeConfig.from_pretrained(model, **loading), kind, times)  # type: ignore[arg-type]


def longest_text(config: GlmLikeConfig) -> int:
    """Tokens that a scaled config is meant for; ``max_position_embeddings`` of ``dynamic`` is the trained length."""
    spec = config.spec
    scaling = dict(spec.rope_scaling)
    times = float(scaling["factor"]) if spec.rope_type == "dynamic" else 1.0  # type: ignore[arg-type]
    return int(spec.max_position_embeddings * times)


def _require_stretchable(spec: DecoderSpec, kind: str) -> None:
    if spec.positions != "rotary":
        what = "a learned table" if spec.positions == "learned_2d" else "two-dimensional"
        raise ConfigError(
            f"scaling {kind!r} of a decoder whose positions are {what} ({spec.positions}): no published checkpoint "
            "does this and no test covers it. Cut the text, or use a decoder with one-dimensional rotary positions."
        )
    if spec.rotary_precision == "float16":
        raise ConfigError(
            f"scaling {kind!r} of a decoder with frequencies rounded to float16 (GLM-130B): the stretched ones would "
            "be computed from others than it was trained with. Cut the text."
        )
    if spec.rope_type != "default" and (spec.rope_type, kind) != ("linear", "linear"):
        raise ConfigError(
            f"scaling {kind!r} of a decoder that has rope_type={spec.rope_type!r} already: the two do not compose. "
            "Pass the config of the unscaled decoder, or set rope_parameters by hand."
        )


def _require_searched(rope: dict[str, Any], count: int) -> None:
    for name in _SEARCHED:
        found = rope.get(name)
        if not isinstance(found, (list, tuple)) or len(found) != count:
            has = "nothing" if found is None else f"{len(found)} numbers"
            raise ConfigError(
                f"longrope with {has} as {name}: expected {count} numbers, one a rotated pair, from a search on this "
                "decoder. Without one, use 'yarn'."
            )
