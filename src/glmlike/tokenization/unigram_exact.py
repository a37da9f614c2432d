"""Unigram ids as the sentencepiece library computes them, rounding included; remembers what it has cut before.

sentencepiece finds the best path through a whole text and adds scores up in float32 (EncodeOptimized of
unigram_model.cc, here as of 0.2.3), beginning anew from 0 where a sum has passed -100000. Where two paths differ by
less than the rounding ("xxxx", or two near-equal readings late in a long text) its choice depends on everything in
front, and no tokenizer that works word by word in float64 can know it. Here:

* a text is cut where no piece can lie across, between two characters that are neighbours in no piece
  (``cutting.PieceCutter``). The best path of a whole is the best paths of its runs, up to rounding, so runs are cut
  once and remembered.
* with the path of a run goes its ``gap``: the least lead with which it won at any of its places. While the gap exceeds
  what rounding can do at the score reached, the remembered path is sentencepiece's.
* a run whose gap is smaller is cut again, as sentencepiece does, from the score reached.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from glmlike.tokenization.alignment import normalize
from glmlike.tokenization.charsmap import Charsmap
from glmlike.tokenization.cutting import PieceCutter
from glmlike.tokenization.remembered import one_in_a_row
from glmlike.tokenization.sentencepiece_model import SentencePieceModel
from glmlike.tokenization.unigram_paths import ENDLESS, Edge, Viterbi, near

UNKNOWN_PENALTY = 10.0  # kUnkPenalty of unigram_model.cc
USER_BONUS = 0.1  # of a user-defined symbol for each byte but one
REMEMBERED = 1 << 22  # characters of all remembered runs; then memory starts afresh
FAR = 100000.0  # kScoreResetThreshold
CLOSE = 2.0**-5  # gaps that rounding can never close while scores are above -FAR


class Memory(NamedTuple):
    """What is known of runs that were met: their ids and the sums of their scores, signs set aside.

    Of some, what pieces they are, if others than the ids. Of those whose gap rounding may close, the gap. Of those that
    were cut again, the pieces that matter.
    """

    ids: dict[str, tuple[int, ...]]
    sums: dict[str, float]
    pieces: dict[str, tuple[int, ...]]
    close: dict[str, float]
    edges: dict[str, list[Edge]]


class UnigramExact:
    """Encodes with ``model``'s pieces; ``offset`` is added to every id. Safe to use from several threads."""

    def __init__(self, model: SentencePieceModel, offset: int = 0) -> None:
        normal, users = model.of_type("normal"), model.of_type("user")
        self._offset = offset
        self._unk_id = model.unk_id
        self._bytes = model.of_type("byte") if model.byte_fallback else []
        self.charsmap = Charsmap(model.precompiled_charsmap)
        self.users = re.compile("(" + "|".join(re.escape(model.pieces[index]) for index in users) + ")")
        spelled = [piece.replace("▁", " ") for piece in model.pieces]
        scores = [min(model.scores[index] for index in normal) - UNKNOWN_PENALTY] * len(spelled)
        for index in normal:
            scores[index] = model.scores[index]
        for index in users:
            scores[index] = USER_BONUS * (len(spelled[index].encode("utf8")) - 1)
        self._users = frozenset(users)
        self._greatest = 1 - scores[model.unk_id]  # sum a character, without signs, of any best path
        self._lengths = list(map(len, spelled))
        self._lengths[model.unk_id] = 1
        self._float32 = np.array(scores, np.float32)
        self._viterbi = Viterbi({spelled[index]: index for index in (*normal, *users)}, self._float32, model.unk_id)
        self._cut = PieceCutter(spelled)
        self._memory, self._size = _nothing(), 0

    def normalize(self, text: str) -> str:
        """``text`` (tabs, newlines and runs of blanks already spelled) as sentencepiece's normaliser leaves it.

        Words with one blank in front of each; user-defined symbols pass as they are.
        """
        return normalize(text, self.charsmap, self.users)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` (spelled as for ``normalize``); with byte fallback unknown characters are their bytes."""
        return self.encode_normal([self.normalize(text)])[0]

    def encode_normal(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts as ``normalize`` leaves them."""
        if self._size > REMEMBERED:
            self._memory, self._size = _nothing(), 0
        memory, runs = self._memory, self._cut(texts)  # nothing is ever taken out of this memory
        missing = set(chain.from_iterable(runs)).difference(memory.ids)
        if missing:
            self._remember(missing, memory)
        ids = [list(chain.from_iterable(map(memory.ids.__getitem__, each))) for each in runs]
        doubted = [(at, each) for at, text in enumerate(runs) if (each := self._doubted(text, memory))]
        self._prepare({run for _, each in doubted for run in each}, memory)
        for at, each in doubted:
            ids[at] = self._rounded(runs[at], each, memory)
        return ids if self._bytes else [one_in_a_row(each, self._unk_id + self._offset) for each in ids]

    def gap(self, run: str) -> float:
        """The gap a character of one run, which has a blank where pieces have "▁"."""
        ((_, path),) = self._viterbi.paths([run])
        return path.gap

    def runs(self, text: str) -> list[str]:
        """A text as ``normalize`` leaves it, in its runs."""
        return self._cut([text])[0]

    def _remember(self, runs: set[str], memory: Memory) -> None:
        for run, (pieces, score, gap) in self._viterbi.paths(runs):
            ids = self._as_ids(run, pieces)
            if ids is not pieces:
                memory.pieces[run] = pieces
            if gap <= CLOSE:
                memory.close[run] = gap
            falls = self._users.isdisjoint(pieces)
            memory.sums[run] = -score if falls else float(np.abs(self._float32[list(pieces)]).sum())
            memory.ids[run] = ids  # the last: who finds this finds the rest
        self._size += sum(map(len, runs))

    def _as_ids(self, run: str, pieces: tuple[int, ...]) -> tuple[int, ...]:
        if self._bytes and self._unk_id in pieces:
            ids: list[int] = []
            at = 0
            for piece in pieces:
                size = self._lengths[piece]
                if piece == self._unk_id:
                    ids += [self._bytes[byte] + self._offset for byte in run[at : at + size].encode("utf8")]
                else:
                    ids.append(piece + self._offset)
                at += size
            return tuple(ids)
        return tuple([piece + self._offset for piece in pieces]) if self._offset else pieces

    def _doubted(self, runs: list[str], memory: Memory) -> set[str]:
        """The runs of a text whose gap rounding may close."""
        if memory.close.keys().isdisjoint(runs):
            return set()
        close = memory.close.keys() & set(runs)
        if min(map(memory.close.__getitem__, close)) > _doubt(self._greatest * sum(map(len, runs))):
            return set()
        doubt = _doubt(sum(map(memory.sums.__getitem__, runs)))
        return {run for run in close if memory.close[run] <= doubt}

    def _prepare(self, runs: set[str], memory: Memory) -> None:
        """Find the pieces that may matter where ``runs`` are cut again."""
        new = {run for run in runs.difference(memory.edges) if len(run) <= ENDLESS}
        for run, edges in self._viterbi.edges(new):
            memory.edges[run] = near(edges, len(run), CLOSE * len(run))

    def _rounded(self, runs: list[str], doubted: set[str], memory: Memory) -> list[int]:
        """The ids of ``runs``, ``doubted`` ones cut again from the float32 score reached."""
        again, edges = [at for at, run in enumerate(runs) if run in doubted], memory.edges
        if sum(map(memory.sums.__getitem__, runs)) > FAR * 0.99:  # where sums begin anew is found step by step
            again = list(range(again[-1] + 1))
            edges = dict(self._viterbi.edges({run for run in runs[: len(again)] if len(run) <= ENDLESS}))
        out: list[int] = []
        reached, done = np.float32(0), 0
        for at in again:
            sure = runs[done:at]
            out.extend(chain.from_iterable(map(memory.ids.__getitem__, sure)))
            pieces = list(chain.from_iterable([memory.pieces.get(run, memory.ids[run]) for run in sure]))
            steps = np.concatenate(([reached], self._float32[pieces]))
            reached = np.add.accumulate(steps, dtype=np.float32)[-1]
            cut, after = _from(float(reached), edges.get(runs[at]) or self._viterbi.walk(runs[at]), len(runs[at]))
            reached = np.float32(after)
            out += self._as_ids(runs[at], cut)
            done = at + 1
        out.extend(chain.from_iterable(map(memory.ids.__getitem__, runs[done:])))
        return out


def _nothing() -> Memory:
    return Memory({}, {}, {}, {}, {})


def _from(reached: float, edges: Iterable[Edge], size: int) -> tuple[tuple[int, ...], float]:
    """The pieces sentencepiece takes when ``reached`` is what it has added up, and what it has after: in float32."""
    best = [-math.inf] * (size + 1)
    best[0] = reached
    came = [(0, 0)] * (size + 1)
    rounded, at = np.float32, -1
    for begin, end, score, piece in edges:
        if begin > at:
            at, base = begin, best[begin]
            if base < -FAR:
                best[at:] = [float(rounded(each - base)) for each in best[at:]]
                base = best[at]
        candidate = float(rounded(base + score))
        if candidate > best[end]:
            best[end], came[end] = candidate, (begin, piece)
    pieces, at = [], size
    while at:
        at, piece = came[at]
        pieces.append(piece)
    return tuple(pieces[::-1]), best[size]


def _doubt(reached: float) -> float:
    """The gap a character that float32 sums up to ``reached``, or to where they begin anew, can close.

    Each sum errs by half a unit in the last place; two paths of at most a piece a character are compared.
    """
    return math.ldexp(2.0, math.frexp(min(reached, FAR) * 1.01 + 1)[1] - 24)
