"""SentencePiece's normalised text with the place in the given text that every character came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from glmlike.tokenization.charsmap import Charsmap

Span = tuple[int, int]
Placed = tuple[str, int, int]
"""A character and the begin and end of what it was made of."""

_SPELLED = re.compile(r"\n|\t| {2,80}")


def align(
    text: str, charsmap: Charsmap, users: re.Pattern[str] | None, spell: Callable[[str], str] | None
) -> tuple[str, list[Span]]:
    """``text`` normalised, words one blank apart and no blank around them, and a span of ``text`` for each character.

    ``spell`` writes a line end, a tab or a run of blanks as the vocabulary does; ``users`` finds what the table leaves.
    """
    placed = _charsmapped(_spelled(text, spell), charsmap, users)
    out: list[Placed] = []
    for each in placed:
        if each[0] != " " or (out and out[-1][0] != " "):
            out.append(each)
    if out and out[-1][0] == " ":
        out.pop()
    return "".join(each[0] for each in out), [(start, end) for _, start, end in out]


def normalize(text: str, charsmap: Charsmap, users: re.Pattern[str] | None) -> str:
    """The text that ``align`` gives for a spelled text, with a blank in front if there is any.

    ``users`` has its match as its one group. No source of the table reaches into a match or across it.
    """
    if users is None or text.isascii() or not charsmap.composing.search(text) or not users.search(text):
        text = charsmap.normalize(text)
    else:
        parts = users.split(text)
        parts[::2] = [charsmap.normalize(part) for part in parts[::2]]
        text = "".join(parts)
    if "  " in text:
        text = " ".join([word for word in text.split(" ") if word])
    text = text.strip(" ")
    return " " + text if text else ""


def byte_places(text: str) -> list[int]:
    """Where each character of ``text`` begins in its UTF-8 bytes, and where the last one ends."""
    if text.isascii():
        return list(range(len(text) + 1))
    places = [0]
    for character in text:
        code = ord(character)
        places.append(places[-1] + (1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4))
    return places


def _spelled(text: str, spell: Callable[[str], str] | None) -> list[Placed]:
    if spell is None:
        return [(character, at, at + 1) for at, character in enumerate(text)]
    out: list[Placed] = []
    done = 0
    for match in _SPELLED.finditer(text):
        out += [(text[at], at, at + 1) for at in range(done, match.start())]
        done = match.end()
        out += [(character, match.start(), done) for character in spell(match[0])]
    return out + [(text[at], at, at + 1) for at in range(done, len(text))]


def _charsmapped(placed: list[Placed], charsmap: Charsmap, users: re.Pattern[str] | None) -> Iterable[Placed]:
    text = "".join(character for character, _, _ in placed)
    done = 0
    for match in users.finditer(text) if users is not None else ():
        yield from _replaced(placed[done : match.start()], charsmap)
        yield from placed[match.start() : match.end()]
        done = match.end()
    yield from _replaced(placed[done:], charsmap)


def _replaced(placed: list[Placed], charsmap: Charsmap) -> Iterable[Placed]:
    text = "".join(character for character, _, _ in placed)
    if not charsmap.composing.search(text):
        for character, start, end in placed:
            yield from ((each, start, end) for each in charsmap.each(character))
        return
    data, places, at = text.encode("utf8"), byte_places(text), 0
    while at < len(placed):
        found = charsmap.longest(data, places[at])
        if found is None:
            yield placed[at]
            at += 1
            continue
        size = len(data[places[at] : places[at] + found[0]].decode("utf8"))
        start, end = placed[at][1], placed[at + size - 1][2]
        yield from ((each, start, end) for each in found[1])
        at += size
