"""ChatGLM-6B as published with remote code: ``query_key_value`` head by head, biases everywhere, an own head.

Names are those of the published modeling_chatglm.py; v1.0's tables begin with rows of image tokens. Its class
``GLU`` has no gate: ``dense_h_to_4h`` is the up matrix.
"""

from __future__ import annotations

from glmlike.checkpoint.layouts import Cropped, Layout, PerHead, Same
from glmlike.checkpoint.native import LAYER, PREFIX_ENCODER, prefix_shapes
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

# Angles, stored once a layer; the published code computes them anew.
DROPPED = ("transformer.layers.{layer}.attention.rotary_emb.inv_freq",)


def table(spec: DecoderSpec, dropped_rows: int = 0) -> list[Rule]:
    """The rows of the remote-code layout; ``dropped_rows`` image tokens (v1.0: 20000) precede each vocabulary."""
    rows: Layout = Cropped(dropped_rows, spec.vocab_size) if dropped_rows else Same()
    return [
        Rule(("model.embed_tokens.weight",), ("transformer.word_embeddings.weight",), rows),
        Rule(("lm_head.weight",), ("lm_head.weight",), rows),
        *layers("transformer.", PerHead(spec.num_attention_heads, spec.head_dim)),
        *(same(PREFIX_ENCODER + name, f"transformer.prefix_encoder.{name}") for name in prefix_shapes(spec)),
    ]


def layers(prefix: str, qkv: Layout) -> list[Rule]:
    """Layers and final norm under ``prefix``, with q, k and v in the layout ``qkv``; GLM-10B has the same names."""
    foreign = prefix + "layers.{layer}."
    kinds = ("weight", "bias")
    pairs = {
        "input_layernorm": "input_layernorm",
        "self_attn.o_proj": "attention.dense",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    return [
        *(
            Rule(
                tuple(f"{LAYER}self_attn.{part}_proj.{kind}" for part in "qkv"),
                (f"{foreign}attention.query_key_value.{kind}",),
                qkv,
            )
            for kind in kinds
        ),
        *(
            same(f"{LAYER}{native}.{kind}", f"{foreign}{name}.{kind}")
            for native, name in pairs.items()
            for kind in kinds
        ),
        *(same(f"model.norm.{kind}", f"{prefix}final_layernorm.{kind}") for kind in kinds),
    ]
