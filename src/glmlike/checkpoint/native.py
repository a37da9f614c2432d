"""The native names and shapes of every tensor a spec has."""

from __future__ import annotations

from glmlike.spec import DecoderSpec

LAYER = "model.layers.{layer}."
PREFIX_ENCODER = "model.prefix_encoder."


def prefix_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """What stands after ``PREFIX_ENCODER`` in the names of a P-tuning prefix, with its shape; empty without one."""
    if not spec.prefix_length:
        return {}
    found: dict[str, tuple[int, ...]] = {"embedding.weight": (spec.prefix_length, spec.prefix_row_size)}
    if spec.prefix_projection:
        found |= {"trans.0.weight": (spec.hidden_size, spec.prefix_row_size), "trans.0.bias": (spec.hidden_size,)}
        found |= {"trans.2.weight": (spec.prefix_size, spec.hidden_size), "trans.2.bias": (spec.prefix_size,)}
    return found


def native_patterns(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Each native name, ``{layer}`` unfilled, with its shape; a tied head is not a tensor of its own."""
    hidden, queries, keys, inner = spec.hidden_size, spec.query_size, spec.key_value_size, spec.intermediate_size
    norms = ["input_layernorm", "post_attention_layernorm"]
    if spec.residual == "sandwich":
        norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    matrices = {
        "self_attn.q_proj": (queries, hidden, spec.qkv_bias),
        "self_attn.k_proj": (keys, hidden, spec.qkv_bias),
        "self_attn.v_proj": (keys, hidden, spec.qkv_bias),
        "self_attn.o_proj": (hidden, queries, spec.output_bias),
        "mlp.gate_proj": (inner, hidden, spec.mlp_bias),
        "mlp.up_proj": (inner, hidden, spec.mlp_bias),
        "mlp.down_proj": (hidden, inner, spec.mlp_bias),
    }
    if spec.feed_forward.startswith("gelu"):
        del matrices["mlp.gate_proj"]
    norm_kinds = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    if spec.positions == "learned_2d":
        for table in ("embed_positions", "embed_block_positions"):
            found[f"model.{table}.weight"] = (spec.max_position_embeddings + 1, hidden)
    found |= {f"{LAYER}{norm}.{kind}": (hidden,) for norm in norms for kind in norm_kinds}
    for name, (rows, columns, bias) in matrices.items():
        found[f"{LAYER}{name}.weight"] = (rows, columns)
        if bias:
            found[f"{LAYER}{name}.bias"] = (rows,)
    found |= {f"model.norm.{kind}": (hidden,) for kind in norm_kinds}
    found |= {PREFIX_ENCODER + name: shape for name, shape in prefix_shapes(spec).items()}
    if not spec.tie_word_embeddings:
        found["lm_head.weight"] = (spec.vocab_size, hidden)
    return found


def native_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Each native name with its shape: what ``state_dict()`` of the model built from ``spec`` has."""
    return {
        pattern.format(layer=layer): shape
        for pattern, shape in native_patterns(spec).items()
        for layer in (range(spec.num_hidden_layers) if LAYER in pattern else (0,))
    }
