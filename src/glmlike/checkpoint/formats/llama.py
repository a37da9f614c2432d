"""LLaMA 3.x as published on the Hub: native names, native layouts."""

from __future__ import annotations

from glmlike.checkpoint.native import native_patterns
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

# Angles that files of transformers before 4.32 carry; they follow from the config.
DROPPED = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq",)


def table(spec: DecoderSpec) -> list[Rule]:
    """Native names on both sides; q and k rows pair by halves, which is the spec's ``rotary_pairing``, not a layout."""
    return [same(name, name) for name in native_patterns(spec)]
