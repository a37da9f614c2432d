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
from glmlike.errors import ConfigError, GlmLikeError
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


def blocks_of_positions(position_ids: Tensor, attention_mask: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """What ``context_blocks`` says, from explicit positions [B, 2, T] where embeddings stand in the place of ids.

    The second coordinate is 0 in a context and counts from 1 in a piece.
    """
    real, samples = _real(position_ids[:, 1], attention_mask), Samples(seq_idx, position_ids[:, 1])
    pieces = (position_ids[:, 1] > 0) & real
    context = (samples.count(pieces) == 0) & (samples.over(pieces, "amax") > 0) & real
    return torch.where(context, samples.number, -1)


def prompt_positions(position_ids: Tensor, prompt: Tensor, config: GlmLikeConfig) -> Tensor:
    """The positions a caller gave for a prompt [B, T, ...], one row of them for each of its rows.

    Raises:
        ValueError: they are not [B, 2, T] ([B, T] for a decoder with one-dimensional positions).
    """
    rows, length = prompt.shape[:2]
    shape = (rows, 2, length) if config.positions in ("rotary_2d", "learned_2d") else (rows, length)
    if position_ids.shape not in (shape, (1, *shape[1:])):
        raise ValueError(
            f"position_ids {list(position_ids.shape)} for a prompt {[rows, length]}: expected {list(shape)}, one for "
            "each token of the prompt. Leave them out, or pass those of model.infilling_positions(input_ids)."
        )
    return position_ids.expand(shape)


def continued_positions(prompt: Tensor, attention_mask: Tensor | None, length: int) -> Tensor:
    """Explicit positions of a prompt of T tokens, [B, 2, T] or [B, T], for the ``length`` tokens it has grown to.

    What follows a piece belongs to it: the position stays, the place in the piece counts on. What follows a context
    alone counts on. With one-dimensional positions a piece counts on if its prompt ends beyond every position before,
    as after [gMASK] or plain text; otherwise it stands at its blank, and the position stays.
    """
    given = prompt.shape[-1]
    last = prompt[..., -1:]
    new = torch.arange(1, length - given + 1, dtype=prompt.dtype, device=prompt.device)
    if prompt.ndim == 3:
        in_piece = last[:, 1] > 0
        added = torch.stack((torch.where(in_piece, 0, new), torch.where(in_piece, new, 0)), dim=1)
        return torch.cat((prompt, last + added), dim=-1)[..., :length]
    real = _real(prompt, None if attention_mask is None else attention_mask[:, :given])
    before = torch.where(real, prompt, -1)[:, :-1]
    counts_on = (before < last).all(-1, keepdim=True)
    return torch.cat((prompt, last + torch.where(counts_on, new, 0)), dim=-1)[..., :length]


def require_blanks(input_ids: Tensor, attention_mask: Tensor | None, config: GlmLikeConfig) -> None:
    """Check that every row [B, T] is fit to be filled: a context with blanks, then a start-of-piece token.

    Plain ``forward`` and ``generate`` take any row (see ``infilling_positions``); this is for callers whose task makes
    no sense otherwise. Padding (0 in ``attention_mask``) is not looked at.

    Raises:
        ConfigError: the config does not name the tokens.
        GlmLikeError: a row has no start of a piece, no blank, a blank only after it, or two [gMASK].
    """
    names = ("mask_token_id", "smask_token_id", "gmask_token_id")
    known = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.sop_token_id is None or not known:
        raise ConfigError(
            f"the config names {known or 'no blank'} and sop_token_id={config.sop_token_id}: filling blanks needs the "
            "ids of at least one blank and of the start of a piece. Set mask_token_id, sop_token_id and their like."
        )
    real = _real(input_ids, attention_mask)
    starts, blanks = _is(config.sop_token_id, input_ids) & real, _blanks(input_ids, config) & real
    context = (starts.cumsum(-1) == 0) & real
    several = (_is(config.gmask_token_id, input_ids) & context).sum(-1)
    said = ", ".join(f"{name.removesuffix('_token_id')} {token}" for name, token in known.items())
    for wrong, what in (
        (~blanks.any(-1), f"no blank ({said}). Put one where text is missing, or [gMASK] at the end"),
        (~starts.any(-1), f"no start of a piece (sop {config.sop_token_id}). End the prompt with it"),
        (
            ~(blanks & context).any(-1),
            f"no blank before its start of a piece (sop {config.sop_token_id}). Put one there",
        ),
        (several > 1, f"several [gMASK] ({config.gmask_token_id}): each stands for all that follows. Leave one"),
    ):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise GlmLikeError(f"row {row} of {len(input_ids)}, {int(real[row].sum())} tokens: {what}.")


def require_whole_rows(
    input_ids: Tensor, attention_mask: Any, seen: int, config: GlmLikeConfig, *, positions_given: bool = False
) -> None:
    """Check what generate hands over beside a cache that holds the first ``seen`` tokens.

    A caller who gives positions says how the cached tokens were read (``glmlike.infilling.fill`` reads a context with a
    start-of-piece token behind it, and takes that out again).

    Raises:
        ValueError: only the newest tokens are given; or a context goes on after the cached part, whose tokens then were
            read without seeing the rest of it.
    """
    if seen == 0:
        return
    if input_ids.shape[1] <= seen:
        raise ValueError(
            f"{input_ids.shape[1]} tokens beside a cache of {seen}: masks and positions of blank infilling follow from "
            "whole rows. Hand the cache back with all token ids, and leave prefill_chunk_size out."
        )
    real = _real(input_ids, attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None)
    starts = _is(config.sop_token_id, input_ids) & real
    late = starts[:, seen:].any(-1) & ~starts[:, :seen].any(-1)
    if not positions_given and bool(late.any()):
        raise ValueError(
            f"row {int(late.nonzero()[0, 0])}: its context ends after the {seen} tokens in the cache, which were read "
            "without seeing the rest of it. Start without the cache."
        )


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
