"""Normalisation: RMSNorm, or LayerNorm with a bias (GLM-10B, GLM-130B, ChatGLM-6B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations import use_kernel_forward_from_hub

from glmlike.configuration import GlmLikeConfig


@use_kernel_forward_from_hub("RMSNorm")
class GlmLikeRMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension, the statistics in float32 (arXiv 1910.07467).

    In half precision the product with ``weight`` is taken after rounding back, as in transformers' Glm and Llama; the
    original ChatGLM code multiplies before rounding, so the two may differ by one rounding there.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] to [..., D] in the input's dtype."""
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def build_norm(config: GlmLikeConfig) -> nn.Module:
    """The norm of this decoder over D features."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
    return GlmLikeRMSNorm(config.hidden_size, config.rms_norm_eps)
