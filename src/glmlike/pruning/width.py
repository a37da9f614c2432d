"""Width pruning of the feed-forward branches: channels go, those first that add least (Minitron, arXiv 2407.14679)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from glmlike.errors import PruningError
from glmlike.pruning.calibration import Batch, configs_of, decoder_of, observe

_ROWS = ("gate_proj", "up_proj")  # a channel is a row of these and a column of down_proj


@dataclass(frozen=True)
class PrunedWidth:
    """What :func:`prune_width` did: the width, the channels that stayed, and the share of importance they hold."""

    intermediate_size: int
    kept: tuple[tuple[int, ...], ...]
    share: tuple[float, ...]


def channel_importance(model: PreTrainedModel, batches: Iterable[Batch]) -> list[Tensor]:
    """Of each layer the importance [F] of its channels: mean |activation| over tokens x the norm of its down column.

    That is how far a channel moves the residual stream on ``batches`` (token ids [B, T], or dicts of the decoder's
    arguments). Minitron takes the activations alone (its section 2.2); their scale is arbitrary between a row of ``up``
    and a column of ``down``, the product's is not.

    Raises:
        PruningError: the batches hold no token, or a projection is quantized, wrapped or sharded.
    """
    downs = [_plain(layer.mlp)["down_proj"] for layer in decoder_of(model).layers]
    sums = [torch.zeros(down.in_features, dtype=torch.float64, device=down.weight.device) for down in downs]

    def see(number: int, entering: Tensor, _: Tensor | None, counted: Tensor) -> None:
        sums[number] += entering[counted.to(entering.device)].abs().sum(0, dtype=torch.float64)

    tokens = observe(model, batches, downs, see, output=False)
    return [total / tokens * down.weight.detach().double().norm(dim=0) for total, down in zip(sums, downs, strict=True)]


def prune_width(
    model: PreTrainedModel, batches: Iterable[Batch], *, intermediate_size: int, multiple_of: int = 1
) -> PrunedWidth:
    """Leave each feed-forward branch of ``model``, in place, its ``intermediate_size`` most important channels.

    ``multiple_of`` rounds the size up to a multiple, for kernels and quantizers (64 is safe for all).

    Raises:
        PruningError: the rounded size is not from 1 to the present one; or as :func:`channel_importance`. Nothing was
            cut.
    """
    present = int(decoder_of(model).config.intermediate_size)
    if intermediate_size < 1 or multiple_of < 1:
        raise PruningError(f"intermediate_size={intermediate_size}, multiple_of={multiple_of}: expected at least 1.")
    width = -(-intermediate_size // multiple_of) * multiple_of
    if width > present:
        raise PruningError(
            f"intermediate_size={intermediate_size}, as a multiple of {multiple_of}: {width} channels, but this "
            f"decoder has {present}. Pass a smaller size or multiple."
        )
    importance = channel_importance(model, batches)
    kept = [sorted(scores.topk(width).indices.tolist()) for scores in importance]
    share = [float(scores[best].sum() / scores.sum()) for scores, best in zip(importance, kept, strict=True)]
    keep_channels(model, kept)
    return PrunedWidth(width, tuple(map(tuple, kept)), tuple(share))


def keep_channels(model: PreTrainedModel, channels: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Leave ``model``, in place, the given channels of each layer's feed-forward branch; the model is returned.

    Rows of gate and up, their biases and columns of down are cut together, so that pruned channels that computed zeros
    change nothing. Every layer keeps equally many, since a config has one ``intermediate_size``.

    Raises:
        PruningError: not one list a layer, lists of different lengths, or channels twice or out of range. Nothing was
            cut.
    """
    decoder = decoder_of(model)
    branches = [_plain(layer.mlp) for layer in decoder.layers]
    present, widths = model.config.intermediate_size, {len(kept) for kept in channels}
    if len(channels) != len(branches) or len(widths) != 1 or not min(widths):
        raise PruningError(
            f"channels of {len(channels)} layers, {sorted(widths)} each: expected equally many, at least one, of each "
            f"of the {len(branches)} layers."
        )
    for number, kept in enumerate(channels):
        if len(set(kept)) != len(kept) or not 0 <= min(kept) <= max(kept) < present:
            raise PruningError(f"channels of layer {number}: expected each once, from 0 to {present - 1}.")
    for branch, kept in zip(branches, channels, strict=True):
        for name, linear in branch.items():
            _cut(linear, torch.tensor(kept, device=linear.weight.device), rows=name in _ROWS)
    for config in configs_of(model):
        config.intermediate_size = min(widths)
    return model


def _plain(mlp: Any) -> dict[str, nn.Linear]:
    """The projections of a branch by name."""
    projections = {name: getattr(mlp, name) for name in (*_ROWS, "down_proj") if hasattr(mlp, name)}
    for name, module in projections.items():
        if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
            raise PruningError(
                f"{name} is a {type(module).__name__} of {type(module.weight).__name__}: only plain matrices can be "
                "cut. Prune the floats, unwrapped and on one device, then quantize or shard."
            )
    return projections


@torch.no_grad()
def _cut(linear: nn.Linear, kept: Tensor, *, rows: bool) -> None:
    """Keep rows (and bias) of a matrix, or its columns."""

    def parameter(old: Tensor, dim: int) -> nn.Parameter:
        return nn.Parameter(old.index_select(dim, kept), requires_grad=old.requires_grad)

    linear.weight = parameter(linear.weight, 0 if rows else 1)
    if rows and linear.bias is not None:
        linear.bias = parameter(linear.bias, 0)
    linear.out_features, linear.in_features = linear.weight.shape
