"""Smaller decoders out of trained ones: fewer layers, narrower feed-forward branches, a head tied or untied.

Each function changes the model it is given, in place, and returns what it did; what is left is an ordinary model of an
ordinary config, which saves, reloads, generates, trains and converts. Prune before an optimizer is made: the cut
parameters are new tensors. Pruning alone costs quality; distillation from the uncut model brings most of it back
(examples/prune_and_recover.py).
"""

from glmlike.pruning.depth import PrunedDepth, block_influence, keep_layers, prune_depth
from glmlike.pruning.tying import tie_embeddings, untie_embeddings
from glmlike.pruning.width import PrunedWidth, channel_importance, keep_channels, prune_width

__all__ = [
    "PrunedDepth",
    "PrunedWidth",
    "block_influence",
    "channel_importance",
    "keep_channels",
    "keep_layers",
    "prune_depth",
    "prune_width",
    "tie_embeddings",
    "untie_embeddings",
]
