"""A SentencePiece model file as data: pieces, scores, and the settings that decide how text is cut.

The file is one protocol-buffer message (sentencepiece_model.proto of google/sentencepiece); the few fields read here
need no protobuf library. Pure standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from glmlike.errors import TokenizerError

PieceType = Literal["normal", "unknown", "control", "user", "unused", "byte"]
_TYPES: dict[int, PieceType] = {1: "normal", 2: "unknown", 3: "control", 4: "user", 5: "unused", 6: "byte"}
_ALGORITHMS: dict[int, Literal["unigram", "bpe"]] = {1: "unigram", 2: "bpe"}
_FLOAT = struct.Struct("<f")
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class SentencePieceModel:
    """Everything of a SentencePiece file that decides ids; the id of a piece is its index.

    ``precompiled_charsmap`` is the normaliser's table as stored (a double-array trie, then the replacements), empty
    for the identity; ``data`` is the file. Defaults of absent fields are the proto's.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]
    algorithm: Literal["unigram", "bpe"]
    byte_fallback: bool = False
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False
    unk_id: int = 0
    data: bytes = field(default=b"", repr=False, compare=False)

    def of_type(self, kind: PieceType) -> list[int]:
        """The ids of all pieces of one type, ascending."""
        return [index for index, each in enumerate(self.types) if each == kind]


def read_model(path: Path) -> SentencePieceModel:
    """The model in the file ``path``.

    Raises TokenizerError for a Git LFS pointer, a file that ends early, and anything that is not a SentencePiece model
    of the unigram or BPE kind.
    """
    data = Path(path).read_bytes()
    if data.startswith(_LFS):
        raise TokenizerError(
            f"{path}: a Git LFS pointer where a SentencePiece model was expected. Fetch the file itself: `git lfs pull`"
            " in its repository, or download it again."
        )
    try:
        return parse_model(data)
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        raise TokenizerError(
            f"{path}: not a SentencePiece model, or one that ends early ({error}); {len(data)} bytes."
            " Expected the protocol-buffer file that sentencepiece writes. Download it again."
        ) from error


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in ``data``; ValueError and KeyError say what is wrong with it."""
    pieces: list[tuple[str, float, PieceType]] = []
    trainer: dict[int, int | float | bytes] = {}
    normalizer: dict[int, int | float | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_plain_piece(value) or _piece(_message(value, "piece")))
        elif number == 2:
            trainer.update(_message(value, "trainer_spec"))
        elif number == 3:
            normalizer.update(_message(value, "normalizer_spec"))
    unknown = [index for index, (_, _, kind) in enumerate(pieces) if kind == "unknown"]
    if len(unknown) != 1:
        raise ValueError(f"{len(pieces)} pieces of which {len(unknown)} unknown, expected exactly one unknown")
    if len({piece for piece, _, _ in pieces}) != len(pieces):
        raise ValueError("a piece is there twice")
    algorithm = trainer.get(3, 1)
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"model_type {algorithm!r}, expected 1 (unigram) or 2 (BPE)")
    texts, scores, types = zip(*pieces, strict=True)
    charsmap = normalizer.get(2, b"")
    if not isinstance(charsmap, bytes):
        raise ValueError("a precompiled_charsmap that is no byte string")
    return SentencePieceModel(
        pieces=texts,
        scores=scores,
        types=types,
        algorithm=_ALGORITHMS[cast(int, algorithm)],
        byte_fallback=bool(trainer.get(35, 0)),
        precompiled_charsmap=charsmap,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        unk_id=unknown[0],
        data=data,
    )


def _plain_piece(value: int | float | bytes) -> tuple[str, float, PieceType] | None:
    """A piece written as all files write it (text, score, perhaps a one-byte type), without the general reader."""
    if not isinstance(value, bytes) or len(value) < 8 or value[0] != 0x0A or not 0 < (size := value[1]) < 128:
        return None
    rest = len(value) - size
    if rest not in (7, 9) or value[2 + size] != 0x15 or (rest == 9 and value[-2] != 0x18):
        return None
    kind = _TYPES.get(value[-1]) if rest == 9 else "normal"
    return None if kind is None else (value[2 : 2 + size].decode("utf8"), _FLOAT.unpack_from(value, 3 + size)[0], kind)


def _piece(fields: dict[int, int | float | bytes]) -> tuple[str, float, PieceType]:
    text, score, kind = fields.get(1, b""), fields.get(2, 0.0), fields.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, float) or kind not in _TYPES:
        raise ValueError(f"a piece with text {text!r}, score {score!r}, type {kind!r}")
    if not text:
        raise ValueError("a piece without text")
    return text.decode("utf8"), score, _TYPES[cast(int, kind)]


def _message(value: int | float | bytes, name: str) -> dict[int, int | float | bytes]:
    if not isinstance(value, bytes):
        raise ValueError(f"a {name} that is no message")
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of a message, in file order: integers, 32-bit floats, byte strings."""
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 128 else _varint(data, at)
        wire = key & 7
        value: int | float | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = (data[at], at + 1) if at < end and data[at] < 128 else _varint(data, at)
            if at + size > end:
                raise ValueError(f"{size} bytes announced at byte {at}, {end - at} are there")
            value, at = data[at : at + size], at + size
        elif wire == 5:
            (value,) = struct.unpack_from("<f", data, at)
            at += 4
        elif wire == 1:
            (value,) = struct.unpack_from("<d", data, at)
            at += 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if not key >> 3:
            raise ValueError(f"field number 0 at byte {at}")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return result, at
    raise ValueError(f"an integer without an end at byte {at}")
