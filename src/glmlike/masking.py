"""What a forward pass derives when it is not told: positions, which tokens see each other both ways, attention masks.

Shapes: B rows, T tokens, S keys. The rules of blank infilling are in :mod:`glmlike.prefix`, those of packed rows in
:mod:`glmlike.packing`; here they become what transformers' attention functions take.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)

from glmlike.configuration import GlmLikeConfig
from glmlike.packing import Samples, restart, samples_of_positions
from glmlike.prefix import additive, blocks_of_positions, context_blocks, infilling_positions, refuse_flash
from glmlike.renamed import CACHE


def packed_by_positions(
    config: GlmLikeConfig, input_ids: Any, position_ids: Any, attention_mask: Any, seq_idx: Tensor | None
) -> tuple[Any, Tensor | None]:
    """What an infilling decoder makes of plain positions [B, T], as packing collators write them: (positions, seq_idx).

    They say where the samples of a row begin. A decoder with two-dimensional positions derives its own within each;
    one-dimensional positions are taken as given. A start-of-piece token at position 0 is a piece that fills the first
    token of its row, not the beginning of a sample.
    """
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2 or attention_mask is not None:
        return position_ids, seq_idx
    found = None if input_ids is None else samples_of_positions(position_ids)
    if found is None:
        return position_ids, seq_idx
    if config.positions in ("rotary_2d", "learned_2d"):
        if seq_idx is None:
            return None, found
        return (None if _same_samples(found, seq_idx) else position_ids), seq_idx
    pieces = (input_ids == config.sop_token_id) & (position_ids == 0)
    if seq_idx is not None or not restart(position_ids) or bool(pieces[:, 1:].any()):
        return position_ids, seq_idx
    return position_ids, found


def _same_samples(found: Tensor, seq_idx: Tensor) -> bool:
    if torch.compiler.is_compiling() or found.shape != seq_idx.shape:
        return True  # a seq_idx that is not of these rows is refused with a sentence of its own
    return bool((Samples(found, found).number == Samples(seq_idx.to(found.device), found).number).all())


def default_positions(
    config: GlmLikeConfig,
    input_ids: Any,
    inputs_embeds: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    seq_idx: Tensor | None,
) -> Tensor:
    """Positions of tokens that come without: plain ones, or those of blank infilling.

    Raises:
        ValueError: the positions of an infilling decoder depend on tokens that are not at hand.
    """
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    padding = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None
    if config.attention_mask == "causal":
        if config.prefix_length and padding is not None and seq_idx is None:
            # The keys of a P-tuning prefix have no positions: how far a token is from where its row begins is seen.
            return (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        plain = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        return plain if seq_idx is None else plain - Samples(seq_idx, inputs_embeds).first
    if input_ids is None or seen:
        raise ValueError(
            "position_ids are needed here: the positions of blank infilling follow from all tokens of a row, but "
            "only embeddings or the newest tokens are given. Pass model.infilling_positions(all_input_ids), cut "
            "to the tokens of this call."
        )
    return infilling_positions(input_ids, padding, config, seq_idx)


def visible_contexts(
    config: GlmLikeConfig,
    input_ids: Any,
    position_ids: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    seq_idx: Tensor | None,
) -> Tensor | None:
    """Which tokens see each other both ways; None where none do, or where a ready mask says it.

    Raises:
        ValueError: neither token ids nor positions tell where the contexts end.
    """
    ready = isinstance(attention_mask, dict) or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 4)
    if config.attention_mask == "causal" or ready:
        return None
    if past_key_values is not None and position_ids.shape[-1] == 1:
        return None
    seen: Any = 0 if past_key_values is None else past_key_values.get_seq_length()
    if not (isinstance(seen, Tensor) and torch.compiler.is_compiling()) and seen > 0:
        return None
    if input_ids is not None:
        blocks = context_blocks(input_ids, attention_mask, config, seq_idx)
    elif position_ids.ndim == 3:
        blocks = blocks_of_positions(position_ids, attention_mask, seq_idx)
    else:
        raise ValueError(
            "inputs_embeds with attention_mask='prefix': neither embeddings nor one-dimensional positions tell "
            "where contexts end. Pass input_ids, or a bool attention_mask [B, 1, T, T]: True where a token may "
            "attend."
        )
    # The length of a static cache is a tensor, on which a compiled graph cannot branch.
    return torch.where(seen > 0, -1, blocks) if isinstance(seen, Tensor) else blocks


def attention_masks(
    config: GlmLikeConfig,
    layer_types: Collection[str],
    attention_mask: Any,
    inputs_embeds: Tensor,
    past_key_values: Cache | None,
    position_ids: Tensor,
    blocks: Tensor | None,
    seq_idx: Tensor | None,
) -> dict[str, Any]:
    """The attention mask of each layer type in use; a dict (as `generate` prepares for a static cache) is kept."""
    if isinstance(attention_mask, dict):
        return attention_mask
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        CACHE: past_key_values,
    }
    ready = attention_mask is not None and len(attention_mask.shape) != 2
    if seq_idx is not None and not ready:
        # It says more than positions that restart; padding is a sample of its own, so that no token sees nothing.
        same = packed_sequence_mask_function(Samples(seq_idx, inputs_embeds).labels(attention_mask))
        arguments |= {"position_ids": None, "attention_mask": None, "and_mask_function": same}
    if config.attention_mask == "prefix":
        refuse_flash(config._attn_implementation)
        # Repeated positions are blanks here, not the beginning of another packed row.
        arguments |= {"position_ids": None, "attention_mask": additive(arguments["attention_mask"], inputs_embeds)}
        return {"full_attention": create_causal_mask(**arguments, block_sequence_ids=blocks)}
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    return {layer_type: makers[layer_type](**arguments) for layer_type in layer_types}
