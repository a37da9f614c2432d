"""The native format: every name is its own."""

from __future__ import annotations

from glmlike.checkpoint.native import native_patterns
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

DROPPED: tuple[str, ...] = ()


def table(spec: DecoderSpec) -> list[Rule]:
    """Native names on both sides."""
    return [same(name, name) for name in native_patterns(spec)]
