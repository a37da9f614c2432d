"""Rules: which native names and which foreign names hold the same numbers, in which layout.

A table is a list of rules with named placeholders; ``plan`` fills them in. Neither opens a file or sees a tensor, so a
mapping can be checked against an index, a file header or a model's state dict before anything moves.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from glmlike.checkpoint.layouts import Layout, Same
from glmlike.errors import CheckpointError

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rule:
    """The native tensors hold what the foreign tensors hold, up to ``layout``; a rule without placeholders is a step.

    Raises:
        ValueError: the number of names is not the layout's, or the two sides differ in their placeholders.
    """

    native: tuple[str, ...]
    foreign: tuple[str, ...]
    layout: Layout = field(default_factory=Same)

    def __post_init__(self) -> None:
        if (len(self.native), len(self.foreign)) != (self.layout.natives, self.layout.foreigns):
            raise ValueError(
                f"{self.layout} joins {self.layout.natives} native and {self.layout.foreigns} foreign tensors, but the "
                f"rule names {self.native} and {self.foreign}."
            )
        sides = {frozenset(PLACEHOLDER.findall(name)) for name in (*self.native, *self.foreign)}
        if len(sides) != 1:
            raise ValueError(f"every name of a rule needs the same placeholders: {self.native} and {self.foreign}.")

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders of every name of this rule, sorted."""
        return tuple(sorted(PLACEHOLDER.findall(self.native[0])))


def same(native: str, foreign: str) -> Rule:
    """One tensor under two names."""
    return Rule((native,), (foreign,))


def scales_of(rule: Rule) -> Rule:
    """The rule of the row scales beside integer matrices: a scale for each row, so the layout of the rows is theirs."""
    native, foreign = (tuple(f"{name}_scale" for name in names) for names in (rule.native, rule.foreign))
    return Rule(native, foreign, rule.layout)


def plan(table: Sequence[Rule], ranges: Mapping[str, range]) -> Iterator[Rule]:
    """Every rule of ``table`` with its placeholders filled from ``ranges``: fully named steps."""
    for rule in table:
        names = rule.placeholders
        for values in itertools.product(*(ranges[name] for name in names)):
            at = dict(zip(names, values, strict=True))
            yield Rule(_fill(rule.native, at), _fill(rule.foreign, at), rule.layout)


def _fill(patterns: Sequence[str], at: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(pattern.format(**at) for pattern in patterns)


def by_native(steps: Sequence[Rule]) -> dict[str, Rule]:
    """The step that makes each native tensor."""
    return _index((name, step) for step in steps for name in step.native)


def by_foreign(steps: Sequence[Rule]) -> dict[str, Rule]:
    """The step that uses each foreign tensor."""
    return _index((name, step) for step in steps for name in step.foreign)


def _index(pairs: Iterator[tuple[str, Rule]]) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for name, step in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands in two rules: {found[name]} and {step}.")
        found[name] = step
    return found


def require_exact(expected: Collection[str], found: Collection[str], where: str, said_by: str = "config.json") -> None:
    """Both collections hold the same names; ``said_by`` is what the expected ones follow from.

    Raises:
        CheckpointError: how many are missing and how many have no place, the first of each, and what to do.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing and not extra:
        return
    parts = [f"{len(missing)} tensors missing (first: {missing[0]!r})"] if missing else []
    parts += [f"{len(extra)} tensors that {said_by} has no place for (first: {extra[0]!r})"] if extra else []
    raise CheckpointError(
        f"{where}: {', '.join(parts)}. The download is incomplete or {said_by} belongs to another model; compare "
        "both with the original repository."
    )
