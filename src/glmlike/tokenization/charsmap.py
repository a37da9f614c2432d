"""SentencePiece's normalisation table: the longest source at each place is replaced, everything else stays.

The table (``precompiled_charsmap``) is a double-array trie of UTF-8 sources as darts-clone stores it, a length in
front, then the replacements, each ended by a NUL (normalizer.cc and darts.h of google/sentencepiece). Sources of one
character work on each character alone; longer ones compose (a letter and its accents, Hangul jamo, halfwidth kana).
"""

from __future__ import annotations

import re
import struct
from array import array
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers
from tokenizers.normalizers import Normalizer

from glmlike.errors import TokenizerError

Integers: TypeAlias = npt.NDArray[np.int64]
_HAS_LEAF = 1 << 8
_LABEL = (1 << 31) | 0xFF


class Charsmap:
    """The table of ``blob``; with an empty one every text stays as it is."""

    def __init__(self, blob: bytes) -> None:
        (size,) = struct.unpack_from("<I", blob) if len(blob) >= 4 else (0,)
        if size % 4 or size + 4 > len(blob):
            raise TokenizerError(
                f"a normalisation table of {len(blob)} bytes whose trie says {size}. Download the vocabulary again."
            )
        self._units = array("I", struct.unpack_from(f"<{size // 4}I", blob, 4 if size else 0))
        self._texts = blob[4 + size :]
        self._single = _Single(self)

    def longest(self, data: bytes, at: int) -> tuple[int, str] | None:
        """(length in bytes, replacement) of the longest source at ``data[at:]``, or None."""
        found, node = None, 0
        for index in range(at, len(data)):
            following = self._step(node, data[index])
            if following is None:
                break
            node = following
            if (value := self._value(node)) is not None:
                found = index + 1 - at, value
        return None if found is None else (found[0], self._text(found[1]))

    def normalize(self, text: str) -> str:
        """``text`` with every source replaced, the longest first at each place, from left to right."""
        if not self.composing.search(text):
            return text.translate(self._single)
        data, at, out = text.encode("utf8"), 0, []
        while at < len(data):
            found = self.longest(data, at)
            size = _utf8_length(data[at]) if found is None else found[0]
            out.append(data[at : at + size].decode("utf8") if found is None else found[1])
            at += size
        return "".join(out)

    def each(self, text: str) -> str:
        """``text`` with the sources of one character replaced, each character alone."""
        return text.translate(self._single)

    @cached_property
    def composing(self) -> re.Pattern[str]:
        """Finds a character that is in a longer source after its first: without one, characters stand alone."""
        later: set[int] = set()
        level = seen = np.zeros(1, np.int64)
        first = True
        while level.size:
            nodes, codes = self._characters(level)
            if not first:
                later |= set(codes.tolist())
            level = np.setdiff1d(nodes, seen)
            seen = np.union1d(seen, level)
            first = False
        ranges = "".join(f"\\U{code:08x}" for code in sorted(later))
        return re.compile(f"[{ranges}]" if ranges else "(?!)")

    def _characters(self, nodes: Integers) -> tuple[Integers, Integers]:
        """(nodes after, code points) of every character that may follow one of ``nodes``."""
        units = np.frombuffer(self._units, np.uint32).astype(np.int64)
        labels = units & _LABEL
        places = np.flatnonzero((labels > 0) & (labels < 256))
        bases = places ^ labels[places]  # where the node in front says that its children are; nodes may share them
        order = np.argsort(bases, kind="stable")
        places, bases = places[order], bases[order]
        codes, missing = np.zeros_like(nodes), np.full_like(nodes, -1)
        done = [(nodes[:0], nodes[:0])]
        while nodes.size and units.size:
            own = nodes ^ (units[nodes] >> 10 << ((units[nodes] & 1 << 9) >> 6))
            first, count = np.searchsorted(bases, own), np.searchsorted(bases, own, "right")
            count -= first
            row = np.repeat(np.arange(len(nodes)), count)
            nodes = places[np.arange(len(row)) + (first + count - np.cumsum(count))[row]]
            codes, missing, byte = codes[row], missing[row], labels[nodes]
            more = np.where(byte < 0xC0, 0, np.where(byte < 0xE0, 1, np.where(byte < 0xF0, 2, 3)))
            codes = np.where(missing < 0, np.where(more > 0, byte & (0x3F >> more), byte), codes << 6 | byte & 63)
            missing = np.where(missing < 0, more, missing - 1)
            done.append((nodes[missing == 0], codes[missing == 0]))
            nodes, codes, missing = nodes[missing > 0], codes[missing > 0], missing[missing > 0]
        return np.concatenate([each for each, _ in done]), np.concatenate([each for _, each in done])

    def _offset(self, node: int) -> int:
        unit: int = self._units[node]
        return unit >> 10 << ((unit & 1 << 9) >> 6)

    def _step(self, node: int, byte: int) -> int | None:
        if not self._units:
            return None
        target = node ^ self._offset(node) ^ byte
        return target if target < len(self._units) and self._units[target] & _LABEL == byte else None

    def _value(self, node: int) -> int | None:
        if not self._units[node] & _HAS_LEAF:
            return None
        value: int = self._units[node ^ self._offset(node)]
        return value & 0x7FFFFFFF

    def _text(self, start: int) -> str:
        return self._texts[start : self._texts.index(b"\0", start)].decode("utf8")


class _Single(dict[int, str]):
    """str.translate's table of the sources of one character, looked up when first met."""

    def __init__(self, charsmap: Charsmap) -> None:
        self._charsmap = charsmap

    def __missing__(self, code: int) -> str:
        found = self._charsmap.longest(chr(code).encode("utf8"), 0)
        self[code] = chr(code) if found is None else found[1]
        return self[code]


def _utf8_length(byte: int) -> int:
    """How many bytes the character has whose first byte this is."""
    return 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


def nmt_nfkc() -> list[Normalizer]:
    """The table named nmt_nfkc as `tokenizers` components: NFKC, then the characters that vanish or become blanks.

    Equal to the table wherever no character composes with its neighbour, and for every composition the table knows;
    see ``unigram`` for where the two part. The classes are those of builder.cc (BuildNmtNFKCMap) as the table has them.
    """
    return [
        normalizers.Replace("\uff5e", "\ufdd0"),  # the table keeps the fullwidth tilde; a noncharacter passes NFKC
        normalizers.NFKC(),
        normalizers.Replace("\ufdd0", "\uff5e"),
        normalizers.Replace(Regex(r"[\x{1}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{8f}\x{9f}]"), ""),
        normalizers.Replace(Regex(r"[\t\n\f\r\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"), " "),
    ]
