"""The feed-forward branch: SwiGLU or GEGLU (arXiv 2002.05202), or two matrices around a GELU."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from glmlike.configuration import GlmLikeConfig

# transformers' names of the activations; "gelu_new" is the tanh form, "gelu" the exact one.
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "gelu_tanh": "gelu_new", "gelu_erf": "gelu"}


class GlmLikeMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate; [B, T, D] through width F."""

    def __init__(self, config: GlmLikeConfig) -> None:
        super().__init__()
        spec = config.spec
        self.gated = not spec.feed_forward.startswith("gelu")
        if self.gated:
            self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)
        self.act_fn = ACT2FN[_ACTIVATIONS[spec.feed_forward]]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        if self.gated:
            down: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        else:
            down = self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return down
