"""Positions and masks of blank infilling, derived from token ids (GLM, arXiv 2103.10360, section 2).

A row is a context with blanks (part A in the paper), each a [MASK], [sMASK] or [gMASK] token, and then pieces (part B),
each begun by a start-of-piece token. The context is seen both ways; a piece sees the context and what stands before it.
Every token of a piece has the position of the blank it fills; its place in the piece, counted from 1, is the second
coordinate. Of packed rows (``seq_idx``, see glmlike.packing) each sample is such a row. Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glmlike.configuration import GlmLikeConfig
from glmlike.errors import ConfigError
from glmlike.packing import Samples


def infilling_positions(
    input_ids: Tensor, attention_mask: Tensor | None, config: GlmLikeConfig, seq_idx: Tensor | None = None
) -> Tensor:
    """Positions of whole rows of token ids: [B, 2, T], or [B, T] for a decoder with one-dimensional positions.

    Padding (0 in ``attention_mask`` [B, T]) is not counted; every sample of a packed row (``seq_idx`` [B, T]) starts
    anew. The k-th piece fills the k-th blank, the last if there are
    fewer; a [gMASK] in the row is filled by every piece (ChatGLM-6B: modeling_chatglm.py, ``get_position_ids``). A
    row with pieces but no blank is read as if a [gMASK] ended its context; a row without a piece has plain positions.
    With one-dimensional positions a piece that fills a [gMASK] counts on (GLM-130B: generate.py).
    """
    real, samples = _real(input_ids, attention_mask), Samples(seq_idx, input_ids)
    place = (samples.count(real) - 1).clamp(min=0)
    starts = _is(config.sop_token_id, input_ids) & real
    piece = samples.count(starts)
    context = (piece == 0) & real
    blanks = _blanks(input_ids, config) & context
    generated = _is(config.gmask_token_id, input_ids) & context

    target = _blank_of_piece(blanks, generated, context, piece, place, samples)
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begun = place.gather(1, torch.where(starts, index, 0).cummax(-1).values)
    position = torch.where(piece == 0, place, target)
    block = torch.where(piece == 0, 0, place - begun + 1)
    if config.positions in ("rotary_2d", "learned_2d"):
        return torch.stack((position, block), dim=1)
    counts_on = (samples.over(generated, "amax") > 0) | (samples.over(blanks, "amax") == 0)
    return torch.where(counts_on, place, position)


def context_blocks(
    input_ids: Tensor, attention_mask: Tensor | None, config: GlmLikeConfig, seq_idx: Tensor | None = None
) -> Tensor:
    """[B, T]: tokens with the same number from 0 see each other both ways, those with -1 only look back.

    The context of a sample is what stands before its first start-of-piece token; without one it is causal throughout.
    """
    real, samples = _real(input_ids, attention_mask), Samples(seq_idx, input_ids)
    starts = _is(config.sop_token_id, input_ids) & real
    context = (samples.count(starts) == 0) & (samples.over(starts, "amax") > 0) & real
    return torch.where(context, samples.number, -1)


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


def _real(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask[:, -input_ids.shape[1] :].bool()


def _is(token: int | None, input_ids: Tensor) -> Tensor:
    return torch.zeros_like(input_ids, dtype=torch.bool) if token is None else input_ids == token


def _blanks(input_ids: Tensor, config: GlmLikeConfig) -> Tensor:
    mask, smask, gmask = config.mask_token_id, config.smask_token_id, config.gmask_token_id
    return _is(mask, input_ids) | _is(smask, input_ids) | _is(gmask, input_ids)


def _blank_of_piece(
    blanks: Tensor, generated: Tensor, context: Tensor, piece: Tensor, place: Tensor, samples: Samples
) -> Tensor:
    """For every token, the position of the blank that its piece fills (meaningless in the context)."""
    count = samples.over(blanks, "sum")
    # found[b, first + k] is the position of the k-th blank of a sample, from 1; slot 0 takes what is no blank.
    found = torch.zeros(place.shape[0], place.shape[1] + 1, dtype=place.dtype, device=place.device)
    found = found.scatter(1, torch.where(blanks, samples.first + samples.count(blanks), 0), place)
    target = found.gather(1, samples.first + torch.minimum(piece, count))

    beyond = place.shape[1]
    first_generated = samples.over(torch.where(generated, place, beyond), "amin")
    target = torch.where(first_generated < beyond, first_generated, target)
    last_of_context = samples.over(torch.where(context, place, 0), "amax")
    return torch.where(count == 0, last_of_context, target)
