"""Texts cut at added tokens, as `tokenizers` does before it encodes what is between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

_WHITE = re.compile(r"[^\S\x1c-\x1f]")  # Unicode's White_Space: Python's \s has the four separators besides


class Stretch(NamedTuple):
    """Characters ``start`` to ``end`` of a text: ordinary text, or the added token that is named."""

    start: int
    end: int
    added: str | None


class AddedTokens:
    """The added tokens of ``backend`` as they are now, found in texts: the longest of those that begin first.

    Those that Rust looks for in normalised text come after the others, and are looked for in the text as it is;
    ``exact`` is False if there is one that a normaliser may change, or one that must be a word by itself.
    """

    def __init__(self, backend: Tokenizer) -> None:
        known = sorted(backend.get_added_tokens_decoder().values(), key=lambda token: len(token.content), reverse=True)
        split = backend.encode_special_tokens
        # A special token that is not wanted is passed over as a whole, and hides what it is made of, as in Rust.
        self._wanted = {token.content: token for token in known if not (split and token.special)}
        self._passes = [
            re.compile("|".join(re.escape(token.content) for token in tokens))
            for normalized in (False, True)
            if (tokens := [token for token in known if token.normalized == normalized and token.content])
        ]
        self._heads = tuple({content[:2] for content in self._wanted})
        normal = backend.normalizer is not None
        self.exact = not any(token.single_word or (token.normalized and normal) for token in self._wanted.values())

    def stretches(self, text: str) -> list[Stretch]:
        """``text`` in its stretches, none of them empty; an empty text has none."""
        out = [Stretch(0, len(text), None)] if text else []
        if any(head in text for head in self._heads):
            for pattern in self._passes:
                out = [part for each in out for part in self._cut(text, each, pattern)]
        return out

    def _cut(self, text: str, stretch: Stretch, pattern: re.Pattern[str]) -> Iterator[Stretch]:
        """``stretch`` cut at the tokens of ``pattern``, if it is none itself."""
        done, last = stretch.start, stretch.end
        for match in pattern.finditer(text, done, last) if stretch.added is None else ():
            token = self._wanted.get(match[0])
            if token is None or (token.single_word and _is_in_word(text[done:last], match.start() - done, match[0])):
                continue
            start, end = max(match.start(), done), match.end()
            while token.lstrip and start > done and _WHITE.match(text[start - 1]):
                start -= 1
            while token.rstrip and end < last and _WHITE.match(text[end]):
                end += 1
            if done < start:
                yield Stretch(done, start, None)
            yield Stretch(start, end, token.content)
            done = end
        if done < last:
            yield Stretch(done, last, stretch.added)


def _is_in_word(text: str, start: int, content: str) -> bool:
    around = text[:start][-1:] + text[start + len(content) :][:1]
    return re.search(r"\w", around) is not None
