"""Ids of texts put together from the remembered ids of their parts.

Natural text repeats itself: after a few megabytes nine of ten parts were met before, and to look one up costs a tenth
of what it costs to encode it. Nothing is approximate: texts are cut where no token lies across
(:mod:`glmlike.tokenization.cutting`), and a part that is met for the first time is encoded by the backend's own model.
Where Rust alone is faster, on many cores or with much Chinese, whose words nothing parts, it has the texts as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

from tokenizers import Tokenizer, models

from glmlike.tokenization import byte_bpe
from glmlike.tokenization.cutting import ByteCutter, Cutter, PieceCutter
from glmlike.tokenization.sentencepiece_model import SentencePieceModel

REMEMBERED = 1 << 22
"""Characters of all the remembered parts of a tokenizer; beyond, memory starts afresh."""
LITTLE = 10_000
"""Characters of a batch that is not worth more than looking up."""
MANY_CORES = 3
"""Cores on which Rust encodes faster than remembered parts are put together."""
DENSE = 1.8
"""Bytes a character of texts that are mostly ideographs: those that nothing parts."""
_WORD = re.compile("[ ]?(?:[A-Za-z]+|[\u4e00-\u9fa5]+)")  # one by GPT-2's expression
_MARKED_WORD = re.compile(
    _WORD.pattern.replace("[ ]", r"""[ !"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~、。，：；！？（）《》“”…—]""")
)
_NOTHING = "\U000f0000"  # stands in no piece
_LINES = (byte_bpe.LETTERS_AND_THREE_DIGITS, byte_bpe.LETTERS_AND_ONE_DIGIT)


class Encoder(Protocol):
    """Encodes texts without special tokens."""

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The ids of every text. UnicodeEncodeError for lone surrogates."""
        ...


class Remembered:
    """An encoder: ``normalize`` each text, ``cut`` it, and ``encode`` the parts that are new.

    Of the id ``fused`` in a row one is left. ``whole`` encodes texts at once where that is faster. Safe to use from
    several threads.
    """

    def __init__(
        self,
        cut: Cutter,
        encode: Callable[[list[str]], Iterable[Sequence[int]]],
        normalize: Callable[[str], str] | None = None,
        fused: int | None = None,
        whole: Callable[[list[str]], list[list[int]]] | None = None,
    ) -> None:
        self._whole = whole
        self._cut, self._encode, self._normalize, self._fused = cut, encode, normalize, fused
        self._known: dict[str, Sequence[int]] = {}
        self._size = 0

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The ids of every text."""
        if self._whole is not None and _is_for_rust(texts):
            return self._whole(texts)
        if self._normalize is not None:
            texts = list(map(self._normalize, texts))
        if self._size > REMEMBERED:
            self._known, self._size = {}, 0
        parts, known = self._cut(texts), self._known  # nothing is ever taken out of `known`
        try:
            ids = _joined(parts, known)
        except KeyError:
            missing = list(set(chain.from_iterable(parts)).difference(known))
            known.update(zip(missing, self._encode(missing), strict=True))
            self._size += sum(map(len, missing))
            ids = _joined(parts, known)
        return ids if self._fused is None else [one_in_a_row(each, self._fused) for each in ids]


def _is_for_rust(texts: list[str]) -> bool:
    size = sum(map(len, texts))
    if size < LITTLE:
        return False
    return min(len(texts), cores()) >= MANY_CORES or sum(len(text.encode()) for text in texts) > DENSE * size


def _joined(parts: list[list[str]], known: dict[str, Sequence[int]]) -> list[list[int]]:
    return [list(chain.from_iterable(map(known.__getitem__, each))) for each in parts]


def one_in_a_row(ids: list[int], number: int) -> list[int]:
    """``ids`` without ``number`` behind itself, as SentencePiece writes unknown pieces."""
    if number not in ids:
        return ids
    return [each for at, each in enumerate(ids) if each != number or not at or ids[at - 1] != number]


def encoder_of(backend: Tokenizer) -> Encoder | None:
    """What encodes as ``backend`` does but for added tokens; None where its pipeline is none that is known here.

    Known are the byte-level BPE of GLM-4, LLaMA 3, GLM-10B and Qwen2.5, and the BPE of ChatGLM2 and ChatGLM3.
    """
    model = backend.model
    if not isinstance(model, models.BPE) or model.dropout:
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    normalizer, cuts = _state(backend.normalizer), _state(backend.pre_tokenizer)
    steps = cuts.get("pretokenizers", [cuts])
    if _is_byte_level(steps) and normalizer.get("type") in (None, "NFC"):
        lines = len(steps) == 2
        normalize = backend.normalizer and backend.normalizer.normalize_str
        words = _words_first(backend, _MARKED_WORD if lines else _WORD)
        return Remembered(ByteCutter(lines=lines), words, normalize, whole=_whole(backend))
    if normalizer == _DUMMY_PREFIX and _is_of_words(steps) and not model.ignore_merges:
        pieces = [piece.replace("▁", " ") for piece in backend.get_vocab(with_added_tokens=False)]
        return Remembered(PieceCutter(pieces), _joins(model), _dummy_prefix, whole=_whole(backend))
    return None


def encoder_of_pieces(backend: Tokenizer, model: SentencePieceModel, normalize: Callable[[str], str]) -> Encoder | None:
    """The same for the pipeline that :mod:`glmlike.tokenization.sentencepiece_bpe` makes of ``model``.

    ``normalize`` is used in place of the pipeline's own normaliser, and leaves blanks for "▁". None if a piece is no
    result of joins: the pipeline would take it where it is a word, not where it is a part of one.
    """
    pieces = [(piece, number) for number in model.of_type("normal") if len(piece := model.pieces[number]) > 1]
    encode = _joins(backend.model)
    joined = encode([piece + _NOTHING for piece, _ in pieces])
    if any(ids != (number, model.unk_id) for ids, (_, number) in zip(joined, pieces, strict=True)):
        return None
    unknown = None if model.byte_fallback else model.unk_id
    cutter = PieceCutter(piece.replace("▁", " ") for piece in model.pieces)
    first = _first_time(backend)
    known = set(model.pieces)
    others = {model.pieces[number] for number, kind in enumerate(model.types) if kind not in ("normal", "user")}

    def encode_parts(parts: list[str]) -> list[tuple[int, ...]]:
        spelled = [part.replace(" ", "▁") for part in parts]
        ids = first([part + _NOTHING if part in others else part for part in spelled])
        apart = [part in others and part[-1] in known for part in spelled]  # else the last id is of both
        return [each[:-1] if cut else each for cut, each in zip(apart, ids, strict=True)]

    return Remembered(cutter, encode_parts, normalize, unknown)


def _joins(model: models.BPE) -> Callable[[list[str]], list[tuple[int, ...]]]:
    """Encodes parts, with blanks for "▁", that nothing cuts further."""
    tokens = model.tokenize
    return lambda parts: [tuple([each.id for each in tokens(part.replace(" ", "▁"))]) for part in parts]


_DUMMY_PREFIX = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def _dummy_prefix(text: str) -> str:
    """With blanks for "▁": most texts are ASCII then, which Python cuts faster."""
    return " " + text.replace("▁", " ") if text else ""


def _state(component: Any) -> dict[str, Any]:
    state: dict[str, Any] = {} if component is None else json.loads(component.__getstate__())
    return state


def _is_byte_level(steps: list[dict[str, Any]]) -> bool:
    """GPT-2's words, or those of GLM-4 and its kin, as bytes."""
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] != (len(steps) == 1):
        return False
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return len(steps) == 1 or any(steps[:-1] == [{**split, "pattern": {"Regex": each}}] for each in _LINES)


def _is_of_words(steps: list[dict[str, Any]]) -> bool:
    """Words with the blanks in front of them, and single characters: what ``sentencepiece_bpe`` cuts; or no cuts."""
    if len(steps) != 1 or steps[0].get("type") != "Split":
        return steps == [{}]
    pattern = str(steps[0]["pattern"].get("Regex"))
    return steps[0]["behavior"] == "Isolated" and _WORDS.fullmatch(pattern) is not None


_WORDS = re.compile(r"(?:\[(?P<alone>(?:\\x\{[0-9a-f]+\})+)\]\|▁\*\[\^▁(?P=alone)\]\+|▁\*\[\^▁\]\+)\|▁\+")


def _first_time(backend: Tokenizer) -> Callable[[list[str]], list[tuple[int, ...]]]:
    """Encodes parts of normalised texts with the model of ``backend``, on all cores."""
    bare = Tokenizer(backend.model)
    bare.pre_tokenizer = backend.pre_tokenizer
    return lambda parts: [tuple(each.ids) for each in bare.encode_batch_fast(parts, add_special_tokens=False)]


def _whole(backend: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    """Encodes texts as they are given, on all cores."""
    bare = Tokenizer(backend.model)
    bare.pre_tokenizer = backend.pre_tokenizer
    if backend.normalizer is not None:
        bare.normalizer = backend.normalizer
    return lambda texts: [each.ids for each in bare.encode_batch_fast(texts, add_special_tokens=False)]


def _words_first(backend: Tokenizer, word: re.Pattern[str]) -> Callable[[list[str]], list[tuple[int, ...]]]:
    """The same for byte-level BPE; on few cores words are given to the model itself, which takes a third of the time.

    A whole pipeline costs some microseconds a part, and has all cores to itself.
    """
    pipeline, tokens = _first_time(backend), backend.model.tokenize

    def encode(parts: list[str]) -> list[tuple[int, ...]]:
        words = list(filter(word.fullmatch, parts)) if cores() < MANY_CORES else []
        ids = {}
        for each, spelled in zip(words, byte_bpe.spelled(words), strict=True):
            ids[each] = tuple([token.id for token in tokens(spelled)])
        others = [part for part in parts if part not in ids] if words else parts
        ids.update(zip(others, pipeline(others), strict=True))
        return [ids[part] for part in parts]

    return encode


def cores() -> int:
    """How many cores `tokenizers` encodes on."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("0", "false", "off", "no", "n", "f", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
