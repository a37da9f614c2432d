"""STAND-IN for the integrator to replace: the fields of a SentencePiece file that the tokenizer classes need."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.errors import TokenizerError


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces, scores and settings of a SentencePiece file."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[str, ...]
    algorithm: str
    byte_fallback: bool
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    unk_id: int = 0


def read_model(path: Path) -> SentencePieceModel:
    """The model in a file; TokenizerError for anything that is none."""
    try:
        return _parse(path.read_bytes())
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise TokenizerError(f"{path}: not a SentencePiece model ({error}). Download it again.") from error


_TYPES = {1: "normal", 2: "unknown", 3: "control", 4: "user", 5: "unused", 6: "byte"}


def _parse(data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, str]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece[1].decode("utf8"), score, _TYPES[piece.get(3, 1)]))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_fields(value))
    texts, scores, types = zip(*pieces, strict=True)
    return SentencePieceModel(
        texts,
        scores,
        types,
        {1: "unigram", 2: "bpe"}[trainer.get(3, 1)],
        bool(trainer.get(35, 0)),
        normalizer.get(2, b""),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        types.index("unknown"),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        if place + size > len(data):
            raise ValueError("the file ends early")
        yield key >> 3, data[place : place + size]
        place += size
