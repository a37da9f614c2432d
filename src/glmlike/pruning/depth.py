"""Depth pruning: whole layers go, those first that change what passes them least (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from glmlike.errors import PruningError
from glmlike.prefix_encoder import PrefixEncoder, set_lengths
from glmlike.pruning.calibration import Batch, configs_of, decoder_of, observe


@dataclass(frozen=True)
class PrunedDepth:
    """What :func:`prune_depth` did: the layers that stayed, and the influence of every layer there was."""

    kept: tuple[int, ...]
    influence: tuple[float, ...]

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers that went, by their former numbers."""
        return tuple(layer for layer in range(len(self.influence)) if layer not in self.kept)


def block_influence(model: PreTrainedModel, batches: Iterable[Batch]) -> list[float]:
    """Of each layer 1 - the mean cosine of what enters and what leaves it, over all tokens of ``batches``.

    A batch is token ids [B, T] or a dict of the decoder's arguments. 0 is a layer that changes nothing (ShortGPT,
    equation 1).

    Raises:
        PruningError: the batches hold no token, or the model is none of ours, or wrapped.
    """
    layers = decoder_of(model).layers
    sums = [0.0] * len(layers)

    def see(number: int, entering: Tensor, leaving: Tensor | None, counted: Tensor) -> None:
        assert leaving is not None
        cosine = nn.functional.cosine_similarity(entering.float(), leaving.float(), dim=-1)
        sums[number] += float(cosine[counted.to(cosine.device)].double().sum())

    tokens = observe(model, batches, layers, see, output=True)
    return [1 - total / tokens for total in sums]


def prune_depth(model: PreTrainedModel, batches: Iterable[Batch], *, keep: int) -> PrunedDepth:
    """Leave ``model``, in place, the ``keep`` layers with the greatest :func:`block_influence`, in their order.

    Raises:
        PruningError: ``keep`` is not from 1 to the number of layers; or as :func:`block_influence`. Nothing was cut.
    """
    depth = len(decoder_of(model).layers)
    if not 1 <= keep <= depth:
        raise PruningError(f"keep={keep}: this decoder has {depth} layers; expected from 1 to {depth} of them.")
    influence = block_influence(model, batches)
    kept = sorted(sorted(range(depth), key=lambda layer: -influence[layer])[:keep])
    keep_layers(model, kept)
    return PrunedDepth(tuple(kept), tuple(influence))


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Leave ``model``, in place, only ``layers``, given by their numbers in rising order; the model is returned.

    The config's number of layers and layer types follow, and so do the places in the key-value cache and the columns of
    a P-tuning prefix; a projected prefix becomes the rows it computes, since its width is that of all layers. A scaled
    residual keeps its factor, which the remaining layers were trained with.

    Raises:
        PruningError: no layer, one that does not exist, or another order. Nothing was cut.
    """
    decoder = decoder_of(model)
    depth, kept = len(decoder.layers), list(layers)
    if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < depth:
        raise PruningError(f"layers {kept}: expected rising numbers from 0 to {depth - 1}, at least one.")
    types = [decoder.layer_types[layer] for layer in kept]
    if decoder.prefix_encoder is not None:
        _cut_prefix(decoder.prefix_encoder, kept)
        set_lengths(model, decoder.prefix_encoder.length, False)
    decoder.layers = nn.ModuleList(decoder.layers[layer] for layer in kept)
    decoder.layer_types = types
    for number, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = number  # its place in the cache
    for config in configs_of(model):
        config.num_hidden_layers = len(kept)
        _say_layer_types(config, types)
    return model


def _say_layer_types(config: Any, types: list[str]) -> None:
    """transformers takes the presence of ``layer_types`` for "layers differ"; without a sliding one they do not."""
    if "sliding_attention" in types:
        config.layer_types = list(types)
        return
    config.sliding_window = None
    if hasattr(config, "layer_types"):
        del config.layer_types


@torch.no_grad()
def _cut_prefix(encoder: PrefixEncoder, kept: list[int]) -> None:
    """The keys and values of ``kept`` layers as plain rows: what the encoder computed for them, bit for bit."""
    table = encoder.embedding.weight
    length, _, pair, heads, head_dim = encoder.shape
    rows = encoder.rows(table.device).view(encoder.shape)[:, kept].reshape(length, -1).to(table.dtype)
    encoder.embedding = nn.Embedding(length, rows.shape[1], _weight=rows)
    encoder.embedding.weight.requires_grad_(table.requires_grad)
    encoder.trans = None
    encoder.shape = (length, len(kept), pair, heads, head_dim)
