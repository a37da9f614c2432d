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

    # With positions="rotary_2d" each half of the head is rotated by its own row of positions [B, 2, T] (ChatGLM-6B).

    def __init__(self, config: GlmLikeConfig) -> None:
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.interleaved = config.rotary_pairing == "interleaved"
        self.two_dimensional = config.positions == "rotary_2d"
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
        """Inverse frequencies [rotary_dim / 2], or [rotary_dim / 4] for two dimensions, in float32; and 1.0."""
        spec = config.spec
        width = spec.rotary_dim // 2 if spec.positions == "rotary_2d" else spec.rotary_dim
        exponents = torch.arange(0, width, 2, dtype=torch.float) / width
        inv_freq = 1.0 / spec.rope_theta**exponents
        if spec.rotary_precision == "float16":  # ChatGLM-6B, GLM-130B: rounded when built, and never restored
            inv_freq = inv_freq.half().float()
        return inv_freq.to(device), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, T] or [B, 2, T] to (cos, sin), each [B, T, rotary_dim] in the dtype of ``x``."""
        if self.two_dimensional:  # both halves side by side: [B, T, 2, quarter], each quarter twice
            angles = position_ids.transpose(1, 2)[..., None].float() * self.inv_freq.to(x.device, torch.float)
            angles = torch.cat((angles, angles), dim=-1).flatten(-2)
            return angles.cos().to(dtype=x.dtype), angles.sin().to(dtype=x.dtype)
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = angles.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat((angles, angles), dim=-1)
        cos = angles.cos() * self.attention_scaling
        sin = angles.sin() * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)


def apply_rotary(
    query_BNTH: Tensor, key_BKTH: Tensor, cos: Tensor, sin: Tensor, turn: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Rotate the first R features of each query and key head; cos and sin are [B, T, R], the rest passes unchanged."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query_BNTH, cos, sin, turn), _rotate(key_BKTH, cos, sin, turn)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    rotary_dim = cos.shape[-1]
    if rotary_dim == states.shape[-1]:
        return states * cos + turn(states) * sin
    rotated, passed = states[..., :rotary_dim], states[..., rotary_dim:]
    return torch.cat((rotated * cos + turn(rotated) * sin, passed), dim=-1)


def turn_neighbours(states: Tensor) -> Tensor:
    """A quarter turn, (a, b) to (-b, a), of each pair of neighbours."""
    return torch.stack((-states[..., 1::2], states[..., 0::2]), dim=-1).flatten(-2)


def turn_halves(states: Tensor) -> Tensor:
    """A quarter turn of each pair of features half the width apart."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def turn_each_half(states: Tensor) -> Tensor:
    """A quarter turn inside each half of the head, pairs a quarter of the width apart (two-dimensional positions)."""
    return turn_halves(states.view(*states.shape[:-1], 2, -1)).flatten(-2)


def quarter_turn(config: GlmLikeConfig) -> Callable[[Tensor], Tensor]:
    """How this decoder pairs the features it rotates."""
    if config.positions == "rotary_2d":
        return turn_each_half
    return turn_neighbours if config.rotary_pairing == "interleaved" else turn_halves
