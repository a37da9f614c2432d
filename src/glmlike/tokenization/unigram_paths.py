"""The best cuts of many runs of text at once, by a unigram model: Viterbi's algorithm over arrays.

All pieces that begin at any character are found together, one step of a trie for all characters at a time; then the
best sums are carried from first characters to last ones, for all runs at a time. Sums are in float64, in which no two
of float32 scores are rounded alike; with each best path goes its ``gap``, the least lead with which it won at any of
its places (:mod:`glmlike.tokenization.unigram_exact` says what that is for).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glmlike.tokenization.cutting import as_codes

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Edge = tuple[int, int, float, int]
"""Begin, end, score and number of a piece in a run."""

LONG = 48
"""Characters of a run that is gone through alone: others would wait for it."""
FEW = 800
"""Characters for which arrays do not pay."""
ENDLESS = 1 << 12
"""Characters of a run whose pieces are not kept in memory."""
AT_ONCE = 1 << 17
"""Characters that are worked on together: some hundred bytes of memory each."""
_CODE_BITS = 21
_EMPTY = np.int64(-1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Path(NamedTuple):
    """The best cut of a run: the numbers of its pieces, the sum of their scores, and the gap a character."""

    pieces: tuple[int, ...]
    score: float
    gap: float


class Edges(NamedTuple):
    """All pieces in some texts: where each begins and ends, and its number."""

    begins: Integers
    ends: Integers
    pieces: Integers


class Trie:
    """The pieces of a vocabulary, for search in many places at once."""

    def __init__(self, pieces: Mapping[str, int]) -> None:
        texts = list(pieces)
        lengths = np.array(list(map(len, texts)), np.int64)
        codes = as_codes("".join(texts)).astype(np.int64)
        starts, nodes = np.cumsum(lengths) - lengths, np.zeros(len(texts), np.int64)
        numbers = np.array(list(pieces.values()), np.int64)
        keys, size = [], 1
        ends = {}
        for depth in range(int(lengths.max(initial=0))):
            here = np.flatnonzero(lengths > depth)
            found, which = np.unique(nodes[here] << _CODE_BITS | codes[starts[here] + depth], return_inverse=True)
            nodes[here] = which + size
            keys.append(found)
            size += len(found)
            whole = here[lengths[here] == depth + 1]
            ends[depth] = nodes[whole], numbers[whole]
        self._piece = np.full(size, -1, np.int64)
        for reached, number in ends.values():
            self._piece[reached] = number
        first = keys[0] if keys else np.zeros(0, np.int64)
        self._first = np.zeros(int(first.max(initial=0)) + 2, np.int64)  # the last for all characters that begin none
        self._first[first] = np.arange(1, len(first) + 1)
        self._keys, self._nodes, self._shift = _table(np.concatenate(keys or [first]), len(first))

    def edges(self, codes: Integers, begins: Integers, limits: Integers, unknown: int) -> Edges:
        """The pieces at ``begins``, each within ``limits`` (as long as ``codes``), sorted by length.

        A character that is no piece is ``unknown``.
        """
        nodes = self._first[np.minimum(codes[begins], len(self._first) - 1)]
        pieces = self._piece[nodes]
        found = [(begins, begins + 1, np.where(pieces < 0, unknown, pieces))]
        at, length = begins, 1
        while True:
            on = np.flatnonzero((nodes > 0) & (at + length < limits[at]))
            if not on.size:
                return Edges(*map(np.concatenate, zip(*found, strict=True)))
            at, nodes = at[on], self._next(nodes[on] << _CODE_BITS | codes[at[on] + length])
            length += 1
            pieces = self._piece[nodes]
            ends = np.flatnonzero(pieces >= 0)
            found.append((at[ends], at[ends] + length, pieces[ends]))

    def _next(self, keys: Integers) -> Integers:
        """The node behind each key, 0 if there is none."""
        slots = _slots(keys, self._shift)
        found = self._keys[slots]
        nodes = np.where(found == keys, self._nodes[slots], np.int64(0))
        other = np.flatnonzero((found != keys) & (found != _EMPTY))
        while other.size:
            slots[other] += 1
            found = self._keys[slots[other]]
            hit = found == keys[other]
            nodes[other[hit]] = self._nodes[slots[other[hit]]]
            other = other[~hit & (found != _EMPTY)]
        return nodes


def _table(keys: Integers, known: int) -> tuple[Integers, npt.NDArray[np.int32], np.uint64]:
    """An open-addressed table of keys (those behind the first ``known``) to the numbers of their places, from 1."""
    bits = max(len(keys).bit_length() + 2, 8)
    shift = np.uint64(64 - bits)
    table, nodes = np.full((1 << bits) + 256, _EMPTY), np.zeros((1 << bits) + 256, np.int32)
    left = np.arange(known, len(keys))
    slots = _slots(keys[left], shift)
    while left.size:
        free = table[slots] == _EMPTY
        table[slots[free]] = keys[left[free]]
        won = table[slots] == keys[left]
        nodes[slots[won]] = left[won] + 1
        left, slots = left[~won], slots[~won] + 1
    return table, nodes, shift


def _slots(keys: Integers, shift: np.uint64) -> Integers:
    mixed: Integers = ((keys.view(np.uint64) * _MIX) >> shift).astype(np.int64)
    return mixed


class Viterbi:
    """Cuts runs into the pieces of the best sum of ``scores``; a character that is no piece is ``unknown``."""

    def __init__(self, pieces: Mapping[str, int], scores: npt.ArrayLike, unknown: int) -> None:
        self._trie, self._unknown = Trie(pieces), unknown
        self._scores = np.array(scores, np.float64)

    def paths(self, runs: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Every run, none of them empty, with its best path; in another order."""
        alone: list[str] = []
        for some in _portions(runs):
            short = [run for run in some if len(run) <= LONG]
            if not short or sum(map(len, short)) < FEW:
                alone += some
                continue
            yield from zip(short, self._together(short), strict=True)
            alone += [run for run in some if len(run) > LONG]
        for run, edges in self.edges(run for run in alone if len(run) <= ENDLESS):
            yield run, _alone(edges, len(run))
        yield from ((run, _alone(self.walk(run), len(run))) for run in alone if len(run) > ENDLESS)

    def edges(self, runs: Iterable[str]) -> Iterator[tuple[str, list[Edge]]]:
        """Every run with all pieces in it, those that begin first first, the shorter first."""
        for some in _portions(runs):
            starts, ends, found = self._find(some)
            edges = self._in_order(found, np.repeat(starts, ends - starts + 1))
            bounds = [*np.searchsorted(np.sort(found.begins), starts).tolist(), len(edges)]
            yield from zip(some, [edges[low:high] for low, high in pairwise(bounds)], strict=True)

    def walk(self, run: str) -> Iterator[Edge]:
        """The same of one run, of any length, in little memory."""
        codes, size = as_codes(run).astype(np.int64), len(run)
        limits, origin = np.full(size, size), np.zeros(size, np.int64)
        for start in range(0, size, ENDLESS):
            begins = np.arange(start, min(start + ENDLESS, size))
            yield from self._in_order(self._trie.edges(codes, begins, limits, self._unknown), origin)

    def _in_order(self, edges: Edges, origin: Integers) -> list[Edge]:
        """Edges sorted by where they begin, counted from the ``origin`` of that place."""
        order = np.argsort(edges.begins, kind="stable")
        begins, pieces = edges.begins[order], edges.pieces[order]
        columns = begins - origin[begins], edges.ends[order] - origin[begins], self._scores[pieces], pieces
        return list(zip(*[column.tolist() for column in columns], strict=True))

    def _find(self, runs: list[str]) -> tuple[Integers, Integers, Edges]:
        """Where each of ``runs`` begins and ends when they are in a row, a place behind each, and all their pieces."""
        codes = as_codes("\0".join(runs) + "\0").astype(np.int64)
        sizes = np.array(list(map(len, runs)), np.int64)
        ends = np.cumsum(sizes + 1) - 1
        inside = np.ones(len(codes), np.bool_)
        inside[ends] = False
        limits = np.repeat(ends, sizes + 1)
        return ends - sizes, ends, self._trie.edges(codes, np.flatnonzero(inside), limits, self._unknown)

    def _together(self, runs: list[str]) -> Iterator[Path]:
        starts, ends, edges = self._find(runs)
        best = np.full(int(ends[-1]) + 1, -np.inf)
        second, came, piece = best.copy(), np.zeros(len(best), np.int64), np.zeros(len(best), np.int64)
        best[starts] = 0.0
        for begins, last, pieces in _steps(edges, starts, ends):
            sums, before = best[begins] + self._scores[pieces], best[last]
            won = sums > before
            second[last] = np.where(won, before, np.maximum(second[last], sums))
            best[last] = np.maximum(before, sums)
            came[last[won]], piece[last[won]] = begins[won], pieces[won]
        marked = np.zeros(len(best), np.bool_)
        gaps, at, own = np.full(len(ends), np.inf), ends, np.arange(len(ends))
        while own.size:
            marked[at] = True
            gaps[own] = np.minimum(gaps[own], best[at] - second[at])
            at = came[at]
            on = at > starts[own]
            at, own = at[on], own[on]
        flat = piece[marked].tolist()
        bounds = pairwise([0, *np.cumsum(marked)[ends].tolist()])
        cuts = [tuple(flat[low:high]) for low, high in bounds]
        return map(Path, cuts, best[ends].tolist(), (gaps / (ends - starts)).tolist())


def _steps(edges: Edges, starts: Integers, ends: Integers) -> Iterator[Edges]:
    """``edges`` that begin at the first character of their runs, at the second, and so on.

    No two of a step end at the same place.
    """
    steps = (edges.begins - np.repeat(starts, ends - starts + 1)[edges.begins]).astype(np.uint8)
    order = np.argsort(steps, kind="stable")
    begins, last, pieces = edges.begins[order], edges.ends[order], edges.pieces[order]
    for low, high in pairwise([0, *np.cumsum(np.bincount(steps)).tolist()]):
        yield Edges(begins[low:high], last[low:high], pieces[low:high])


def _portions(runs: Iterable[str]) -> Iterator[list[str]]:
    """``runs`` in portions of about ``AT_ONCE`` characters."""
    some: list[str] = []
    size = 0
    for run in runs:
        some.append(run)
        size += len(run) + 1
        if size > AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def near(edges: list[Edge], size: int, slack: float) -> list[Edge]:
    """Those of ``edges`` that lie on a path through a run of ``size`` whose sum is at most ``slack`` below the best."""
    to = [0.0] + [-math.inf] * size
    for begin, end, score, _ in edges:
        to[end] = max(to[end], to[begin] + score)
    behind = [-math.inf] * size + [0.0]
    for begin, end, score, _ in reversed(edges):
        behind[begin] = max(behind[begin], score + behind[end])
    least = to[size] - slack - 1e-6  # more than float64 rounds
    return [edge for edge in edges if to[edge[0]] + edge[2] + behind[edge[1]] >= least]


def _alone(edges: Iterable[Edge], size: int) -> Path:
    best, second = [-math.inf] * (size + 1), [-math.inf] * (size + 1)
    came = [(0, 0)] * (size + 1)
    best[0] = 0.0
    for begin, end, score, piece in edges:
        candidate = best[begin] + score
        if candidate > best[end]:
            second[end], best[end], came[end] = best[end], candidate, (begin, piece)
        elif candidate > second[end]:
            second[end] = candidate
    gap, at = math.inf, size
    pieces = []
    while at:
        gap = min(gap, best[at] - second[at])
        at, piece = came[at]
        pieces.append(piece)
    return Path(tuple(pieces[::-1]), best[size], gap / size)
