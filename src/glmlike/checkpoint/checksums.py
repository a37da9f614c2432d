"""Sums of bytes: which hash says what, and CRC-32 of bytes that are read in any order and by any thread.

Files of a source have their sha256, which is what the Hub shows of a file. Tensors have XXH3-128, which no accident
gets past and which costs a tenth of reading: whether a disk gave back what was written is no question of an adversary.

CRC-32 is checked on the way, not in a reading of its own: stretches that meet are put together with the arithmetic of
zlib's ``crc32_combine`` (crc32.c), so nothing is read twice.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import xxhash

from glmlike.errors import CheckpointError

TENSOR_HASH = "xxh3_128"
"""The hash of a tensor's bytes, by the name that records give it; hexadecimal digits are xxHash's canonical form."""

_POLYNOMIAL = 0xEDB88320  # of CRC-32, bits reversed
_ONE = 1 << 31


def tensor_hasher() -> Any:
    """What is given a tensor's bytes by ``update``, and gives their hash by ``hexdigest``."""
    return xxhash.xxh3_128()


def combined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two stretches end to end, from theirs and the number of bytes of the second."""
    return _product(_shift(length), first) ^ second


def _product(left: int, right: int) -> int:
    """The product of two polynomials over GF(2) modulo that of CRC-32."""
    found, bit = 0, _ONE
    while left:
        if left & bit:
            found ^= right
            left ^= bit
        bit >>= 1
        right = (right >> 1) ^ _POLYNOMIAL if right & 1 else right >> 1
    return found


@lru_cache(4096)
def _shift(length: int) -> int:
    """x to the power of the bits in ``length`` bytes, modulo the polynomial."""
    found, square, bits = _ONE, 1 << 30, 8 * length
    while bits:
        if bits & 1:
            found = _product(square, found)
        square, bits = _product(square, square), bits >> 1
    return found


class Checked(Protocol):
    """What is told of every stretch of a tensor that is read."""

    def saw(self, view: memoryview, start: int) -> None:
        """Take the bytes from ``start`` on into account. Raises CheckpointError if they are damaged."""


@dataclass(frozen=True)
class CheckedFirst:
    """What ``check`` looks at by itself as soon as anything of it is read."""

    check: Callable[[], None]

    def saw(self, view: memoryview, start: int) -> None:
        self.check()


@dataclass
class Checksum:
    """The CRC-32 that ``size`` bytes must have; ``saw`` is told of every stretch that is read.

    Raises:
        CheckpointError: once every byte was seen, they are not those that were written. ``what`` says whose they are.
    """

    size: int
    crc32: int
    what: str
    _parts: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)  # stop and CRC-32, by start
    _done: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def saw(self, view: memoryview, start: int) -> None:
        """Take the bytes from ``start`` on into account, unless some of them were seen before."""
        if self._done or not len(view):
            return
        stop = start + len(view)
        with self._lock:
            if any(first < stop and start < last for first, (last, _) in self._parts.items()):
                return
        found = zlib.crc32(view)
        with self._lock:
            if self._done or any(first < stop and start < last for first, (last, _) in self._parts.items()):
                return
            self._join(start, stop, found)
            if self._parts.get(0, (0, 0))[0] == self.size:
                self._done = True
                if self._parts[0][1] != self.crc32:
                    self._done = False
                    self._parts.clear()
                    raise CheckpointError(
                        f"{self.what} are damaged (their CRC-32 is not the file's own). Download it again."
                    )

    def _join(self, start: int, stop: int, crc: int) -> None:
        if stop in self._parts:
            last, after = self._parts.pop(stop)
            stop, crc = last, combined(crc, after, last - stop)
        for first, (last, before) in self._parts.items():
            if last == start:
                start, crc = first, combined(before, crc, stop - start)
                break
        self._parts[start] = stop, crc
