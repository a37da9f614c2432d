"""Batches of texts as ids and masks, without an `Encoding` of Rust for each text.

What most callers ask for, ``input_ids`` and ``attention_mask``, is put together from remembered ids
(:mod:`glmlike.tokenization.remembered`). The encodings behind ``tokens()``, ``word_ids()`` and their kin are made when
somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, overload

from tokenizers import Encoding, PreTokenizedString, Token, Tokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

from glmlike.tokenization.remembered import Encoder
from glmlike.tokenization.stretches import AddedTokens


class Around(NamedTuple):
    """The special tokens that ``backend`` puts before and behind a single text."""

    before: list[int]
    behind: list[int]


def around(backend: Tokenizer) -> Around | None:
    """What is around a text; None where that is nothing as simple."""
    if backend.post_processor is None:
        return Around([], [])
    probe = PreTokenizedString("a")
    probe.tokenize(lambda text: [Token(0, text, (0, 1))])
    whole = backend.post_processor.process(probe.to_encoding())
    own = [at for at, special in enumerate(whole.special_tokens_mask) if not special]
    if len(own) != 1 or whole.ids[own[0]] != 0:
        return None
    return Around(whole.ids[: own[0]], whole.ids[own[0] + 1 :])


class Asked(NamedTuple):
    """The arguments of ``_encode_plus`` that are answered here."""

    add_special_tokens: bool = True
    padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD
    truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE
    max_length: int | None = None
    stride: int = 0
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: Any = None
    return_attention_mask: bool | None = None
    return_length: bool = False
    verbose: bool = True
    split_special_tokens: bool | None = None

    def is_simple(self) -> bool:
        """Whether nothing is asked for that needs more than ids."""
        return not self.stride and self.truncation_strategy in _SIMPLE

    def finish(self, rows: list[list[int]], sides: Around, tokenizer: Any) -> dict[str, list[Any]] | None:
        """``rows`` truncated, with special tokens around them, padded, and what else is asked for by name.

        None where Rust is to say what is wrong.
        """
        length = None
        if self.truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE:
            left = -1 if self.max_length is None else self.max_length - len(sides.before) - len(sides.behind)
            if left < 0:
                return None
            rows = truncated(rows, left, tokenizer.truncation_side)
        if sides.before or sides.behind:
            rows = [[*sides.before, *row, *sides.behind] for row in rows]
        if self.padding_strategy != PaddingStrategy.DO_NOT_PAD:
            longest = self.padding_strategy == PaddingStrategy.LONGEST or self.max_length is None
            length = max(map(len, rows)) if longest else self.max_length
            if tokenizer.pad_token_id is None or length is None:
                return None
            if self.pad_to_multiple_of:
                length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        side = tokenizer.padding_side if self.padding_side is None else self.padding_side
        rows, masks = padded(rows, length or 0, tokenizer.pad_token_id or 0, side)
        data: dict[str, list[Any]] = {"input_ids": rows}
        asked = self.return_attention_mask
        if "attention_mask" in tokenizer.model_input_names if asked is None else asked:
            data["attention_mask"] = masks
        if self.return_length:
            data["length"] = list(map(len, rows))
        return data


_SIMPLE = (*(TruncationStrategy.DO_NOT_TRUNCATE, TruncationStrategy.LONGEST_FIRST, TruncationStrategy.ONLY_FIRST),)


def ids_of(texts: list[str], encoder: Encoder, added: AddedTokens, token_id: Callable[[str], int]) -> list[list[int]]:
    """The ids of every text, added tokens among them. UnicodeEncodeError for lone surrogates."""
    cuts = [added.stretches(text) for text in texts]
    if all(len(each) == 1 and each[0].added is None for each in cuts):
        return encoder.encode_all(texts)
    plain = [
        text[each.start : each.end]
        for text, stretches in zip(texts, cuts, strict=True)
        for each in stretches
        if each.added is None
    ]
    found = iter(encoder.encode_all(plain))
    return [
        list(chain.from_iterable(next(found) if each.added is None else [token_id(each.added)] for each in stretches))
        for stretches in cuts
    ]


def truncated(rows: list[list[int]], longest: int, side: str) -> list[list[int]]:
    """``rows`` of at most ``longest`` ids, cut on ``side``."""
    return [row[max(len(row) - longest, 0) :] if side == "left" else row[:longest] for row in rows]


def padded(rows: list[list[int]], length: int, pad_id: int, side: str) -> tuple[list[list[int]], list[list[int]]]:
    """``rows`` of at least ``length`` ids, and their attention masks."""
    ids, masks = [], []
    for row in rows:
        pads, ones = [pad_id] * (length - len(row)), [1] * len(row)
        ids.append([*pads, *row] if side == "left" else [*row, *pads])
        zeros = [0] * len(pads)
        masks.append([*zeros, *ones] if side == "left" else [*ones, *zeros])
    return ids, masks


class Encodings(Sequence[Encoding]):
    """The encodings of a batch, made by ``make`` when the first is asked for; pickled as a list."""

    def __init__(self, size: int, make: Callable[[], list[Encoding]]) -> None:
        self._size, self._make = size, make
        self._made: list[Encoding] | None = None

    def _all(self) -> list[Encoding]:
        if self._made is None:
            self._made = self._make()
        return self._made

    @overload
    def __getitem__(self, index: int) -> Encoding: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoding]: ...
    def __getitem__(self, index: int | slice) -> Encoding | list[Encoding]:
        return self._all()[index]

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> tuple[type[list[Encoding]], tuple[list[Encoding]]]:
        return list, (self._all(),)
