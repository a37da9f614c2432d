"""Which control tokens of a rendered chat the template wrote, and which came with what it was given.

A chat is rendered more than once: as it is, and with the given strings disguised, character by character, so that no
control token can be spelled by them, not even by pieces that the template joins. Control tokens that are still there
are the template's own. A disguise keeps the length of every string, so places in one rendering are places in the other.

A template that reads its messages (``'</think>' in content``) may take another branch when they are disguised. Then the
disguised rendering, put back, is not the plain one, and a weaker disguise is tried, which spares the strings that the
template looks for.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Span = tuple[int, int]
Render = Callable[["Disguise"], tuple[str, list[Span]]]
"""Renders the chat with every given string passed through a disguise: the text, and the spans of the replies in it."""

_PRIVATE = range(0xF0000, 0xFFFFE)  # a plane of characters no text means anything by
_WORD = re.compile(r"\w+")
_EXPRESSION = re.compile(r"\{[{%].*?[}%]\}", re.DOTALL)
_LITERAL = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")


class UnsafeTemplateError(ValueError):
    """A template whose own control tokens cannot be told from those it was given."""


@dataclass(frozen=True)
class Control:
    """The control tokens of a tokenizer: all of them, and those that replies may spell (not marked special)."""

    tokens: frozenset[str]
    of_replies: frozenset[str] = frozenset()

    def spans(self, text: str) -> list[Span]:
        """Where control tokens stand in a text, the longest first where several begin."""
        return [match.span() for match in _pattern(self.tokens).finditer(text)]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text, the spans of the control tokens its template wrote, and the spans of its replies.

    ``harmless``: nothing else in the text spells a control token, so encoding the whole is safe.
    """

    text: str
    trusted: list[Span]
    replies: list[Span]
    harmless: bool


@dataclass(frozen=True)
class Disguise:
    """Replaces characters of given strings; what it spares stays legible to the template.

    ``words`` are spared where they are a whole string, ``parts`` wherever they stand. With ``whole_tokens`` only
    complete control tokens are disguised.
    """

    control: Control
    table: Mapping[int, str]
    words: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    whole_tokens: bool = False

    def text(self, value: str, *, reply: bool = False) -> str:
        """A string under this disguise, of the same length."""
        if not self.table or (value in self.words and not self.control.spans(value)):
            return value
        if self.whole_tokens:
            tokens = self.control.tokens - self.control.of_replies if reply else self.control.tokens
            return _pattern(tokens).sub(lambda match: match[0].translate(self.table), value)
        spared = self.parts | self.control.of_replies if reply else self.parts
        pieces = _pattern(spared).split(value) if spared else [value]
        kept = _pattern(spared).findall(value) if spared else []
        masked = "".join(p.translate(self.table) + k for p, k in zip(pieces, [*kept, ""], strict=True))
        left = Control(self.control.tokens - self.control.of_replies if reply else self.control.tokens)
        return value.translate(self.table) if left.spans(masked) else masked

    def data(self, value: Any, *, reply: bool = False) -> Any:
        """The same for strings at any depth of JSON-like data; keys that are plain words stay, other values pass."""
        if isinstance(value, str):
            return self.text(value, reply=reply)
        if isinstance(value, Mapping):
            return {self._key(key): self.data(item, reply=reply) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(item, reply=reply) for item in value]
        return value

    def message(self, message: Any) -> Any:
        """A message: its keys and a role that is a plain word are the caller's own; all else is given."""
        if not isinstance(message, Mapping):
            return message
        from_model = message.get("role") == "assistant"
        masked = {}
        for key, value in message.items():
            if key == "role" and isinstance(value, str) and _WORD.fullmatch(value):
                masked[key] = value
            else:
                masked[key] = self.data(value, reply=from_model and key in ("content", "reasoning_content"))
        return masked

    def _key(self, key: Any) -> Any:
        if not isinstance(key, str) or (_WORD.fullmatch(key) and not self.control.spans(key)):
            return key
        return self.text(key)


def plain_data(value: Any) -> Any:
    """Messages as dicts, lists and strings: dataclasses and pydantic objects (``model_dump``) taken apart."""
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain_data(value.model_dump())
    return value


def render_untrusted(render: Render, template: str, control: Control) -> RenderedChat:
    """Render a chat and tell the template's control tokens from given ones.

    Raises:
        UnsafeTemplateError: the template fails on every disguise of strings it accepts as they are.
    """
    text, _replies = render(Disguise(control, {}))
    table = _disguise_table(control, text + template)
    restore = {ord(masked): chr(plain) for plain, masked in table.items()}
    words, parts = _literals(template, control)
    strict: tuple[str, list[Span]] | None = None
    for spared in (frozenset[str](), parts):
        attempt = _attempt(render, Disguise(control, table, words, spared))
        if attempt is None:
            continue
        strict = attempt
        if attempt[0].translate(restore) == text:
            trusted = control.spans(attempt[0])
            return RenderedChat(text, trusted, attempt[1], harmless=trusted == control.spans(text))
    weak = _attempt(render, Disguise(control, table, words, whole_tokens=True))
    found = weak if weak and strict and _own(control, weak[0]) == _own(control, strict[0]) else strict
    if found is None:
        raise UnsafeTemplateError(
            "the chat template fails when the text of the messages is disguised, so its control tokens cannot be told "
            "from theirs. Use a template that does not depend on the text, or pass parse_special_tokens=True for "
            "messages you trust."
        )
    trusted, plain = control.spans(found[0]), found[0].translate(restore)
    return RenderedChat(plain, trusted, found[1], harmless=plain == text and trusted == control.spans(text))


def _attempt(render: Render, disguise: Disguise) -> tuple[str, list[Span]] | None:
    try:
        return render(disguise)
    except Exception:  # whatever a template raises for strings it does not know; the plain rendering went well
        return None


def _own(control: Control, text: str) -> list[str]:
    return [text[start:end] for start, end in control.spans(text)]


def _disguise_table(control: Control, used: str) -> dict[int, str]:
    """A private character for each that control tokens are made of; blanks stay, so that trimming works."""
    taken = {ord(char) for char in used}
    private = (chr(code) for code in _PRIVATE if code not in taken)
    needed = sorted({char for token in control.tokens for char in token if not char.isspace()})
    table = dict(zip(map(ord, needed), private, strict=False))
    if len(table) < len(needed):
        raise UnsafeTemplateError("the messages use up every private character; remove those from U+F0000 on.")
    return table


@lru_cache(maxsize=64)
def _literals(template: str, control: Control) -> tuple[frozenset[str], frozenset[str]]:
    """The strings a template compares with: plain words, and parts of texts that no control token could be made of."""
    found: set[str] = set()
    for expression in _EXPRESSION.findall(template):
        found |= {text for literal in _LITERAL.findall(expression) if (text := _value(literal)) is not None}
    words = {text for text in found if _WORD.fullmatch(text) and text not in control.tokens}
    parts = {text for text in found if len(text) > 1 and not _belongs_to(text, control.tokens)}
    return frozenset(words), frozenset(parts)


def _value(literal: str) -> str | None:
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError):  # not Python's idea of a string; nothing is spared for it
        return None


def _belongs_to(text: str, tokens: Iterable[str]) -> bool:
    return any(text in token or token in text for token in tokens)


@lru_cache(maxsize=256)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    """Any of the strings, the longest first as tokenizers match them; without strings a pattern that never matches."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=lambda t: (-len(t), t)))) or r"(?!)")
