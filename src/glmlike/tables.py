"""Looking rows up in embedding tables, with a sentence for what has no row.

The look-up is tried first and examined only when it failed, so the usual path costs nothing. On accelerators and under
the compiler torch itself does not check; nothing is added there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glmlike.errors import VocabularyError

_FIRST_VOCABULARY, _LATER_VOCABULARY = 150_528, 130_528
"""Rows of ChatGLM-6B's first release (20000 image tokens, then the text) and of every later one (the text alone)."""


def look_up_tokens(table: nn.Module, input_ids: Any, vocab_size: int) -> Any:
    """The embeddings [B, T, D] of token ids [B, T].

    Raises:
        VocabularyError: an id has no row; the message names the first one, the vocabulary, and what it may be of.
    """
    if torch.compiler.is_compiling():
        return table(input_ids)
    try:
        return table(input_ids)
    except IndexError as error:
        if (found := _outside(input_ids, vocab_size)) is None:
            raise
        at, token, count = found
        others = f" (and {count - 1} more)" if count > 1 else ""
        message = f"input_ids hold {token} in row {at[0]}, place {at[-1]}{others}: vocab_size is {vocab_size}, ids go "
        hint = _advice(int(input_ids.max()), token, vocab_size)
        raise VocabularyError(f"{message}from 0 to {vocab_size - 1}. {hint}") from error


def look_up_positions(table: nn.Module, position_ids: Tensor, rows: int) -> Any:
    """The embeddings of learned positions [B, T].

    Raises:
        VocabularyError: a position has no row, since the text is longer than the tables.
    """
    if torch.compiler.is_compiling():
        return table(position_ids)
    try:
        return table(position_ids)
    except IndexError as error:
        if (found := _outside(position_ids, rows)) is None:
            raise
        at, position, _ = found
        raise VocabularyError(
            f"position {position} in row {at[0]}, place {at[-1]}: this decoder has learned positions from 0 to "
            f"{rows - 1}. Shorten the text, or generate fewer tokens."
        ) from error


def _outside(index: Tensor, rows: int) -> tuple[list[int], int, int] | None:
    """Where the first index outside 0 .. rows - 1 is, what it is, and how many there are."""
    wrong = (index < 0) | (index >= rows)
    if not wrong.any():
        return None
    at: list[int] = wrong.nonzero()[0].tolist()
    return at, int(index[wrong][0]), int(wrong.sum())


def _advice(greatest: int, first: int, vocab_size: int) -> str:
    if first < 0:
        return "Negative ids are labels that the loss leaves out; pass the tokens themselves, and those as labels."
    if vocab_size == _LATER_VOCABULARY and greatest < _FIRST_VOCABULARY:
        return (
            f"These look like ids of ChatGLM-6B's first vocabulary ({_FIRST_VOCABULARY} rows), where every id is 20000 "
            "greater: use the tokenizer that belongs to these weights, or subtract 20000 from every id."
        )
    return "Use the tokenizer that belongs to these weights, or resize_token_embeddings after adding tokens to it."
