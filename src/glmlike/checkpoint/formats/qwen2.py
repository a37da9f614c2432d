"""Qwen2 and Qwen2.5 as published on the Hub: native names, native layouts."""

from __future__ import annotations

from glmlike.checkpoint.native import native_patterns
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

DROPPED: tuple[str, ...] = ()


def table(spec: DecoderSpec) -> list[Rule]:
    """Native names on both sides."""
    return [same(name, name) for name in native_patterns(spec)]
