"""Texts cut at added tokens, as `tokenizers` does before it encodes what is between them."""

from __future__ import annotations

import re
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

_WHITE = r"[^\S\x1c-\x1f]*"  # Unicode's White_Space: Python's \s has the four separators besides


class Stretch(NamedTuple):
    """Characters ``start`` to ``end`` of a text: ordinary text, or the added token that is named."""

    start: int
    end: int
    added: str | None


class AddedTokens:
    """The added tokens of ``backend`` as they are now, found in texts: the longest of those that begin first.

    One that Rust looks for in normalised text is looked for in the text as it is; ``exact`` is False if there is one,
    or one that must be a word by itself.
    """

    def __init__(self, backend: Tokenizer) -> None:
        split = backend.encode_special_tokens
        wanted = [each for each in backend.get_added_tokens_decoder().values() if not (split and each.special)]
        wanted.sort(key=lambda token: len(token.content), reverse=True)
        self._pattern = re.compile("|".join(_pattern(token, at) for at, token in enumerate(wanted)) or "(?!)")
        self._heads = tuple({token.content[:2] for token in wanted})
        normal = backend.normalizer is not None
        self.exact = not any(token.single_word or (token.normalized and normal) for token in wanted)

    def stretches(self, text: str) -> list[Stretch]:
        """``text`` in its stretches, none of them empty; an empty text has none."""
        if not any(head in text for head in self._heads):
            return [Stretch(0, len(text), None)] if text else []
        out, done = [], 0
        for match in self._pattern.finditer(text):
            if done < match.start():
                out.append(Stretch(done, match.start(), None))
            done = match.end()
            out.append(Stretch(match.start(), done, str(match[match.lastgroup or 0])))
        return [*out, Stretch(done, len(text), None)] if done < len(text) else out


def _pattern(token: AddedToken, at: int) -> str:
    before, after = (_WHITE if token.lstrip else ""), (_WHITE if token.rstrip else "")
    edge = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return f"{before}{edge[0]}(?P<t{at}>{re.escape(token.content)}){edge[1]}{after}"
