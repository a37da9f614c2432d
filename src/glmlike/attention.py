"""Grouped-query attention with rotary positions, behind transformers' attention interface.

Shapes: B batch, T query tokens, S keys, D hidden, N query heads, K key-value heads, H head dim.
"""

# No `from __future__ import annotations` here or in modeling.py: transformers reads the annotations of model classes.
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmlike.configuration import GlmLikeConfig
from glmlike.prefix_encoder import prepend
from glmlike.rotary import apply_rotary, quarter_turn


def repeat_kv(states: Tensor, groups: int) -> Tensor:
    """[B, K, S, H] to [B, K * groups, S, H]: each key-value head once for every query head it serves."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def eager_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain softmax attention: the output [B, T, N, H] and the weights [B, N, T, S]; softmax in float32."""
    keys = repeat_kv(key, module.num_key_value_groups)
    values = repeat_kv(value, module.num_key_value_groups)
    scores_BNTS = torch.matmul(query, keys.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores_BNTS = scores_BNTS + attention_mask
    weights_BNTS = nn.functional.softmax(scores_BNTS, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BNTS = nn.functional.dropout(weights_BNTS, p=dropout, training=module.training)
    return torch.matmul(weights_BNTS, values).transpose(1, 2).contiguous(), weights_BNTS


class GlmLikeAttention(nn.Module):
    """One attention branch; q, k and v are separate matrices, which sharding, LoRA and quantizers all expect."""

    rotate = staticmethod(apply_rotary)  # an instance may have another kernel of the same

    def __init__(self, config: GlmLikeConfig, layer_idx: int):
        super().__init__()
        spec = config.spec
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = spec.head_dim
        self.num_key_value_groups = spec.num_attention_heads // spec.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.turn = quarter_turn(config)
        sliding = spec.layer_types is not None and spec.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = spec.sliding_window if sliding else None
        self.q_proj = nn.Linear(spec.hidden_size, spec.query_size, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden_size, spec.key_value_size, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden_size, spec.key_value_size, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(spec.query_size, spec.hidden_size, bias=spec.output_bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] to ([B, T, D], attention weights or None); keys are cached after their rotation.

        ``prefix`` holds keys and values [B, K, P, H] that stand before all others, unrotated and never cached; the
        mask counts them.
        """
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        if position_embeddings is not None:  # None: learned positions are part of the embedding
            cos, sin = position_embeddings
            query_states, key_states = self.rotate(query_states, key_states, cos, sin, self.turn)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(
                key_states,
                value_states,
                self.layer_idx,
                kwargs=kwargs,  # a paged cache finds its indices there
            )

        if prefix is not None:
            key_states, value_states = prepend(prefix, key_states, value_states, attention_mask)

        # vLLM's Transformers backend looks for exactly this: one call of a local bound from the interface.
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        return self.o_proj(attn_output), attn_weights
