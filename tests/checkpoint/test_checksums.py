"""CRC-32 of bytes read in any order: zlib's own, whatever the stretches."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmlike.checkpoint.checksums import Checksum, combined
from glmlike.errors import CheckpointError


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_stretches_end_to_end(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_order_is_compared_once_all_was_seen(content: bytes, data: st.DataObject) -> None:
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=5))})
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    sound = Checksum(len(content), zlib.crc32(content), "x")
    damaged = Checksum(len(content), zlib.crc32(content) ^ 1, "x: the bytes of 'a'")
    for start, stop in [*pieces, *pieces]:  # what was seen before changes nothing
        sound.saw(memoryview(content)[start:stop], start)
    for start, stop in pieces[:-1]:
        damaged.saw(memoryview(content)[start:stop], start)
    start, stop = pieces[-1]
    with pytest.raises(CheckpointError, match="the bytes of 'a' are damaged"):
        damaged.saw(memoryview(content)[start:stop], start)
