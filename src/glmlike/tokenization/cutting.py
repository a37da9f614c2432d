"""Texts cut where no token can lie across, so that what was cut out of one text can be remembered for all.

Two facts make a cut exact. No piece of a SentencePiece vocabulary lies across two characters that no piece has side by
side (:class:`PieceCutter`). And byte-level BPE never joins what its regular expression parts; some of those places are
told by two neighbours alone (:class:`ByteCutter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Cutter = Callable[[list[str]], list[list[str]]]
"""Texts to their parts; the parts of a text joined are the text. UnicodeEncodeError for lone surrogates."""

_BITS = 22
_SEPARATOR = "\x1f"
_FIRST, _LAST = 0x4E00, 0x9FA5  # ideographs that are letters by every version of Unicode


class Pairs:
    """A set of pairs of characters that may say yes to others too, one in some ten: what is said not to be in, is not.

    A cut is left out then, and nothing else happens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        codes = as_codes("\0".join(texts))
        self._table = np.zeros(1 << _BITS, np.bool_)
        self._table[_slots(codes[:-1], codes[1:])] = True  # and pairs with U+0000, which parted the texts

    def of(self, codes: Codes) -> Mask:
        """For each character but the first: whether it and the one before may be a pair of the set."""
        found: Mask = self._table[_slots(codes[:-1], codes[1:])]
        return found


class PieceCutter:
    """Cuts between two characters that no one of ``pieces`` has side by side."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pairs = Pairs(pieces)

    def __call__(self, texts: list[str]) -> list[list[str]]:
        """The parts of every text."""
        return cut(texts, lambda codes, _: ~self._pairs.of(codes))


class ByteCutter:
    """Cuts for byte-level BPE behind GLM-4's regular expression and its kin (``lines``), or GPT-2's.

    Everywhere: between a visible character and a blank; in front of the last blank before a visible character; behind
    ASCII letters and digits, before another kind; behind ideographs, before marks. With ``lines``: behind a line end,
    if the next that is no blank is a visible character; GPT-2's: also between any visible character and a line end.
    """

    def __init__(self, *, lines: bool) -> None:
        self._lines = lines

    def __call__(self, texts: list[str]) -> list[list[str]]:
        """The parts of every text."""
        return cut(texts, self._cuts)

    def _cuts(self, codes: Codes, starts: list[int]) -> Mask:
        kinds = _KINDS[np.minimum(codes, 128)]
        cuts: Mask = _BEHIND[kinds[:-1] * _WIDTH + kinds[1:]]
        chinese = (codes >= _FIRST) & (codes <= _LAST)
        visible = (kinds >= _MARK) | chinese
        follows = visible.copy()
        follows[starts] = False  # a text's last blanks stay together
        cuts[:-1] |= (codes[:-2] == 32) & (codes[1:-1] == 32) & follows[2:]
        if self._lines:
            _behind_lines(codes, visible, cuts)
        else:
            cuts |= (kinds[:-1] == _MARK) & (codes[1:] == 10)
        cuts |= chinese[:-1] & _ENDS[np.minimum(codes[1:], 0xFFFF)]
        cuts |= (kinds[:-1] == _DIGIT) & chinese[1:]
        return cuts


def _behind_lines(codes: Codes, visible: Mask, cuts: Mask) -> None:
    """Mark the places behind line ends that only blanks part from something visible."""
    solid = np.flatnonzero(codes != 32)
    if solid.size:
        cuts[solid[:-1][(codes[solid[:-1]] == 10) & visible[solid[1:]]]] = True


_OTHER, _LINE_END, _BLANK, _MARK, _DIGIT, _LETTER = range(6)
_WIDTH = 6


def _kind(character: str) -> int:
    if character in "\n ":
        return _LINE_END if character == "\n" else _BLANK
    if not "!" <= character <= "~":
        return _OTHER
    return _LETTER if character.isalpha() else _DIGIT if character.isdigit() else _MARK


_KINDS = np.array([_kind(chr(code)) for code in range(129)], np.int64)
"""Of every ASCII character, and of all others the last."""
_BEHIND = np.zeros(_WIDTH * _WIDTH, np.bool_)
"""Whether a cut is between two kinds."""
for _before, _after in (
    *((_MARK, _BLANK), (_DIGIT, _BLANK), (_LETTER, _BLANK), (_DIGIT, _LINE_END), (_LETTER, _LINE_END)),
    *((_LETTER, _MARK), (_LETTER, _DIGIT), (_DIGIT, _MARK), (_DIGIT, _LETTER)),
):
    _BEHIND[_before * _WIDTH + _after] = True
_ENDS = np.zeros(0x10000, np.bool_)
"""What ends a word of ideographs: blanks, and marks of which no version of Unicode made letters or numbers."""
_ENDS[[ord(each) for each in "\n !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~、。，：；！？（）【】《》“”‘’…—·"]] = True


def cut(texts: list[str], cuts: Callable[[Codes, list[int]], Mask]) -> list[list[str]]:
    """Every text in the parts that ``cuts`` says, from all texts in a row and the places where they begin.

    It says for each character but the first whether a part begins there.
    """
    joined = "".join(texts)
    if not joined:
        return [[] for _ in texts]
    codes = as_codes(joined)
    begins = np.ones(len(codes) + 1, np.bool_)
    starts = list(accumulate(map(len, texts), initial=0))
    begins[1:-1] = cuts(codes, [each for each in starts if each < len(codes)])
    begins[starts] = True
    at = np.flatnonzero(begins)
    if _SEPARATOR in joined:
        parts = [joined[start:end] for start, end in pairwise(at.tolist())]
    else:  # the same, in half the time
        apart = np.full(len(codes) + len(at) - 2, ord(_SEPARATOR), np.uint32)
        apart[np.arange(len(codes)) + (np.cumsum(begins[:-1]) - 1)] = codes
        parts = apart.tobytes().decode("utf-32-le").split(_SEPARATOR)
    if len(texts) == 1:
        return [parts]
    return [parts[start:end] for start, end in pairwise(np.searchsorted(at, starts).tolist())]


def as_codes(text: str) -> Codes:
    """The code points of ``text``."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _slots(left: Codes, right: Codes) -> Codes:
    mixed: Codes = left * np.uint32(0x9E3779B1) + right * np.uint32(0x85EBCA6B)
    slots: Codes = mixed >> np.uint32(32 - _BITS)
    return slots
