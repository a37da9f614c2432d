"""The feed-forward branch: SwiGLU (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from glmlike.configuration import GlmLikeConfig


class GlmLikeMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``, [B, T, D] to [B, T, D] through the feed-forward width F."""

    def __init__(self, config: GlmLikeConfig) -> None:
        super().__init__()
        spec = config.spec
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        down: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return down
