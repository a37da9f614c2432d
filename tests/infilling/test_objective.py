"""The objective against the published definition: distributions, and samples restated token by token."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.errors import ConfigError
from glmlike.infilling.objective import (
    IGNORED,
    OBJECTIVES,
    BlankInfillingObjective,
    BlankTokens,
    Sample,
    Spans,
    blanks,
    causal_sample,
    document_length,
    document_sample,
    given_sample,
    level_sample,
    sentence_spans,
    token_spans,
)

MASK, SMASK, GMASK, SOP, EOP, DBLOCK, CLS, END = range(8)
TOKENS = BlankTokens(mask=MASK, smask=SMASK, gmask=GMASK, sop=SOP, eop=EOP, dblock=DBLOCK, first=CLS, end=END)
PLAIN = BlankInfillingObjective()


def text(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(10, 1000, length)


def restated(ids: list[int], spans: list[tuple[int, int]], order: list[int], mask: int) -> tuple[list[int], ...]:
    """A sample written down token by token, as the paper's figure 2 does."""
    context: list[int] = []
    position_of = {}
    starts = dict(spans)
    index = 0
    while index < len(ids):
        if index in starts:
            position_of[index] = len(context)
            context.append(mask)
            index += starts[index]
        else:
            context.append(ids[index])
            index += 1
    row, positions, block = list(context), list(range(len(context))), [0] * len(context)
    targets = [IGNORED] * len(context)
    for which in order:
        start, length = spans[which]
        words = ids[start : start + length]
        row += [SOP, *words]
        targets += [*words, EOP]
        positions += [position_of[start]] * (length + 1)
        block += list(range(1, length + 2))
    return row, positions, block, targets


@st.composite
def texts_with_spans(draw: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """A text and disjoint spans of it, which may touch (sentences do)."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=8))
    spans, at = [], 0
    for gap, length in lengths:
        spans.append((at + gap, length))
        at += gap + length
    size = at + draw(st.integers(0, 4))
    return draw(st.lists(st.integers(10, 99), min_size=size, max_size=size)), spans


@settings(max_examples=200, deadline=None)
@given(texts_with_spans(), st.integers(0, 2**32))
def test_a_sample_is_what_the_paper_draws(case: tuple[list[int], list[tuple[int, int]]], seed: int) -> None:
    ids, spans = case
    arrays = Spans(np.array([start for start, _ in spans]), np.array([length for _, length in spans]))
    sample = blanks(np.array(ids), arrays, MASK, TOKENS)
    row, positions, block, targets = restated(ids, spans, list(range(len(spans))), MASK)
    assert sample.input_ids.tolist() == row
    assert sample.positions.tolist() == [positions, block]
    assert sample.targets.tolist() == targets
    order = np.random.default_rng(seed).permutation(len(spans)).tolist()
    shuffled = blanks(np.array(ids), arrays, MASK, TOKENS, np.random.default_rng(seed))
    assert [part.tolist() for part in (shuffled.input_ids, shuffled.targets)] == [
        part for index, part in enumerate(restated(ids, spans, order, MASK)) if index in (0, 3)
    ]


def filled(sample: Sample) -> list[int]:
    """The text of a sample: every piece put back where its position says."""
    block = sample.positions[1]
    context = sample.input_ids[block == 0]
    pieces: dict[int, list[int]] = {}
    for place, number, target in zip(*sample.positions, sample.targets, strict=True):
        if number and target != EOP:
            pieces.setdefault(int(place), []).append(int(target))
    found: list[int] = []
    for place, token in enumerate(context.tolist()):
        found += pieces.pop(place) if place in pieces else [token]
    assert not pieces
    return found


@pytest.mark.parametrize("level", ["token", "sentence", "document"])
@pytest.mark.parametrize("length", [2, 3, 4, 7, 40, 300])
def test_pieces_put_back_give_the_text(level: Any, length: int) -> None:
    ends = np.zeros(1000, np.bool_)
    ends[::7] = True
    for seed in range(20):
        ids, rng = text(length, seed), np.random.default_rng(seed)
        sample = level_sample(ids, level, PLAIN, TOKENS, ends, rng)
        if (sample.positions[1] > 0).any():
            assert filled(sample) == ids.tolist()
            assert len(sample.input_ids) == length + 2 * int((sample.positions[1] == 1).sum()) - (
                EOP not in sample.targets
            )
        else:
            assert length == 2
            assert level == "document"


def poisson(mean: float, longest: int) -> dict[int, float]:
    weights = {n: math.exp(-mean) * mean**n / math.factorial(n) for n in range(1, longest)}
    return {n: weight / sum(weights.values()) for n, weight in weights.items()}


def test_span_lengths_are_a_poissons_without_its_zero() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(int(n) for _ in range(150) for n in token_spans(text(6000), PLAIN, TOKENS, rng).lengths)
    total = sum(counts.values())
    assert total > 35_000
    expected = poisson(3.0, 40)
    distance = sum(abs(counts[n] / total - share) for n, share in expected.items()) / 2
    assert distance < 0.01
    mean = sum(n * count for n, count in counts.items()) / total
    assert abs(mean - 3 / (1 - math.exp(-3))) < 0.05


def test_spans_cover_fifteen_percent_at_least_one_token_apart_anywhere_in_the_text() -> None:
    rng = np.random.default_rng(1)
    covered = np.zeros(200)
    for _ in range(4000):
        spans = token_spans(text(200), PLAIN, TOKENS, rng)
        stops = spans.starts + spans.lengths
        assert (spans.starts[1:] > stops[:-1]).all()
        assert spans.starts[0] >= 0
        assert stops[-1] <= 200
        total = int(spans.lengths.sum())
        assert total >= 30
        assert total - int(spans.lengths.max()) < 30 or total - int(spans.lengths.min()) < 30
        for start, stop in zip(spans.starts, stops, strict=True):
            covered[start:stop] += 1
    share = covered / 4000
    assert 0.150 < share.mean() < 0.165  # 15 % and the overshoot of the last span
    inner = share[20:-20]
    assert inner.std() < 0.012
    assert abs(inner.mean() - share.mean()) < 0.01


def test_several_documents_are_masked_each_and_never_across_their_borders() -> None:
    rng = np.random.default_rng(2)
    small, large = text(50), text(200)
    ids = np.concatenate(([CLS], small, [END], [CLS], large, [END]))
    in_small = in_large = 0
    for _ in range(500):
        spans = token_spans(ids, PLAIN, TOKENS, rng)
        masked = np.zeros(len(ids), np.bool_)
        for start, length in zip(*spans, strict=True):
            masked[start : start + length] = True
        assert not masked[[0, 51, 52, 253]].any()
        assert masked[1:51].sum() <= int(0.15 * 50)
        in_small += int(masked[1:51].sum())
        in_large += int(masked[53:253].sum())
    assert in_small > 0
    assert in_large / 500 > 0.15 * 200  # the longest document takes the rest


def test_short_texts_keep_one_span() -> None:
    rng = np.random.default_rng(3)
    for length in (2, 3, 5):
        for _ in range(50):
            spans = token_spans(text(length), PLAIN, TOKENS, rng)
            assert len(spans.starts) == 1
            assert 1 <= spans.lengths[0] <= length
    assert len(token_spans(np.array([CLS]), PLAIN, TOKENS, rng).starts) == 0


def test_single_spans() -> None:
    rng = np.random.default_rng(4)
    lengths = [token_spans(text(500), PLAIN, TOKENS, rng, single=True).lengths for _ in range(2000)]
    assert {len(found) for found in lengths} == {1}
    assert abs(np.mean(lengths) - 3 / (1 - math.exp(-3))) < 0.12


def test_whole_sentences_until_the_share_is_covered() -> None:
    ids = np.array([CLS, *[20, 21, 22, 50], *[23, 50], *[24, 25, 26, 27, 28, 50], END, *[29, 30]])
    ends = np.zeros(100, np.bool_)
    ends[50] = True
    whole = {(1, 4), (5, 2), (7, 6), (14, 2)}
    seen = Counter()
    for seed in range(400):
        spans = sentence_spans(ids, ends, 0.15, TOKENS, np.random.default_rng(seed))
        chosen = list(zip(spans.starts.tolist(), spans.lengths.tolist(), strict=True))
        assert set(chosen) <= whole
        assert sum(length for _, length in chosen) >= int(0.15 * len(ids))
        assert len(chosen) == 1  # each sentence alone covers 15 % of 16 tokens
        seen.update(chosen)
    assert all(60 < seen[sentence] < 140 for sentence in whole)
    half = sentence_spans(ids, ends, 0.5, TOKENS, np.random.default_rng(0))
    lengths = half.lengths.tolist()
    assert sum(lengths) >= 8
    assert any(sum(lengths) - length < 8 for length in lengths)


def test_document_lengths_are_uniform() -> None:
    objective = BlankInfillingObjective(token=0, document=1, shortest_document_share=0.25)
    rng = np.random.default_rng(5)
    drawn = Counter(document_length(100, 100, objective, rng) for _ in range(74_000))
    assert (min(drawn), max(drawn)) == (25, 98)
    assert all(800 < count < 1200 for count in drawn.values())


def test_half_of_the_document_samples_are_suffixes_without_an_end_of_piece() -> None:
    objective = BlankInfillingObjective(token=0, document=1)
    rng = np.random.default_rng(6)
    ids, suffixes = text(50), 0
    for _ in range(1000):
        sample = document_sample(ids, 30, objective, TOKENS, rng)
        where = int(np.flatnonzero(sample.input_ids == GMASK)[0])
        assert (sample.targets != IGNORED).sum() == (31 if EOP in sample.targets else 30)
        if EOP in sample.targets:
            assert filled(sample) == ids.tolist()
            continue
        suffixes += 1
        assert where == 20
        assert sample.input_ids.tolist() == [*ids[:20], GMASK, SOP, *ids[20:49]]
        assert sample.targets.tolist() == [IGNORED] * 21 + ids[20:].tolist()
        assert sample.positions.tolist() == [[*range(21), *[20] * 30], [*[0] * 21, *range(1, 31)]]
    assert 430 < suffixes < 570
    several = np.concatenate((text(20), [END], text(20)))
    assert all(EOP not in document_sample(several, 15, objective, TOKENS, rng).targets for _ in range(100))


def test_causal_samples_and_given_answers() -> None:
    ids = text(5)
    sample = causal_sample(ids)
    assert sample.targets.tolist() == [*ids[1:], IGNORED]
    assert sample.positions.tolist() == [[0, 1, 2, 3, 4], [0] * 5]
    pair = given_sample(np.array([11, MASK, 12]), np.array([13, 14]), TOKENS)
    assert pair.input_ids.tolist() == [11, MASK, 12, SOP, 13, 14]
    assert pair.targets.tolist() == [IGNORED] * 3 + [13, 14, EOP]
    assert pair.positions.tolist() == [[0, 1, 2, 1, 1, 1], [0, 0, 0, 1, 2, 3]]
    with pytest.raises(ConfigError, match=r"holds 2 blanks, expected one"):
        given_sample(np.array([MASK, GMASK]), np.array([13]), TOKENS)


def test_block_masks_hide_inputs_of_pieces_and_keep_their_targets() -> None:
    objective = BlankInfillingObjective(block_mask_probability=0.1)
    rng, hidden, inputs = np.random.default_rng(7), 0, 0
    for _ in range(300):
        ids = text(200)
        sample = level_sample(ids, "token", objective, TOKENS, np.zeros(1000, np.bool_), rng)
        assert filled(sample) == ids.tolist()
        piece = (sample.positions[1] > 1).sum()
        hidden, inputs = hidden + int((sample.input_ids == DBLOCK).sum()), inputs + int(piece)
        assert (sample.input_ids[sample.positions[1] == 1] == SOP).all()
    assert abs(hidden / inputs - 0.1) < 0.01


def test_each_level_has_its_mask_unless_they_share_one() -> None:
    ends = np.ones(1000, np.bool_)
    for level, mask in (("token", MASK), ("sentence", SMASK), ("document", GMASK)):
        for objective, expected in ((PLAIN, mask), (OBJECTIVES["glm-base"], MASK)):
            sample = level_sample(text(30), level, objective, TOKENS, ends, np.random.default_rng(0))  # type: ignore[arg-type]
            used = {MASK, SMASK, GMASK} & set(sample.input_ids.tolist())
            assert used == {expected}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token": 0.5}, "must sum to 1"),
        ({"token": 1.5, "document": -0.5}, "must not be negative"),
        ({"masked_share": 1.5}, "masked_share=1.5: expected a number from 0 to 1"),
        ({"mean_span": 0.0}, "expected a positive mean"),
        ({"level_per": "row"}, "expected 'batch' or 'sample'"),
    ],
)
def test_impossible_objectives_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlankInfillingObjective(**fields)


def test_the_published_mixes_are_there() -> None:
    assert [OBJECTIVES[name].shares[:3] for name in ("glm-10b", "glm-10b-1024", "glm-130b")] == [
        (0.5, 0.3, 0.2),
        (0.4, 0.3, 0.3),
        (0.3, 0.0, 0.7),
    ]
