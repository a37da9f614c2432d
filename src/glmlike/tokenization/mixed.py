"""A backend that encodes most texts in Rust and a few exactly, with the same encodings for both."""

from __future__ import annotations

import re
from itertools import chain, groupby
from typing import Any

from tokenizers import Encoding, PreTokenizedString, Token, Tokenizer

from glmlike.tokenization.alignment import byte_places
from glmlike.tokenization.corners import Corners
from glmlike.tokenization.stretches import AddedTokens
from glmlike.tokenization.unigram import utf8

_BYTE = re.compile("<0x[0-9A-F]{2}>")
Text = str | list[str] | tuple[str, ...]


class MixedBackend:
    """``backend`` whose ``encode_batch`` gives SentencePiece's tokens where its own differ; all else is the backend's.

    Truncation, special tokens around a text and pairs are Rust's own for exact tokens too. ``word_ids`` of an exactly
    cut text count its stretches between added tokens.
    """

    def __init__(self, backend: Tokenizer, corners: Corners, added: AddedTokens) -> None:
        self.__dict__.update(_backend=backend, _corners=corners, _added=added)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._backend, name, value)

    def encode_batch(
        self, inputs: list[Any], add_special_tokens: bool = True, is_pretokenized: bool = False
    ) -> list[Encoding]:
        """As ``Tokenizer.encode_batch``; padding is to the longest of all."""
        texts = [_texts(each, is_pretokenized) for each in inputs]
        exact = self._needed(texts)
        rust = [each for each, hard in zip(inputs, exact, strict=True) if not hard]
        options = {"add_special_tokens": add_special_tokens, "is_pretokenized": is_pretokenized}
        encoded = iter(self._backend.encode_batch(rust, **options) if rust else [])
        out = [
            self._exactly(each, add_special_tokens) if hard else next(encoded)
            for each, hard in zip(texts, exact, strict=True)
        ]
        self._pad(out)
        return out

    def _needed(self, inputs: list[list[Text]]) -> list[bool]:
        """For each input, whether Rust gives other ids or places than SentencePiece in some stretch."""
        stretches, owners = [], []
        for number, texts in enumerate(inputs):
            for text in chain.from_iterable([text] if isinstance(text, str) else text for text in texts):
                plain = [text[each.start : each.end] for each in self._added.stretches(text) if each.added is None]
                stretches += plain
                owners += [number] * len(plain)
        bare = Tokenizer(self._backend.model)
        bare.normalizer, bare.pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        rust = bare.encode_batch_fast(stretches, add_special_tokens=False)
        rows = zip(owners, stretches, rust, self._corners.encoder.encode_all(stretches), strict=True)
        misplaced = self._corners.misplaced
        different = {owner for owner, text, found, ids in rows if found.ids != ids or misplaced(text)}
        return [number in different for number in range(len(inputs))]

    def _exactly(self, texts: list[Text], add_special_tokens: bool) -> Encoding:
        encodings = [self._encode(text, number) for number, text in enumerate(texts)]
        processed: Encoding = self._backend.post_process(*encodings, add_special_tokens=add_special_tokens)
        return processed

    def _encode(self, text: Text, number: int) -> Encoding:
        if isinstance(text, str):
            return self._joined(text, number, None)
        words = [self._joined(word, number, place) for place, word in enumerate(text)]
        return Encoding.merge(words, growing_offsets=False)

    def _joined(self, text: str, number: int, word: int | None) -> Encoding:
        """The encoding of ``text`` cut at added tokens, each stretch for itself."""
        places, stretches = byte_places(text), self._added.stretches(text)
        tokens = iter([self._tokens(text, places, *each) for each in stretches])
        content = PreTokenizedString(text)
        content.split(lambda _, whole: [whole[start:end] for start, end, _ in stretches])
        content.tokenize(lambda _: next(tokens))
        return content.to_encoding(type_id=number, word_idx=word)

    def _tokens(self, text: str, places: list[int], start: int, end: int, added: str | None) -> list[Token]:
        """Tokens with byte offsets within the stretch."""
        if added is not None:
            return [Token(self._backend.token_to_id(added), added, (0, places[end] - places[start]))]
        first = places[start]
        return [
            Token(cut.id, cut.piece, (places[start + cut.start] - first, places[start + cut.end] - first))
            for cut in self._corners.cut(text[start:end])
        ]

    def _pad(self, encodings: list[Encoding]) -> None:
        padding = self._backend.padding
        if not padding or not encodings:
            return
        length = padding["length"] or max(map(len, encodings))
        multiple = padding["pad_to_multiple_of"]
        if multiple:
            length = -(-length // multiple) * multiple
        names = ("direction", "pad_id", "pad_type_id", "pad_token")
        for encoding in encodings:
            encoding.pad(length, **{name: padding[name] for name in names})


def _texts(given: Any, is_pretokenized: bool) -> list[Text]:
    """The text of an input, or both texts of a pair."""
    if isinstance(given, str):
        return [given]
    if is_pretokenized and all(isinstance(word, str) for word in given):
        return [given]
    return list(given)


def broken_bytes(tokens: list[str]) -> list[str] | None:
    """``tokens`` with runs of bytes that are not UTF-8 as their text, U+FFFD for bytes of no character; None: no run.

    As SentencePiece decodes: a byte that belongs to no whole character spoils none of those beside it.
    """
    out: list[str] = []
    broken = False
    for is_byte, run in groupby(tokens, key=lambda token: _BYTE.fullmatch(token) is not None):
        names = list(run)
        text = utf8(bytes(int(name[3:5], 16) for name in names)) if is_byte else ""
        broken = broken or "\ufffd" in text
        out += [text] if "\ufffd" in text else names
    return out if broken else None
