"""Rules check themselves, plans name every tensor once, and differences are errors that say what to do."""

from __future__ import annotations

import pytest

from glmlike.checkpoint.layouts import Fused
from glmlike.checkpoint.rules import Rule, by_foreign, by_native, plan, require_exact, same
from glmlike.errors import CheckpointError


def test_plan_fills_every_placeholder() -> None:
    table = [same("a.{layer}", "b.{layer}.x"), same("norm", "final")]
    assert [(step.native, step.foreign) for step in plan(table, {"layer": range(2)})] == [
        (("a.0",), ("b.0.x",)),
        (("a.1",), ("b.1.x",)),
        (("norm",), ("final",)),
    ]


def test_a_rule_whose_names_do_not_fit_its_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="joins 2 native and 1 foreign"):
        Rule(("q", "k", "v"), ("qkv",), Fused((1, 1)))


def test_a_rule_with_a_placeholder_on_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match="same placeholders"):
        same("a.{layer}", "b")


def test_a_name_in_two_rules_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' stands in two rules"):
        by_native([same("a", "x"), same("a", "y")])
    with pytest.raises(ValueError, match="'x' stands in two rules"):
        by_foreign([same("a", "x"), same("b", "x")])


def test_missing_and_extra_tensors_are_counted_and_named() -> None:
    with pytest.raises(CheckpointError, match=r"here: 1 tensors missing \(first: 'a'\), 2 tensors .*first: 'c'"):
        require_exact({"a", "b"}, {"b", "c", "d"}, "here")
    require_exact(["a"], {"a": 1}, "here")
