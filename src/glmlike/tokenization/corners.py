"""What SentencePiece makes of texts that Rust alone cuts otherwise, with the place of every token.

* marks that compose or reorder, and jamo: Rust's NFKC composes them, SentencePiece's older table takes the longest
  source it has (ChatGLM-6B, GLM-130B, GLM-10B-Chinese);
* two cuts of nearly the same score, most of them of a mark many times in a row, some of long Chinese: float32 rounding
  decides, and with it all text in front (ChatGLM-6B, GLM-130B).

Which texts these are is not guessed: the ids of every text are SentencePiece's own (``encoder``), and Rust's
encoding is kept where it has the same ids and neither a run of blanks nor a composed mark, which it places wrongly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer

from glmlike.tokenization import sentencepiece_bpe, unigram
from glmlike.tokenization.alignment import align, normalize
from glmlike.tokenization.charsmap import Charsmap
from glmlike.tokenization.remembered import Encoder, encoder_of_pieces
from glmlike.tokenization.sentencepiece_model import SentencePieceModel


class Cut(NamedTuple):
    """A token of a text: its id and piece, and the characters it covers."""

    id: int
    piece: str
    start: int
    end: int


@dataclass
class UnigramCorners:
    """Of ChatGLM-6B's and GLM-130B's vocabulary, whose ids begin at ``offset``."""

    model: SentencePieceModel
    offset: int = 0

    @cached_property
    def encoder(self) -> unigram.UnigramCode:
        """SentencePiece's ids of texts."""
        return unigram.exact(self.model, image_tokens=self.offset)

    def misplaced(self, text: str) -> bool:
        """Whether Rust may place tokens of ``text`` wrongly even where it has the right ones."""
        return "  " in text or (not text.isascii() and self.encoder.pieces.charsmap.composing.search(text) is not None)

    def cut(self, text: str) -> list[Cut]:
        """SentencePiece's tokens of ``text``."""
        pieces = self.encoder.pieces
        normal, spans = align(text, pieces.charsmap, pieces.users, unigram.spell)
        if not normal:
            return []
        normal = " " + normal
        spans = [(spans[0][0], spans[0][0]), *spans]
        out, at, missing = [], 0, 0
        for number in pieces.encode_normal([normal])[0]:
            piece = self.encoder.model.pieces[number - self.offset]
            size = len(piece)
            if self.encoder.model.types[number - self.offset] == "byte":  # one of an unknown character's
                missing = (missing or len(normal[at].encode("utf8"))) - 1
                out.append(Cut(number, piece, *spans[at]))
                at += not missing
                continue
            out.append(Cut(number, piece, spans[at][0], spans[at + size - 1][1]))
            at += size
        return out

    def __getstate__(self) -> dict[str, object]:
        """Without what was made of the vocabulary: it is made again where it is needed."""
        return {"model": self.model, "offset": self.offset}


@dataclass
class BpeCorners:
    """Of GLM-10B-Chinese's vocabulary: the text is normalised by its own table, then cut in Rust."""

    model: SentencePieceModel

    @cached_property
    def encoder(self) -> Encoder:
        """SentencePiece's ids of texts."""
        found = encoder_of_pieces(self._backend, self.model, self._normalize)
        return _SlowEncoder(self) if found is None else found

    def misplaced(self, text: str) -> bool:
        """Whether Rust may place tokens of ``text`` wrongly even where it has the right ones."""
        return not text.isascii() and self._charsmap.composing.search(text) is not None

    def cut(self, text: str) -> list[Cut]:
        """SentencePiece's tokens of ``text``."""
        normal, spans = align(text, self._charsmap, self._users, None)
        found = self._backend.encode(normal)
        places = ([spans[start][0], spans[max(end, start + 1) - 1][1]] for start, end in found.offsets)
        return [
            Cut(number, self.model.pieces[number], start, end)
            for number, (start, end) in zip(found.ids, places, strict=True)
        ]

    def _normalize(self, text: str) -> str:
        return normalize(text, self._charsmap, self._users)

    @cached_property
    def _users(self) -> re.Pattern[str] | None:
        users = [self.model.pieces[index] for index in self.model.of_type("user")]
        return re.compile("(" + "|".join(map(re.escape, users)) + ")") if users else None

    @cached_property
    def _charsmap(self) -> Charsmap:
        return Charsmap(self.model.precompiled_charsmap)

    @cached_property
    def _backend(self) -> Tokenizer:
        """Pieces that are not text's have names with a blank, which no text has here: Rust takes words for them."""
        named = zip(self.model.pieces, self.model.types, strict=True)
        pieces = tuple(piece if kind in ("normal", "user") else " " + piece for piece, kind in named)
        return sentencepiece_bpe.build(replace(self.model, pieces=pieces, precompiled_charsmap=b""))

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model}


@dataclass
class _SlowEncoder:
    """Of a vocabulary whose parts cannot be remembered."""

    corners: BpeCorners

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The ids of every text."""
        return [[each.id for each in self.corners.cut(text)] for text in texts]


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
