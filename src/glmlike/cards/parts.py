"""Sections that every card has, from a spec: no number in them is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glmlike.hub_json import FORMATS, Format, cannot_express
from glmlike.spec import DecoderSpec

_WORDS = {
    "rms": "RMSNorm",
    "layer": "LayerNorm, with bias",
    "pre": "before each branch",
    "sandwich": "before and after each branch",
    "scaled": "before each branch; the normed input, scaled, is what the branch is added to",
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "gelu_tanh": "GELU (tanh form)",
    "gelu_erf": "GELU (exact)",
    "causal": "causal",
    "prefix": "all of the context, then causal",
    "interleaved": "neighbours paired",
    "halves": "halves paired",
}
READERS: dict[Format, str] = {
    "glmlike": "glmlike's own: q, k, v, gate and up are separate matrices",
    "glm-10b": "the files of the GLM-10B line",
    "glm-130b": "model-parallel files of SwissArmyTransformer",
    "chatglm-6b": "the files of ChatGLM-6B",
    "chatglm": "the files of ChatGLM2, ChatGLM3 and GLM-4-9B",
    "glm": "`GlmForCausalLM` of transformers, and what knows it",
    "glm4": "`Glm4ForCausalLM` of transformers, and what knows it",
    "llama": "`LlamaForCausalLM` of transformers, and what knows it",
    "qwen2": "`Qwen2ForCausalLM` of transformers, and what knows it",
    "meta": "Meta's own model-parallel files (`consolidated.*.pth`)",
}
"""Who reads a format."""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def architecture(specs: Mapping[str, DecoderSpec]) -> str:
    """A table of what each decoder is, a column each."""
    columns = [_facts(spec) for spec in specs.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return table(["", *specs], rows)


def _facts(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "parameters": f"{spec.num_parameters:,}",
        "layers": spec.num_hidden_layers,
        "hidden size": f"{spec.hidden_size:,}",
        "feed-forward": f"{_WORDS[spec.feed_forward]}, {spec.intermediate_size:,}",
        "query heads": spec.num_attention_heads,
        "key-value heads": spec.num_key_value_heads,
        "head size": spec.head_dim,
        "norm": f"{_WORDS[spec.norm]}, eps {spec.norm_eps:g}",
        "place of the norm": _WORDS[spec.residual] + _scale(spec),
        "attention": _WORDS[spec.attention_mask],
        "positions": _positions(spec),
        "positions at most": f"{spec.max_position_embeddings:,}",
        "bias": _biases(spec),
        "rows of the vocabulary": f"{spec.vocab_size:,}",
        "head": "tied to the embedding" if spec.tie_word_embeddings else "its own",
    }


def _scale(spec: DecoderSpec) -> str:
    return "" if spec.residual_scale is None else f" ({spec.residual_scale:.4f})"


def _positions(spec: DecoderSpec) -> str:
    if spec.positions == "learned_2d":
        return "learned: position, and place in the piece"
    whole = spec.rotary_dim == spec.head_dim
    share = "whole heads" if whole else f"{spec.rotary_dim} of {spec.head_dim} features"
    kind = "rotary, half by position and half by place in the piece" if spec.positions == "rotary_2d" else "rotary"
    scaling = "" if spec.rope_type == "default" else f", {spec.rope_type} scaling"
    return f"{kind}: {share}, {_WORDS[spec.rotary_pairing]}, base {spec.rope_theta:,.0f}{scaling}"


def _biases(spec: DecoderSpec) -> str:
    groups = {
        "q, k, v": spec.qkv_bias,
        "attention output": spec.output_bias,
        "feed-forward": spec.mlp_bias,
    }
    return ", ".join(name for name, there in groups.items() if there) or "none"


def formats(specs: Mapping[str, DecoderSpec], own: Mapping[str, Format]) -> str:
    """A table of the layouts that can say each decoder, and who reads them; ``own`` is that of the published files.

    Decoders are named in a row only where not all of them can be said in it.
    """
    rows = []
    for fmt in FORMATS:
        able = [name for name, spec in specs.items() if not cannot_express(spec, fmt)]
        if able:
            published = [name for name in able if own.get(name) == fmt]
            who = "" if len(able) == len(specs) else ", ".join(able)
            rows.append([f"`{fmt}`", READERS[fmt], who or "all", ", ".join(published) or "—"])
    return table(["layout", "read by", "can say", "published in it"], rows)
