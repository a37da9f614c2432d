"""Tying and untying the head and the token embedding, as operations that say what they changed or refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from glmlike.errors import PruningError
from glmlike.pruning.calibration import configs_of, decoder_of


@torch.no_grad()
def tie_embeddings(model: PreTrainedModel, *, tolerance: float = 0.0, force: bool = False) -> float:
    """Make the head of ``model`` its token embedding, in place; returned: the largest difference there was.

    ``tolerance`` is the largest difference of two numbers that still counts as equal (0: to the bit). ``force`` drops
    the head however different it is: the model then computes other logits, until it is trained again.

    Raises:
        PruningError: there is no head, or the two differ by more than ``tolerance``, or the head has other rows or no
            plain matrix. Nothing was changed.
    """
    head, table = _head_and_table(model)
    if head.weight.shape != table.weight.shape:
        raise PruningError(
            f"the head is {list(head.weight.shape)}, the embedding {list(table.weight.shape)}: only equal shapes can "
            "be one matrix. Resize with model.resize_token_embeddings."
        )
    difference = max(
        float((ours.float() - theirs.float().to(ours.device)).abs().max())
        for ours, theirs in zip(head.weight.split(4096), table.weight.split(4096), strict=True)
    )
    if not (difference <= tolerance or force):  # a NaN is no difference that can be tolerated
        raise PruningError(
            f"head and embedding differ by up to {difference:.3g}, more than the tolerance {tolerance:.3g}: tying "
            "would change the model. Pass a larger tolerance, or force=True and train it again."
        )
    _say(model, tied=True)
    model.tie_weights()
    return difference


@torch.no_grad()
def untie_embeddings(model: PreTrainedModel) -> bool:
    """Give ``model`` a head of its own, in place, with the numbers of the embedding; returned: whether it was tied.

    The logits do not change; the parameters grow by one table, which trains and quantizes on its own.

    Raises:
        PruningError: there is no head, or it or the embedding is no plain matrix.
    """
    head, table = _head_and_table(model)
    if not model.config.tie_word_embeddings and head.weight is not table.weight:
        return False
    head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=table.weight.requires_grad)
    _say(model, tied=False)
    return True


def _head_and_table(model: PreTrainedModel) -> tuple[Any, Any]:
    table, head = decoder_of(model).embed_tokens, getattr(model, "lm_head", None)
    if head is None:
        raise PruningError(f"{type(model).__name__} has no language-modelling head: expected a GlmLikeForCausalLM.")
    for module, kind in ((head, nn.Linear), (table, nn.Embedding)):
        if type(module) is not kind or type(module.weight) is not nn.Parameter:
            raise PruningError(
                f"{type(module).__name__} of {type(module.weight).__name__}: expected a plain {kind.__name__}, neither "
                "quantized nor wrapped nor sharded."
            )
    return head, table


def _say(model: PreTrainedModel, *, tied: bool) -> None:
    """The config, and transformers' own record of what is tied, which saving and loading go by."""
    for config in configs_of(model):
        config.tie_word_embeddings = tied
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=False)
