"""Rotary position embedding (arXiv 2104.09864), on all or the first part of each head, in either pairing.

The angle of pair i at position p is ``p * base ** (-2i / rotary_dim)``. What differs between families is which two
features make a pair: neighbours (the GLM line) or features half the rotated width apart (LLaMA, Qwen).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from glmlike.configuration import GlmLikeConfig


class GlmLikeRotaryEmbedding(nn.Module):
    """Cosines and sines of the angles for given positions, in float32 and then cast to the activations' dtype.

    Rope types are transformers' (default, linear, dynamic, yarn, longrope, llama3). ``config.rotary_pairing`` decides
    how the R/2 angles are laid out over the R rotated features, so that attention only multiplies and adds.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: GlmLikeConfig) -> None:
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.interleaved = config.rotary_pairing == "interleaved"
        self.rope_type = config.spec.rope_type
        rope_init: Callable[..., tuple[Tensor, float]] = ROPE_INIT_FUNCTIONS.get(
            self.rope_type, self.compute_default_rope_parameters
        )
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: GlmLikeConfig, device: torch.device | None = None, **_: Any
    ) -> tuple[Tensor, float]:
        """Inverse frequencies [rotary_dim / 2] in float32, and 1.0 (the default type scales nothing)."""
        spec = config.spec
        exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float) / spec.rotary_dim
        return (1.0 / spec.rope_theta**exponents).to(device), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, T] to (cos, sin), each [B, T, rotary_dim] in the dtype of ``x``."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = angles.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat((angles, angles), dim=-1)
        cos = angles.cos() * self.attention_scaling
        sin = angles.sin() * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)


def apply_rotary(
    query_BNTH: Tensor, key_BKTH: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Rotate the first R features of each query and key head; cos and sin are [B, T, R], the rest passes unchanged."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query_BNTH, cos, sin, interleaved), _rotate(key_BKTH, cos, sin, interleaved)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = cos.shape[-1]
    if rotary_dim == states.shape[-1]:
        return states * cos + _quarter_turn(states, interleaved) * sin
    rotated, passed = states[..., :rotary_dim], states[..., rotary_dim:]
    rotated = rotated * cos + _quarter_turn(rotated, interleaved) * sin
    return torch.cat((rotated, passed), dim=-1)


def _quarter_turn(states: Tensor, interleaved: bool) -> Tensor:
    """Each pair (a, b) becomes (-b, a)."""
    if interleaved:
        return torch.stack((-states[..., 1::2], states[..., 0::2]), dim=-1).flatten(-2)
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
