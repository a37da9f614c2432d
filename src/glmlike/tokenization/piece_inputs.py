"""GLM-10B's inputs for generation: the positions of a piece, and a mask that shows it its context and its own past."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.tokenization_utils_base import BatchEncoding

from glmlike.errors import GlmLikeError

_IGNORED = -100
_SPELLED = {"sop_token": "<|startofpiece|>", "eop_token": "<|endofpiece|>"}


def build_piece_inputs(
    tokenizer: Any, model_input: Any, max_gen_length: int, targets: Any, padding: bool
) -> BatchEncoding:
    """See ``PromptHelpersMixin.build_inputs_for_generation``. Shapes: B rows, T tokens of a context, G of a piece."""
    ids_BT, shown_BT = model_input["input_ids"], model_input["attention_mask"]
    sop = _token_id(tokenizer, "sop_token")
    pieces = None if targets is None else _pieces(tokenizer, targets, len(ids_BT), max_gen_length)
    if pieces is not None and not padding:
        max_gen_length = max(map(len, pieces))
    batch = {"position_ids": _positions(tokenizer, ids_BT, max_gen_length)}
    mask = _mask(shown_BT, max_gen_length)
    start = ids_BT.new_full((len(ids_BT), 1), sop)
    if pieces is None:
        return BatchEncoding({"input_ids": torch.cat((ids_BT, start), 1), **batch, "generation_attention_mask": mask})
    labels_BG = _filled(pieces, max_gen_length, _IGNORED, ids_BT)
    inputs_BG = _filled(pieces, max_gen_length, tokenizer.pad_token_id, ids_BT)
    return BatchEncoding(
        {
            "input_ids": torch.cat((ids_BT, start, inputs_BG[:, :-1]), 1),
            **batch,
            "attention_mask": mask,
            "labels": torch.cat((torch.full_like(ids_BT, _IGNORED), labels_BG), 1),
        }
    )


def _pieces(tokenizer: Any, targets: Any, rows: int, longest: int) -> list[list[int]]:
    """The tokens of each target, its end included."""
    texts = list(targets) if isinstance(targets, (list, tuple)) else [targets]
    if len(texts) != rows:
        raise GlmLikeError(f"{len(texts)} targets for {rows} texts: one for each is needed.")
    eop = _token_id(tokenizer, "eop_token")
    encoded = tokenizer(texts, add_special_tokens=False, padding=False)["input_ids"]
    return [[*tokens, eop][:longest] for tokens in encoded]


def _filled(pieces: list[list[int]], length: int, filler: int, like: Tensor) -> Tensor:
    rows = [piece + [filler] * (length - len(piece)) for piece in pieces]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _positions(tokenizer: Any, ids_BT: Tensor, length: int) -> Tensor:
    """[B, 2, T + G]: places, those of a piece all being its blank's; and places in the piece, 0 in the context."""
    rows, context = ids_BT.shape
    names = {tokenizer.mask_token, "[MASK]", "[sMASK]", "[gMASK]"} - {None}
    blanks = [number for name in names if (number := _known(tokenizer, name)) is not None]
    is_blank = torch.isin(ids_BT, torch.tensor(sorted(blanks), dtype=ids_BT.dtype, device=ids_BT.device))
    if not bool(is_blank.any(1).all()):
        row = int((~is_blank.any(1)).nonzero()[0])
        raise GlmLikeError(f"text {row} has no blank: write {', '.join(sorted(names))} where it is to be filled.")
    blank_B1 = is_blank.int().argmax(1, keepdim=True)
    steps = torch.arange(context, device=ids_BT.device).expand(rows, -1)
    pieces = torch.arange(1, length + 1, device=ids_BT.device).expand(rows, -1)
    first = torch.cat((steps, blank_B1.expand(-1, length)), 1)
    second = torch.cat((torch.zeros_like(steps), pieces), 1)
    return torch.stack((first, second), 1).to(ids_BT.dtype)


def _mask(shown_BT: Tensor, length: int) -> Tensor:
    """[B, 1, T + G, T + G], 1 where a token is seen: the context by all, a piece by its own later tokens."""
    rows, context = shown_BT.shape
    left = shown_BT[:, None, :].expand(-1, context + length, -1)
    own = torch.tril(shown_BT.new_ones((length, length)))
    right = torch.cat((shown_BT.new_zeros((context, length)), own)).expand(rows, -1, -1)
    return torch.cat((left, right), 2)[:, None]


def _token_id(tokenizer: Any, name: str) -> int:
    found = getattr(tokenizer, f"{name}_id", None)
    found = found if found is not None else _known(tokenizer, _SPELLED[name])
    if found is None:
        raise GlmLikeError(f"the tokenizer has no {_SPELLED[name]}: it is not one of GLM-10B's family.")
    return int(found)


def _known(tokenizer: Any, token: str) -> int | None:
    """The id of a token, None where the vocabulary has no such token (not the id of unknown ones)."""
    return int(tokenizer.convert_tokens_to_ids(token)) if token in tokenizer.get_added_vocab() else None
