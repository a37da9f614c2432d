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
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from glmlike.tokenization.alignment import normalize
from glmlike.tokenization.charsmap import Charsmap
from glmlike.tokenization.cutting import PieceCutter
from glmlike.tokenization.remembered import one_in_a_row
from glmlike.tokenization.sentencepiece_model import SentencePieceModel

UNKNOWN_PENALTY = 10.0  # kUnkPenalty of unigram_model.cc
USER_BONUS = 0.1  # of a user-defined symbol for each byte but one
REMEMBERED = 1 << 22  # characters of all remembered runs; then memory starts afresh
FAR = 100000.0  # kScoreResetThreshold
CLOSE = 2.0**-5  # gaps that rounding can never close while scores are above -FAR
_NOTHING: tuple[float, int] | tuple[()] = ()  # what no piece begins with


class Path(NamedTuple):
    """The best cut of a run: its ids, its pieces, the score, and the gap a character.

    ``pieces`` are indices of pieces; ``ids`` differs from it by the offset and by the bytes of unknown characters.
    """

    ids: tuple[int, ...]
    pieces: tuple[int, ...]
    score: float
    gap: float


class Memory(NamedTuple):
    """Paths of runs that were met, and the gaps of those whose gap rounding may close."""

    paths: dict[str, Path]
    close: dict[str, float]


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
        self._unknown = float(np.float32(min(model.scores[index] for index in normal) - UNKNOWN_PENALTY))
        whole = [spelled[index] for index in (*normal, *users)]
        prefixes = {piece[:end] for piece in whole for end in range(1, len(piece))}
        self._edges: dict[str, tuple[float, int] | None] = dict.fromkeys(prefixes)  # None: no piece itself
        self._edges.update((spelled[index], (model.scores[index], index)) for index in normal)
        self._edges.update((spelled[index], (_user_score(spelled[index]), index)) for index in users)
        self._float32 = np.full(len(model.pieces), self._unknown, np.float32)
        for found in self._edges.values():
            if found is not None:
                self._float32[found[1]] = found[0]
        self._cut = PieceCutter(spelled)
        self._memory, self._size = Memory({}, {}), 0

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
            self._memory, self._size = Memory({}, {}), 0
        memory, runs = self._memory, self._cut(texts)  # nothing is ever taken out of this memory
        missing = set(chain.from_iterable(runs)).difference(memory.paths)
        for run in missing:
            memory.paths[run] = path = self._best(run)
            if path.gap <= CLOSE:
                memory.close[run] = path.gap
            self._size += len(run)
        ids = [self._ids(each, memory) for each in runs]
        return ids if self._bytes else [one_in_a_row(each, self._unk_id + self._offset) for each in ids]

    def run(self, run: str) -> Path:
        """The best path of one run, which has a blank where pieces have "▁"; rounding set aside."""
        return self._memory.paths.get(run) or self._best(run)

    def runs(self, text: str) -> list[str]:
        """A text as ``normalize`` leaves it, in its runs."""
        return self._cut([text])[0]

    def _ids(self, runs: list[str], memory: Memory) -> list[int]:
        paths = list(map(memory.paths.__getitem__, runs))
        if not memory.close.keys().isdisjoint(runs):
            score = sum([path.score for path in paths])
            doubt = _doubt(max(score, -FAR))
            doubted = {run for run in memory.close.keys() & set(runs) if memory.close[run] <= doubt}
            if doubted:
                paths = self._rounded(runs, paths, doubted, score)
        return list(chain.from_iterable([path[0] for path in paths]))

    def _best(self, run: str) -> Path:
        get, unknown, size = self._edges.get, (self._unknown, self._unk_id), len(run)
        best, second = [-math.inf] * (size + 1), [-math.inf] * (size + 1)
        came: list[tuple[int, int]] = [(0, 0)] * (size + 1)
        best[0] = 0.0
        for start in range(size):
            base = best[start]
            for end in range(start + 1, size + 1):
                found = get(run[start:end], _NOTHING)
                if not found:
                    if end == start + 1:
                        found = unknown
                    elif found is None:
                        continue
                    else:
                        break
                score, piece = found
                candidate = base + score
                if candidate > best[end]:
                    second[end], best[end], came[end] = best[end], candidate, (start, piece)
                elif candidate > second[end]:
                    second[end] = candidate
        gap, at = math.inf, size
        while at:
            gap, at = min(gap, best[at] - second[at]), came[at][0]
        return self._path(run, came, best[size], gap / size)

    def _best_from(self, run: str, reached: float) -> tuple[Path, float]:
        """The path sentencepiece takes when ``reached`` is what it has added up, and what it has after: in float32."""
        size, rounded = len(run), np.float32
        best = [-math.inf] * (size + 1)
        best[0] = reached
        came: list[tuple[int, int]] = [(0, 0)] * (size + 1)
        for start in range(size):
            if best[start] < -FAR:
                best[start:] = [float(rounded(each - best[start])) for each in best[start:]]
            for end, score, piece in self._from(run, start):
                candidate = float(rounded(best[start] + score))
                if candidate > best[end]:
                    best[end], came[end] = candidate, (start, piece)
        return self._path(run, came, 0.0, 0.0), best[size]

    def _from(self, run: str, start: int) -> Iterator[tuple[int, float, int]]:
        """(end, score, piece) of the pieces that begin at ``start``, shortest first; an unknown if none is one long."""
        for end in range(start + 1, len(run) + 1):
            found = self._edges.get(run[start:end], _NOTHING)
            if found:
                yield (end, *found)
            elif end == start + 1:
                yield end, self._unknown, self._unk_id
            elif found is not None:
                break

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

    def _rounded(self, runs: list[str], paths: list[Path], doubted: set[str], score: float) -> list[Path]:
        """``paths``, together of this score, those of ``doubted`` runs cut again from the float32 score reached."""
        again = [at for at, run in enumerate(runs) if run in doubted]
        if score < -FAR * 0.99:  # where sums begin anew is found step by step
            again = list(range(again[-1] + 1))
        out: list[Path] = []
        reached, done = 0.0, 0
        for at in again:
            out += paths[len(out) : at]
            pieces = list(chain.from_iterable([path.pieces for path in out[done:]]))
            steps = np.concatenate(([np.float32(reached)], self._float32[pieces]))
            path, reached = self._best_from(runs[at], float(np.add.accumulate(steps, dtype=np.float32)[-1]))
            out.append(path)
            done = at + 1
        return out + paths[len(out) :]


def _user_score(piece: str) -> float:
    return float(np.float32(USER_BONUS * (len(piece.encode("utf8")) - 1)))


def _doubt(score: float) -> float:
    """The gap a character that float32 sums near ``score`` can close.

    Each sum errs by half a unit in the last place; two paths of at most a piece a character are compared.
    """
    return math.ldexp(2.0, math.frexp(abs(score) * 1.01 + 1)[1] - 24)
