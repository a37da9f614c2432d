"""A tensor cut over ranks and joined again is the same tensor, and shapes say the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.splits import Cut, Replicated, Split
from glmlike.errors import CheckpointError


@st.composite
def cases(draw: st.DrawFn) -> tuple[Split, torch.Tensor, int]:
    ranks, parts, dim = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 1))
    shape = [draw(st.integers(1, 4)), draw(st.integers(1, 4))]
    shape[dim] *= ranks * parts
    return draw(st.sampled_from([Cut(dim, parts), Replicated()])), torch.randn(shape), ranks


@given(cases())
def test_cut_and_joined_is_the_identity(case: tuple[Split, torch.Tensor, int]) -> None:
    split, whole, ranks = case
    pieces = split.cut(whole, ranks)
    assert len(pieces) == ranks
    assert same_bits(split.join(pieces), whole)
    assert {split.whole_shape(tuple(piece.shape), ranks) for piece in pieces} == {tuple(whole.shape)}


def test_each_of_two_halves_is_cut_on_its_own() -> None:
    """Rank i of a gated feed-forward holds [first_i; second_i]."""
    first, second = Cut(0, parts=2).cut(torch.arange(8), 2)
    assert (first.tolist(), second.tolist()) == ([0, 1, 4, 5], [2, 3, 6, 7])


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(CheckpointError, match="6 features cannot be cut evenly over 4 ranks"):
        Cut(0).cut(torch.zeros(6), 4)
    with pytest.raises(CheckpointError, match=r"found shape \[3\], expected 2 equal parts along dim 0"):
        Cut(0, parts=2).join([torch.zeros(3), torch.zeros(3)])


def test_copies_that_differ_are_refused() -> None:
    with pytest.raises(CheckpointError, match="the 2 ranks hold different copies"):
        Replicated().join([torch.zeros(2), torch.tensor([0.0, -0.0])])
