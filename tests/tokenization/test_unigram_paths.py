"""Viterbi over arrays takes the path that trying all paths takes, however runs are put together."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.tokenization import unigram_paths
from glmlike.tokenization.unigram_paths import Trie, Viterbi, near

TEXT = st.text("ab中\U0010fffd", min_size=1, max_size=8)
PIECES = st.dictionaries(st.text("ab中", min_size=1, max_size=4), st.integers(-64, 2).map(float), max_size=20)
UNKNOWN = -99.0


def viterbi(scores: dict[str, float]) -> Viterbi:
    return Viterbi(dict(zip(scores, itertools.count(), strict=False)), [*scores.values(), UNKNOWN], len(scores))


def ways(run: str, scores: dict[str, float]) -> list[list[tuple[str, float, int]]]:
    """Every way through a run: the pieces, their scores and numbers."""
    if not run:
        return [[]]
    numbers = {piece: (score, number) for number, (piece, score) in enumerate(scores.items())}
    heads = [run[:end] for end in range(1, len(run) + 1) if run[:end] in numbers]
    if run[0] not in numbers:
        heads.append(run[0])
    return [
        [(head, *numbers.get(head, (UNKNOWN, len(scores)))), *rest]
        for head in heads
        for rest in ways(run[len(head) :], scores)
    ]


def total(way: list[tuple[str, float, int]]) -> float:
    return sum(score for _, score, _ in way)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.lists(TEXT, min_size=1, max_size=6, unique=True), st.sampled_from([(48, 800), (48, 0), (3, 0)]))
def test_the_best_of_all_ways(scores: dict[str, float], runs: list[str], limits: tuple[int, int]) -> None:
    """Together, one by one, and some so and some so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unigram_paths, "LONG", limits[0])
        patch.setattr(unigram_paths, "FEW", limits[1])
        found = dict(viterbi(scores).paths(runs))
    assert sorted(found) == sorted(runs)
    for run, path in found.items():
        every = ways(run, scores)
        assert path.score == max(map(total, every))
        assert path.pieces in {tuple(number for _, _, number in way) for way in every if total(way) == path.score}
        assert path.gap >= 0


@settings(max_examples=100, deadline=None)
@given(PIECES, TEXT)
def test_the_gap_is_the_least_lead(scores: dict[str, float], run: str) -> None:
    """What wins at the places of the best path, and by how much."""
    ((_, path),) = viterbi(scores).paths([run])
    names = [*scores, ""]
    ends = list(itertools.accumulate(len(names[number]) or 1 for number in path.pieces))
    leads = []
    for end in ends:
        last: dict[int, float] = {}
        for way in ways(run[:end], scores):
            last[len(way[-1][0])] = max(last.get(len(way[-1][0]), -math.inf), total(way))
        first, second, *_ = sorted([*last.values(), -math.inf], reverse=True)
        leads.append(first - second)
    assert path.gap == pytest.approx(min(leads) / len(run))


@settings(max_examples=100, deadline=None)
@given(PIECES, TEXT, st.integers(0, 20))
def test_near_keeps_what_may_win(scores: dict[str, float], run: str, slack: int) -> None:
    ((_, edges),) = viterbi(scores).edges([run])
    every = ways(run, scores)
    best = max(map(total, every))
    wanted = set()
    for way in every:
        if total(way) >= best - slack:
            at = 0
            for head, score, number in way:
                wanted.add((at, at + len(head), score, number))
                at += len(head)
    assert near(edges, len(run), slack) == [edge for edge in edges if edge in wanted]


@settings(max_examples=50, deadline=None)
@given(PIECES, st.lists(TEXT, min_size=1, max_size=6))
def test_edges_in_order(scores: dict[str, float], runs: list[str]) -> None:
    """The same for many runs, for one, and for one that is gone through a little at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unigram_paths, "ENDLESS", 3)
        patch.setattr(unigram_paths, "AT_ONCE", 7)
        model = viterbi(scores)
        for run, edges in model.edges(runs):
            assert edges == sorted(edges) == list(model.walk(run))
            whole = {(begin, end) for begin, end, _, number in edges if number < len(scores)}
            size = range(len(run) + 1)
            assert whole == {(a, b) for a, b in itertools.combinations(size, 2) if run[a:b] in scores}


def test_a_trie_of_many_pieces() -> None:
    """So many that places of its table are taken more than once."""
    rng = np.random.default_rng(0)
    pieces = {"".join(map(chr, rng.integers(0x4E00, 0x4E40, rng.integers(1, 5)))) for _ in range(20_000)}
    numbers = dict(zip(sorted(pieces), itertools.count(), strict=False))
    text = "".join(map(chr, rng.integers(0x4E00, 0x4E40, 500)))
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
    found = Trie(numbers).edges(codes, np.arange(500), np.full(500, 500), -1)
    spans = {
        (a, b): numbers.get(text[a:b], -1)
        for a in range(500)
        for b in range(a + 1, min(a + 5, 501))
        if b == a + 1 or text[a:b] in numbers
    }
    columns = (column.tolist() for column in found)
    assert {(begin, end): number for begin, end, number in zip(*columns, strict=True)} == spans


def test_no_pieces() -> None:
    ((run, path),) = viterbi({}).paths(["ab"])
    assert (run, path.pieces, path.score) == ("ab", (0, 0), 2 * UNKNOWN)
