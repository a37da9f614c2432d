"""GLM-130B as published for SwissArmyTransformer: q, k, v head by head, a tied head, tensor-parallel ranks.

Names are those of sat/model/official/glm130B_model.py; ``SPLITS`` is what tools/convert_tp.py of THUDM/GLM-130B does.
``dense_h_to_4h`` is [up; gate]: its GEGLU is ``x1 * gelu(x2)``, so the second half is the gate.
"""

from __future__ import annotations

from glmlike.checkpoint.layouts import Fused, PerHead
from glmlike.checkpoint.native import LAYER
from glmlike.checkpoint.rules import Rule, same
from glmlike.checkpoint.splits import Cut, Replicated, Split
from glmlike.spec import DecoderSpec

# Angles: once a layer in the SAT that GLM-130B pins, once in all since; neither reads them back.
DROPPED = (
    "transformer.layers.{layer}.attention.rotary_emb.inv_freq",
    "mixins.rotary-embedding.rotary_emb.inv_freq",
)

_LAYER = "transformer.layers.{layer}."
_KINDS = ("weight", "bias")

SPLITS: dict[str, Split] = {
    "transformer.word_embeddings.weight": Cut(0),
    **{f"{_LAYER}input_layernorm.{kind}": Replicated() for kind in _KINDS},
    **{f"{_LAYER}attention.query_key_value.{kind}": Cut(0) for kind in _KINDS},
    f"{_LAYER}attention.dense.weight": Cut(1),
    f"{_LAYER}attention.dense.bias": Replicated(),
    **{f"{_LAYER}post_attention_layernorm.{kind}": Replicated() for kind in _KINDS},
    **{f"{_LAYER}mlp.dense_h_to_4h.{kind}": Cut(0, parts=2) for kind in _KINDS},
    f"{_LAYER}mlp.dense_4h_to_h.weight": Cut(1),
    f"{_LAYER}mlp.dense_4h_to_h.bias": Replicated(),
    **{f"transformer.final_layernorm.{kind}": Replicated() for kind in _KINDS},
}
"""How each tensor is cut over the ranks of a tensor-parallel group."""


def table(spec: DecoderSpec) -> list[Rule]:
    """The rows of a model of one rank; the head is the embedding."""
    qkv = PerHead(spec.num_attention_heads, spec.head_dim)
    up_gate = Fused((spec.intermediate_size, spec.intermediate_size))
    pairs = {
        "input_layernorm": "input_layernorm",
        "self_attn.o_proj": "attention.dense",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    return [
        same("model.embed_tokens.weight", "transformer.word_embeddings.weight"),
        *(
            rule
            for kind in _KINDS
            for rule in (
                Rule(
                    tuple(f"{LAYER}self_attn.{part}_proj.{kind}" for part in "qkv"),
                    (f"{_LAYER}attention.query_key_value.{kind}",),
                    qkv,
                ),
                Rule(
                    (f"{LAYER}mlp.up_proj.{kind}", f"{LAYER}mlp.gate_proj.{kind}"),
                    (f"{_LAYER}mlp.dense_h_to_4h.{kind}",),
                    up_gate,
                ),
                *(same(f"{LAYER}{native}.{kind}", f"{_LAYER}{name}.{kind}") for native, name in pairs.items()),
                same(f"model.norm.{kind}", f"transformer.final_layernorm.{kind}"),
            )
        ),
    ]
