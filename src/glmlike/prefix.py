"""Positions and masks of blank infilling, derived from token ids (GLM, arXiv 2103.10360, section 2).

A row is a context with blanks (part A in the paper), each a [MASK], [sMASK] or [gMASK] token, and then pieces (part B),
each begun by a start-of-piece token. The context is seen both ways; a piece sees the context and what stands before it.
Every token of a piece has the position of the blank it fills; its place in the piece, counted from 1, is the second
coordinate. Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glmlike.configuration import GlmLikeConfig
from glmlike.errors import ConfigError


def infilling_positions(input_ids: Tensor, attention_mask: Tensor | None, config: GlmLikeConfig) -> Tensor:
    """Positions of whole rows of token ids: [B, 2, T], or [B, T] for a decoder with one-dimensional positions.

    Padding (0 in ``attention_mask`` [B, T]) is not counted. The k-th piece fills the k-th blank, the last if there are
    fewer; a [gMASK] in the row is filled by every piece (ChatGLM-6B: modeling_chatglm.py, ``get_position_ids``). A
    row with pieces but no blank is read as if a [gMASK] ended its context; a row without a piece has plain positions.
    With one-dimensional positions a piece that fills a [gMASK] counts on (GLM-130B: generate.py).
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].long()
    place = (real.cumsum(-1) - 1).clamp(min=0)
    starts = _is_start(input_ids, real, config)
    piece = starts.cumsum(-1)
    context = piece == 0

    target = _blank_of_piece(input_ids, place, context & real.bool(), piece, config)
    begun = torch.where(starts, place, 0).cummax(-1).values
    position = torch.where(context, place, target)
    block = torch.where(context, 0, place - begun + 1)
    if config.positions in ("rotary_2d", "learned_2d"):
        return torch.stack((position, block), dim=1)
    generated = torch.isin(input_ids, _ids(config.gmask_token_id, input_ids)) & context & real.bool()
    counts_on = generated.any(-1, keepdim=True) | ~_blanks(input_ids, context & real.bool(), config).any(
        -1, keepdim=True
    )
    return torch.where(counts_on, place, position)


def context_blocks(input_ids: Tensor, attention_mask: Tensor | None, config: GlmLikeConfig) -> Tensor:
    """[B, T]: 0 for the tokens that see each other both ways, -1 for those that only look back.

    The context of a row is what stands before its first start-of-piece token; a row without one is causal throughout.
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].long()
    starts = _is_start(input_ids, real, config)
    context = (starts.cumsum(-1) == 0) & starts.any(-1, keepdim=True) & real.bool()
    return torch.where(context, 0, -1)


def continued_positions(position_ids: Tensor, attention_mask: Tensor | None, count: int) -> Tensor:
    """``position_ids`` [B, 2, T] or [B, T] of rows that end in a piece, with those of its next ``count`` tokens added.

    With two coordinates, the position stays and the place in the piece counts on. With one, a last position that is the
    token's place in its row (padding not counted) counts on, and one that repeats a blank's position stays.
    """
    last = position_ids[..., -1:]
    steps = torch.arange(1, count + 1, dtype=position_ids.dtype, device=position_ids.device)
    if position_ids.ndim == 3:
        moves = torch.tensor([[0], [1]], dtype=position_ids.dtype, device=position_ids.device)
    else:
        length = position_ids.shape[-1] if attention_mask is None else attention_mask.sum(-1, keepdim=True)
        moves = (last == length - 1).to(position_ids.dtype)
    return torch.cat((position_ids, last + moves * steps), dim=-1)


def refuse_flash(attention: str | None) -> None:
    """Raise ConfigError for an attention implementation that would drop the context's mask."""
    if attention is not None and "flash" in attention:
        raise ConfigError(
            f"attn_implementation={attention!r} with attention_mask='prefix': flash attention takes no mask, so the "
            "context would silently be read in one direction. Use 'sdpa', 'eager' or 'flex_attention'."
        )


def refuse_paged(*caches: Any) -> None:
    """Raise ConfigError when one of the caches is that of continuous batching."""
    if any(cache is not None and not hasattr(cache, "get_seq_length") for cache in caches):
        raise ConfigError(
            "continuous batching (generate_batch) with attention_mask='prefix': its paged cache packs rows without "
            "their contexts, which would silently be read one way. Use generate; its batches may mix rows of any kind."
        )


def additive(attention_mask: Any, like: Tensor) -> Any:
    """A ready bool mask [B, 1, T, S] (True: may attend) as the numbers every attention implementation adds."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 4 or attention_mask.dtype != torch.bool:
        return attention_mask
    return torch.zeros_like(attention_mask, dtype=like.dtype).masked_fill(~attention_mask, torch.finfo(like.dtype).min)


def _is_start(input_ids: Tensor, real: Tensor, config: GlmLikeConfig) -> Tensor:
    return torch.isin(input_ids, _ids(config.sop_token_id, input_ids)) & real.bool()


def _blanks(input_ids: Tensor, context: Tensor, config: GlmLikeConfig) -> Tensor:
    known = (config.mask_token_id, config.smask_token_id, config.gmask_token_id)
    return torch.isin(input_ids, torch.cat([_ids(token, input_ids) for token in known])) & context


def _ids(token: int | None, like: Tensor) -> Tensor:
    return torch.tensor([] if token is None else [token], dtype=like.dtype, device=like.device)


def _blank_of_piece(input_ids: Tensor, place: Tensor, context: Tensor, piece: Tensor, config: GlmLikeConfig) -> Tensor:
    """For every token, the position of the blank that its piece fills (meaningless in the context)."""
    blanks = _blanks(input_ids, context, config)
    order = blanks.cumsum(-1)
    count = order[:, -1:]
    # found[b, k] is the position of the k-th blank of row b, from 1; slot 0 takes what is no blank.
    found = torch.zeros(input_ids.shape[0], input_ids.shape[1] + 1, dtype=place.dtype, device=place.device)
    found = found.scatter(1, torch.where(blanks, order, 0), place)
    target = found.gather(1, torch.minimum(piece, count))

    generated = torch.isin(input_ids, _ids(config.gmask_token_id, input_ids)) & context
    first_generated = torch.where(generated, place, place.max() + 1).amin(-1, keepdim=True)
    target = torch.where(generated.any(-1, keepdim=True), first_generated, target)
    last_of_context = torch.where(context, place, 0).amax(-1, keepdim=True)
    return torch.where(count == 0, last_of_context, target)
