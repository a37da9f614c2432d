"""A decoder that the caller passes as ``spec=``, by name or whole, and whether ranks can hold it."""

from __future__ import annotations

from pathlib import Path

from glmlike.errors import ConfigError
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec


def by_name(given: str | DecoderSpec) -> DecoderSpec:
    """The spec that is passed, itself or by its name in :mod:`glmlike.published`."""
    if isinstance(given, str):
        if given not in PUBLISHED:
            raise ConfigError(f"spec={given!r}: expected one of {', '.join(PUBLISHED)}, or a DecoderSpec.")
        return PUBLISHED[given].spec
    if not isinstance(given, DecoderSpec):
        raise ConfigError(f"spec={given!r}: expected a name such as 'glm-130b', or a DecoderSpec.")
    return given


def label(given: str | DecoderSpec) -> str:
    """What an error calls the spec that is passed."""
    return f"spec={given!r}" if isinstance(given, str) else "spec="


def require_agreement(found: DecoderSpec, given: str | DecoderSpec | None, where: Path) -> None:
    """Raise ConfigError if a spec is passed and a config says another decoder."""
    differences = {} if given is None else found.differences(by_name(given))
    if differences:
        raise ConfigError(f"{where} and spec= contradict each other: {differences}. Correct one, or leave spec= out.")


def require_divisible(spec: DecoderSpec, ranks: int) -> None:
    """Raise ConfigError unless ``ranks`` ranks can each hold whole heads and equal pieces of every matrix.

    Of fewer key-value heads than ranks, several ranks hold the same one.
    """
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= 99:
        raise ConfigError(f"tensor_parallel={ranks!r}: expected a whole number from 1 to 99.")
    for name in ("num_attention_heads", "intermediate_size", "vocab_size"):
        if getattr(spec, name) % ranks:
            raise ConfigError(
                f"tensor_parallel={ranks}: does not divide {name}={getattr(spec, name)}. Pass one that does."
            )
    heads = spec.num_key_value_heads
    if heads % ranks and ranks % heads:
        raise ConfigError(f"tensor_parallel={ranks}: neither divides num_key_value_heads={heads} nor is a multiple.")
