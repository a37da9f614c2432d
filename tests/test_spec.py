"""A DecoderSpec is a possible decoder, or an error that says what to correct."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from glmlike import DecoderSpec, SpecError
from glmlike.spec import feed_forward_size, freeze_rope
from specs import SPECS

BASE = SPECS["glm-4-9b"]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"hidden_size": 0}, "hidden_size=0: expected a whole number of at least 1"),
    "float": ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0: expected a whole number"),
    "boolean": ({"head_dim": True}, "head_dim=True: expected a whole number"),
    "absurd": ({"num_hidden_layers": 10**9}, "larger than anything this decoder is for"),
    "choice": ({"residual": "post"}, "residual='post': expected one of pre, sandwich"),
    "groups": ({"num_attention_heads": 5}, "num_attention_heads=5 is not a multiple of num_key_value_heads=2"),
    "switch": ({"qkv_bias": 1}, "qkv_bias=1: expected true or false"),
    "eps": ({"norm_eps": 0.0}, "norm_eps=0.0: expected a small positive number"),
    "nan eps": ({"norm_eps": float("nan")}, "norm_eps=nan"),
    "fraction": ({"partial_rotary_factor": 1.5}, "expected a share of the head"),
    "nan fraction": ({"partial_rotary_factor": float("nan")}, "expected a share of the head"),
    "odd width": ({"partial_rotary_factor": 0.2}, "rotates 3 features: expected an even number"),
    "base": ({"rope_theta": -1.0}, "rope_theta=-1.0: expected a positive, finite base"),
    "rope type": ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type='spiral': expected one of default, linear"),
    "output bias alone": ({"qkv_bias": False, "output_bias": True}, "no published checkpoint has this combination"),
    "sandwich with bias": ({"residual": "sandwich", "mlp_bias": True}, "no published checkpoint has this combination"),
    "unpublished kind": (
        {"norm": "layer"},
        "no published checkpoint has this combination and no test covers it. Known:",
    ),
    "window alone": ({"sliding_window": 4}, "sliding_window=4 without layer_types"),
    "layer types": ({"layer_types": ("full_attention",)}, "names 1 layers but num_hidden_layers=3"),
    "layer type": ({"layer_types": ("full_attention",) * 2 + ("x",)}, r"layer_types holds \['x'\]"),
    "no window": ({"layer_types": ("sliding_attention",) * 3}, "a sliding layer needs a window"),
}


WRONG_INFILLING: dict[str, tuple[dict[str, Any], str]] = {
    "no factor": ({"residual_scale": None}, "residual_scale=None: residual='scaled' needs its factor"),
    "negative factor": ({"residual_scale": -1.0}, "residual_scale=-1.0"),
    "NaN factor": ({"residual_scale": float("nan")}, "residual_scale=nan"),
    "factor of no use": (
        {"residual": "pre", "feed_forward": "gelu_erf", "positions": "learned_2d"},
        "residual_scale=2.5 with residual='pre': only 'scaled' has one",
    ),
    "no bias": ({"mlp_bias": False}, "norm='layer' without a bias on every projection"),
    "part of the head": ({"partial_rotary_factor": 0.5}, "each half of the head is rotated whole"),
    "odd halves": ({"head_dim": 18}, "expected a head_dim divisible by 4"),
    "neighbours": ({"rotary_pairing": "interleaved"}, "expected 'default' and 'halves', as in ChatGLM-6B"),
    "window": ({"layer_types": ("full_attention",) * 3}, "layer_types with attention_mask='prefix'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_impossible_decoders(case: str) -> None:
    fields, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        BASE.replace(**fields)


@pytest.mark.parametrize("case", WRONG_INFILLING)
def test_impossible_infilling_decoders(case: str) -> None:
    fields, message = WRONG_INFILLING[case]
    with pytest.raises(SpecError, match=message):
        SPECS["chatglm-6b"].replace(**fields)


def test_a_spec_is_a_frozen_hashable_value() -> None:
    assert BASE.replace() == BASE
    assert hash(BASE) == hash(BASE.replace())
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.hidden_size = 5  # type: ignore[misc]


def test_derived_sizes() -> None:
    assert (BASE.query_size, BASE.key_value_size, BASE.rotary_dim) == (64, 32, 8)


@pytest.mark.parametrize(("hidden", "inner"), [(4096, 13_696), (6144, 20_480)])
def test_feed_forward_of_the_report(hidden: int, inner: int) -> None:
    """GLM-4-9B's published width; 10/3 x hidden rounded up to 64."""
    assert feed_forward_size(hidden) == inner


def test_rope_settings_have_one_form() -> None:
    old = {"type": "linear", "factor": 2.0, "rope_theta": 5.0}
    assert freeze_rope(old) == freeze_rope({"rope_type": "linear", "factor": 2.0})
    assert freeze_rope({"long_factor": [1.0, 2.0]}) == (("long_factor", (1.0, 2.0)), ("rope_type", "default"))
    spec = BASE.replace(rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert spec.rope_parameters == {
        "rope_theta": 5_000_000.0,
        "partial_rotary_factor": 0.5,
        "rope_type": "linear",
        "factor": 2.0,
    }


def test_every_default_is_the_glm_recipe() -> None:
    required = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    spec = DecoderSpec(**required, num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    assert (spec.norm, spec.residual, spec.feed_forward, spec.rotary_pairing) == ("rms", "pre", "swiglu", "interleaved")
    assert (spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.partial_rotary_factor) == (True, False, False, 0.5)
