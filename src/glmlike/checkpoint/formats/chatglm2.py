"""ChatGLM2-6B, CodeGeeX2, ChatGLM3-6B and GLM-4-9B as published with remote code (``model_type: "chatglm"``).

Names and the order of the fused rows are those of the published modeling_chatglm.py: ``query_key_value`` = [q; k; v],
``dense_h_to_4h`` = [gate; up] (``silu(x[0]) * x[1]``). The rotary pairing is native, so no row is permuted.
"""

from __future__ import annotations

from glmlike.checkpoint.layouts import Fused, Repeated
from glmlike.checkpoint.native import LAYER, PREFIX_ENCODER, prefix_shapes
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

# Angles; old files hold them computed with the wrong base, and the published code never loads them.
DROPPED = ("transformer.rotary_pos_emb.inv_freq",)

_LAYER = "transformer.encoder.layers.{layer}."
_EMBEDDING, _HEAD = "transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"


def table(spec: DecoderSpec) -> list[Rule]:
    """The rows of the remote-code layout; a tied head is stored twice, since the published code always reads one."""
    qkv = Fused((spec.query_size, spec.key_value_size, spec.key_value_size))
    gate_up = Fused((spec.intermediate_size, spec.intermediate_size))
    kinds = ("weight", "bias") if spec.qkv_bias else ("weight",)
    return [
        *_embedding_and_head(spec),
        same(LAYER + "input_layernorm.weight", _LAYER + "input_layernorm.weight"),
        *(
            Rule(
                tuple(f"{LAYER}self_attn.{part}_proj.{kind}" for part in "qkv"),
                (f"{_LAYER}self_attention.query_key_value.{kind}",),
                qkv,
            )
            for kind in kinds
        ),
        same(LAYER + "self_attn.o_proj.weight", _LAYER + "self_attention.dense.weight"),
        same(LAYER + "post_attention_layernorm.weight", _LAYER + "post_attention_layernorm.weight"),
        Rule(
            (LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
            (_LAYER + "mlp.dense_h_to_4h.weight",),
            gate_up,
        ),
        same(LAYER + "mlp.down_proj.weight", _LAYER + "mlp.dense_4h_to_h.weight"),
        same("model.norm.weight", "transformer.encoder.final_layernorm.weight"),
        *(same(PREFIX_ENCODER + name, f"transformer.prefix_encoder.{name}") for name in prefix_shapes(spec)),
    ]


def _embedding_and_head(spec: DecoderSpec) -> list[Rule]:
    if spec.tie_word_embeddings:
        return [Rule(("model.embed_tokens.weight",), (_EMBEDDING, _HEAD), Repeated(2))]
    return [same("model.embed_tokens.weight", _EMBEDDING), same("lm_head.weight", _HEAD)]
