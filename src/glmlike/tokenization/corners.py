"""The few texts whose ids Rust alone does not give as SentencePiece does: found by a look, cut exactly.

* marks that compose or reorder, and jamo: Rust's NFKC composes them, SentencePiece's older table takes the longest
  source it has (ChatGLM-6B, GLM-130B, GLM-10B-Chinese);
* a unit three or more times in a row, in lengths of which two cuts have the same score: float32 rounding decides
  (ChatGLM-6B, GLM-130B).

On 5.2 MB of hostile mixed text (2300 long texts, 50000 short ones) no text that is left to Rust differed. Eight of the
flagged did, by a row of one mark cut at another place ("----------------" twice, then "------", or the reverse): what
sentencepiece rounds there is not fully known. So did strings of 400 KB, in 10 to 30 of 100000 tokens; see
``unigram_exact``. All texts decode as with sentencepiece.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from glmlike.tokenization import sentencepiece_bpe, unigram
from glmlike.tokenization.alignment import Span, align
from glmlike.tokenization.charsmap import Charsmap
from glmlike.tokenization.sentencepiece_model import SentencePieceModel
from glmlike.tokenization.unigram_exact import CLOSE

_JAMO = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\ud7b0-\ud7fb\uff9e\uff9f\uffa0-\uffdc"
_UNLIKE = "\ufdd0\U0001f23b"  # the one that stands for another on its way through Rust; one newer than the table
_POWER = re.compile(r"^(.{1,8}?)\1+$", re.MULTILINE)
_LONGEST = 64  # of a repetition whose ties are looked up; longer ones are taken for tied


class Cut(NamedTuple):
    """A token of a text: its id and piece, and the characters it covers."""

    id: int
    piece: str
    start: int
    end: int


@cache
def composing() -> re.Pattern[str]:
    """Finds a character that reorders or composes with others, by Unicode as Python has it."""
    codes = {code for code in range(0x300, 0x30000) if unicodedata.combining(chr(code))}
    for code in range(0xC0, 0x30000):
        parts = unicodedata.decomposition(chr(code)).split()
        if parts and not parts[0].startswith("<"):
            codes |= {int(part, 16) for part in parts[1:]}
    return re.compile(f"[{''.join(map(chr, sorted(codes)))}{_JAMO}{_UNLIKE}]")


@dataclass
class UnigramCorners:
    """Of ChatGLM-6B's and GLM-130B's vocabulary, whose ids begin at ``offset``."""

    model: SentencePieceModel
    offset: int = 0

    def needed(self, text: str) -> bool:
        """Whether SentencePiece may give other ids than Rust."""
        if not text.isascii():
            if composing().search(text):
                return True
            text = self._charsmap.each(text)
        return any(self._tied(run, size) for run, size in _repetitions(text, self._sizes))

    def cut(self, text: str) -> list[Cut]:
        """SentencePiece's tokens of ``text``."""
        pieces = self._code.pieces
        normal, spans = align(text, pieces.charsmap, pieces.users, unigram.spell)
        if not normal:
            return []
        normal = "▁" + normal.replace(" ", "▁")
        spans = [(spans[0][0], spans[0][0]), *spans]
        out, at, missing = [], 0, 0
        for number in pieces.encode_normal(normal):
            piece = self._code.model.pieces[number - self.offset]
            size = len(piece)
            if self._code.model.types[number - self.offset] == "byte":  # one of an unknown character's
                missing = (missing or len(normal[at].encode("utf8"))) - 1
                out.append(Cut(number, piece, *spans[at]))
                at += not missing
                continue
            out.append(Cut(number, piece, spans[at][0], spans[at + size - 1][1]))
            at += size
        return out

    @cached_property
    def _code(self) -> unigram.UnigramCode:
        return unigram.exact(self.model, image_tokens=self.offset)

    @cached_property
    def _charsmap(self) -> Charsmap:
        return Charsmap(self.model.precompiled_charsmap)

    @cached_property
    def _powers(self) -> dict[str, dict[int, float]]:
        """Units of which a piece is several in a row: the number in a row, with the score of that piece."""
        pieces, scores = self.model.pieces, self.model.scores
        normal = self.model.of_type("normal")
        index = {pieces[each]: each for each in normal}
        found: dict[str, dict[int, float]] = {}
        for match in _POWER.finditer("\n".join(map(pieces.__getitem__, normal))):
            piece, unit = match[0], match[1]
            alone = {1: scores[index[unit]]} if unit in index else {}
            found.setdefault(unit, alone)[len(piece) // len(unit)] = scores[index[piece]]
        return found

    @cached_property
    def _sizes(self) -> list[int]:
        return sorted({len(unit) for unit in self._powers})

    def _tied(self, run: str, size: int) -> bool:
        """Whether ``run``, of period ``size``, has two cuts of one score; or would, one unit shorter."""
        for phase in range(size):
            unit = run[phase : phase + size]
            if unit in self._powers:
                count = (len(run) - phase) // size
                if count > _LONGEST or any(self._ties(unit)[max(count - less, 0)] for less in range(2)):
                    return True
        return False

    def _ties(self, unit: str) -> list[bool]:
        known = self.__dict__.setdefault("_known_ties", {})
        if unit not in known:
            known[unit] = _ties(self._powers[unit])
        ties: list[bool] = known[unit]
        return ties

    def __getstate__(self) -> dict[str, object]:
        """Without what was made of the vocabulary: it is made again where it is needed."""
        return {"model": self.model, "offset": self.offset}


def _ties(powers: dict[int, float]) -> list[bool]:
    """For each number of units in a row up to the longest: whether its best cut leads by less than rounding."""
    best, close = [0.0], [False]
    for size in range(1, _LONGEST + 1):
        options = sorted((best[size - count] + score, size - count) for count, score in powers.items() if count <= size)
        options = options or [(best[-1] - 100.0, size - 1)]
        tied = len(options) > 1 and options[-1][0] - options[-2][0] <= CLOSE
        best.append(options[-1][0])
        close.append(tied or close[options[-1][1]])
    return close


def _repetitions(text: str, sizes: Iterable[int]) -> Iterator[tuple[str, int]]:
    """(run, size) of all that is there three times in a row or more, of units of one of ``sizes`` characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for size in sizes:
        same = np.concatenate(([0], codes[:-size] == codes[size:], [0])).astype(np.int8)
        edges = np.flatnonzero(np.diff(same))
        starts, ends = edges[::2], edges[1::2]
        for at in np.flatnonzero(ends - starts >= 2 * size):
            yield text[starts[at] : ends[at] + size], size


@dataclass
class BpeCorners:
    """Of GLM-10B-Chinese's vocabulary: the text is normalised by its own table, then cut in Rust."""

    model: SentencePieceModel

    def needed(self, text: str) -> bool:
        """Whether SentencePiece may give other ids than Rust."""
        return not text.isascii() and composing().search(text) is not None

    def cut(self, text: str) -> list[Cut]:
        """SentencePiece's tokens of ``text``."""
        charsmap, encode = self._code
        normal, spans = align(text, charsmap, self._users, None)
        return encode(normal, spans)

    @cached_property
    def _users(self) -> re.Pattern[str] | None:
        users = [self.model.pieces[index] for index in self.model.of_type("user")]
        return re.compile("|".join(map(re.escape, users))) if users else None

    @cached_property
    def _code(self) -> tuple[Charsmap, Callable[[str, list[Span]], list[Cut]]]:
        backend = sentencepiece_bpe.build(replace(self.model, precompiled_charsmap=b""))

        def encode(normal: str, spans: list[Span]) -> list[Cut]:
            found = backend.encode(normal)
            places = ([spans[start][0], spans[max(end, start + 1) - 1][1]] for start, end in found.offsets)
            return [
                Cut(number, piece, start, end)
                for number, piece, (start, end) in zip(found.ids, found.tokens, places, strict=True)
            ]

        return Charsmap(self.model.precompiled_charsmap), encode

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model}


Corners = UnigramCorners | BpeCorners


def corners_of(model: SentencePieceModel, backend: Tokenizer) -> Corners | None:
    """The corners of the vocabulary that ``backend`` was built from; None where it has none, or is another's."""
    offset = backend.token_to_id(model.pieces[model.unk_id])
    last = len(model.pieces) - 1
    if offset is None or backend.id_to_token(offset + last) != model.pieces[last]:
        return None
    if model.algorithm == "unigram":
        return UnigramCorners(model, offset)
    return BpeCorners(model) if model.precompiled_charsmap and not model.byte_fallback else None
