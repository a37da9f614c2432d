"""Unigram ids as the sentencepiece library computes them, rounding included; remembers what it has cut before.

sentencepiece finds the best path through a whole text and adds scores up in float32 (EncodeOptimized of
unigram_model.cc).
Where two paths differ by less than the rounding ("xxxx", or two near-equal readings late in a long text) its choice
depends on everything in front, and no tokenizer that works word by word in float64 can know it. Here:

* a text is cut where no piece can lie across: at blanks, and between two characters that are neighbours in no
  piece. The best path of a whole is the best paths of its runs, up to rounding, so runs are cut once and remembered.
* with the path of a run goes its ``gap``: the least lead with which it won at any of its places. While the gap exceeds
  what rounding can do at the score reached, the remembered path is sentencepiece's.
* a run whose gap is smaller is cut again, in float32, from the score reached.

Equal to sentencepiece 0.2.3 for texts that reach a score of -2**18, some 20000 tokens. Beyond, sentencepiece was
seen to choose as if its sums were finer than float32, for a reason not found; there, runs are cut as at a text's
beginning.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import NamedTuple

import numpy as np

from glmlike.tokenization.charsmap import Charsmap
from glmlike.tokenization.sentencepiece_model import SentencePieceModel

UNKNOWN_PENALTY = 10.0  # kUnkPenalty of unigram_model.cc
USER_SCORE = -0.1  # its bonus for user-defined symbols, length * FLT_MIN - 0.1
REMEMBERED = 1 << 18  # runs, and words; then memory starts afresh
CLOSE = 2.0**-5  # gaps rounding can never close while a text's score is above -FAR
FAR = 2.0**18


class Path(NamedTuple):
    """The best cut of a run or word: its ids, its pieces, the score, and the least gap a character of any run in it.

    ``pieces`` are indices of pieces; ``ids`` differs from it by the offset and by the bytes of unknown characters.
    """

    ids: tuple[int, ...]
    pieces: tuple[int, ...]
    score: float
    gap: float


class UnigramExact:
    """Encodes with ``model``'s pieces; ``offset`` is added to every id."""

    def __init__(self, model: SentencePieceModel, offset: int = 0) -> None:
        normal, users = model.of_type("normal"), model.of_type("user")
        self._offset = offset
        self._unk_id = model.unk_id
        self._bytes = model.of_type("byte") if model.byte_fallback else []
        self.charsmap = Charsmap(model.precompiled_charsmap)
        self.users = re.compile("(" + "|".join(re.escape(model.pieces[index]) for index in users) + ")")
        self._scores = {model.pieces[index]: (model.scores[index], index) for index in normal}
        self._scores.update((model.pieces[index], (USER_SCORE, index)) for index in users)
        self._unknown = min(model.scores[index] for index in normal) - UNKNOWN_PENALTY
        self._prefixes = {piece[:end] for piece in self._scores for end in range(1, len(piece))}
        self._pairs = {piece[at : at + 2] for piece in self._scores for at in range(len(piece) - 1)}
        self._float32 = np.full(len(model.pieces), self._unknown, np.float32)
        for score, index in self._scores.values():
            self._float32[index] = score
        self._runs: dict[str, Path] = {}
        self._words = _Words(self)

    def normalize(self, text: str) -> str:
        """``text`` (tabs, newlines and runs of blanks already spelled) as sentencepiece's normaliser leaves it.

        User-defined symbols pass as they are: no source of the table reaches into one or across it.
        """
        if text.isascii() or not self.charsmap.composing.search(text) or not self.users.search(text):
            text = self.charsmap.normalize(text)
        else:
            parts = self.users.split(text)
            parts[::2] = [self.charsmap.normalize(part) for part in parts[::2]]
            text = "".join(parts)
        words = [word for word in text.split(" ") if word]
        return "▁" + "▁".join(words) if words else ""

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` (spelled as for ``normalize``); with byte fallback unknown characters are their bytes."""
        return self.encode_normal(self.normalize(text))

    def encode_normal(self, normal: str) -> list[int]:
        """The ids of a text as ``normalize`` leaves it."""
        if not normal:
            return []
        words, known = normal[1:].split("▁"), self._words
        paths = [known[word] for word in words]
        if known.close.isdisjoint(words) and sum([path.score for path in paths]) > -FAR:
            ids = list(chain.from_iterable([path.ids for path in paths]))
        else:
            ids = self._rounded(words, paths)
        return ids if self._bytes else self._fused(ids)

    def word(self, word: str) -> Path:
        """The best path of a word, given without the blank in front of it; rounding set aside."""
        return self._words[word]

    def runs(self, word: str) -> list[str]:
        """``word`` cut between any two characters that no piece has side by side."""
        pairs, out, start = self._pairs, [], 0
        for at in range(1, len(word)):
            if word[at - 1 : at + 1] not in pairs:
                out.append(word[start:at])
                start = at
        out.append(word[start:])
        return out

    def run(self, run: str) -> Path:
        """The best path of one run, from memory if it was met before."""
        found = self._runs.get(run)
        if found is None:
            if len(self._runs) >= REMEMBERED:
                self._runs.clear()
            found = self._runs[run] = self._best(run)
        return found

    def _edges(self, run: str, start: int) -> list[tuple[int, float, int]]:
        """(end, score, piece) of the pieces that begin at ``start``, shortest first; an unknown if none is one long."""
        scores, prefixes, single = self._scores, self._prefixes, False
        edges = []
        for end in range(start + 1, len(run) + 1):
            part = run[start:end]
            if (found := scores.get(part)) is not None:
                edges.append((end, *found))
                single = single or end == start + 1
            if part not in prefixes:
                break
        if not single:
            edges.append((start + 1, self._unknown, self._unk_id))
        return edges

    def _best(self, run: str) -> Path:
        size = len(run)
        best, second = [-math.inf] * (size + 1), [-math.inf] * (size + 1)
        came = [(0, 0)] * (size + 1)
        best[0] = 0.0
        for start in range(size):
            for end, score, piece in self._edges(run, start):
                candidate = best[start] + score
                if candidate > best[end]:
                    second[end], best[end], came[end] = best[end], candidate, (start, piece)
                elif candidate > second[end]:
                    second[end] = candidate
        gap, at = math.inf, size
        while at:
            gap, at = min(gap, best[at] - second[at]), came[at][0]
        return self._path(run, came, best[size], gap / size)

    def _best_from(self, run: str, reached: float) -> Path:
        """The path sentencepiece takes when ``reached`` is what it has added up: every sum is a float32."""
        size = len(run)
        best = [-math.inf] * (size + 1)
        best[0] = reached
        came = [(0, 0)] * (size + 1)
        for start in range(size):
            for end, score, piece in self._edges(run, start):
                candidate = float(np.float32(best[start] + score))
                if candidate > best[end]:
                    best[end], came[end] = candidate, (start, piece)
        return self._path(run, came, 0.0, 0.0)

    def _path(self, run: str, came: list[tuple[int, int]], score: float, gap: float) -> Path:
        steps, at = [], len(run)
        while at:
            start, piece = came[at]
            steps.append((run[start:at], piece))
            at = start
        steps.reverse()
        pieces = tuple(piece for _, piece in steps)
        ids: list[int] = []
        for text, piece in steps:
            if piece == self._unk_id and self._bytes:
                ids.extend(self._bytes[byte] + self._offset for byte in text.encode("utf8"))
            else:
                ids.append(piece + self._offset)
        return Path(pieces if pieces == tuple(ids) else tuple(ids), pieces, score, gap)

    def _rounded(self, words: list[str], paths: list[Path]) -> list[int]:
        """Ids of ``words``: where rounding could decide, a run is cut again from the float32 score reached."""
        ids: list[int] = []
        pending: list[int] = []  # pieces taken whose scores are not yet in `reached`
        reached, about = 0.0, 0.0
        for word, path in zip(words, paths, strict=True):
            if path.gap > _doubt(max(about + path.score, -FAR)):
                parts: list[tuple[str, Path]] = [(word, path)]
            else:
                parts = [(run, self.run(run)) for run in self.runs("▁" + word)]
            for run, part in parts:
                about += part.score
                if part.gap <= _doubt(about if about > -FAR else part.score):
                    reached, pending = self._added(reached, pending), []
                    part = self._best_from(run, reached if about > -FAR else 0.0)
                ids.extend(part.ids)
                pending.extend(part.pieces)
        return ids

    def _added(self, reached: float, pieces: list[int]) -> float:
        scores = np.concatenate([np.array([reached], np.float32), self._float32[pieces]])
        return float(np.add.accumulate(scores, dtype=np.float32)[-1])

    def _fused(self, ids: list[int]) -> list[int]:
        """Unknown pieces in a row are one."""
        unknown = self._unk_id + self._offset
        return [each for at, each in enumerate(ids) if each != unknown or not at or ids[at - 1] != unknown]


def _doubt(score: float) -> float:
    """The gap a character that float32 sums near ``score`` can close.

    Each sum errs by half a unit in the last place; two paths of at most a piece a character are compared.
    """
    return math.ldexp(2.0, math.frexp(abs(score) * 1.01 + 1)[1] - 24)


class _Words(dict[str, Path]):
    """Words (without the blank in front) to their paths; ``close`` holds those whose gap rounding may close."""

    def __init__(self, exact: UnigramExact) -> None:
        self._exact = exact
        self.close: set[str] = set()

    def __missing__(self, word: str) -> Path:
        if len(self) >= REMEMBERED:
            self.clear()
            self.close.clear()
        parts = [self._exact.run(run) for run in self._exact.runs("▁" + word)]
        path = Path(
            tuple(chain.from_iterable(part.ids for part in parts)),
            tuple(chain.from_iterable(part.pieces for part in parts)),
            sum(part.score for part in parts),
            min(part.gap for part in parts),
        )
        if path.gap <= CLOSE:
            self.close.add(word)
        self[word] = path
        return path
