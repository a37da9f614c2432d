"""The decoders that were published, by the name of their checkpoint: what each generation is, in one place.

Numbers are those of the published config.json files (a test compares them with the originals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glmlike.hub_json import FORMATS, Format, cannot_express, early, sat
from glmlike.spec import DecoderSpec

_CHATGLM: dict[str, Any] = {
    "vocab_size": 65_024,
    "hidden_size": 4096,
    "intermediate_size": 13_696,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
_GLM4: dict[str, Any] = {**_CHATGLM, "vocab_size": 151_552, "num_hidden_layers": 40, "norm_eps": 1.5625e-7}
_GLM4_0414: dict[str, Any] = {**_GLM4, "norm_eps": 1e-5, "residual": "sandwich", "max_position_embeddings": 32_768}
_HALVES: dict[str, Any] = {"rotary_pairing": "halves", "partial_rotary_factor": 1.0}
_LLAMA3: dict[str, Any] = {
    **_HALVES,
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 500_000.0,
    "qkv_bias": False,
}
_LLAMA3_SCALING = (
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 8192),
    ("rope_type", "llama3"),
)
_QWEN2: dict[str, Any] = {
    **_HALVES,
    "max_position_embeddings": 32_768,
    "norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}


@dataclass(frozen=True)
class Published:
    """A published decoder: the format of its files and its spec."""

    format: Format
    spec: DecoderSpec

    @property
    def converts_to(self) -> list[Format]:
        """The formats that can say this decoder, its own first."""
        able = [fmt for fmt in FORMATS if not cannot_express(self.spec, fmt)]
        return sorted(able, key=lambda fmt: fmt != self.format)


def _glm(vocab_size: int, hidden_size: int, layers: int, heads: int, rows: int) -> Published:
    spec = DecoderSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=rows,
        tie_word_embeddings=True,
        **early.GLM_10B,
    )
    return Published("glm-10b", spec)


PUBLISHED: dict[str, Published] = {
    "glm-515m": _glm(30_592, 1152, 30, 18, 512),
    "glm-large-chinese": _glm(50_048, 1024, 24, 16, 1024),
    "glm-2b": _glm(50_304, 2048, 36, 32, 1024),
    "glm-10b": _glm(50_304, 4096, 48, 64, 1024),
    "glm-10b-chinese": _glm(50_048, 4096, 48, 64, 1024),
    "glm-130b": Published(
        "glm-130b",
        sat.decoder(
            vocab_size=150_528,
            hidden_size=12_288,
            intermediate_size=32_768,
            num_hidden_layers=70,
            num_attention_heads=96,
            max_position_embeddings=2048,
        ),
    ),
    "chatglm-6b": Published(
        "chatglm-6b",
        DecoderSpec(
            vocab_size=130_528,
            hidden_size=4096,
            intermediate_size=16_384,
            num_hidden_layers=28,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=2048,
            residual_scale=56**0.5,
            **early.CHATGLM_6B,
        ),
    ),
    "chatglm2-6b": Published("chatglm", DecoderSpec(**_CHATGLM, max_position_embeddings=32_768)),
    "codegeex2-6b": Published("chatglm", DecoderSpec(**_CHATGLM, max_position_embeddings=8192)),
    "chatglm3-6b": Published("chatglm", DecoderSpec(**_CHATGLM, max_position_embeddings=8192)),
    "chatglm3-6b-32k": Published(
        "chatglm", DecoderSpec(**_CHATGLM, max_position_embeddings=32_768, rope_theta=500_000.0)
    ),
    "glm-4-9b": Published("chatglm", DecoderSpec(**_GLM4, max_position_embeddings=8192)),
    "glm-4-9b-chat": Published("chatglm", DecoderSpec(**_GLM4, rope_theta=5_000_000.0)),
    "glm-4-9b-chat-1m": Published(
        "chatglm",
        DecoderSpec(**{**_GLM4, "num_key_value_heads": 4}, max_position_embeddings=1_048_576, rope_theta=100_000_000.0),
    ),
    "glm-4-9b-chat-hf": Published("glm", DecoderSpec(**_GLM4, rope_theta=5_000_000.0)),
    "glm-edge-1.5b": Published(
        "glm",
        DecoderSpec(
            vocab_size=59_264,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=128,
            max_position_embeddings=8192,
            partial_rotary_factor=1.0,
            qkv_bias=False,
            tie_word_embeddings=True,
        ),
    ),
    "glm-4-9b-0414": Published("glm4", DecoderSpec(**_GLM4_0414)),
    "glm-z1-32b-0414": Published(
        "glm4",
        DecoderSpec(
            **{
                **_GLM4_0414,
                "hidden_size": 6144,
                "intermediate_size": 23_040,
                "num_hidden_layers": 61,
                "num_attention_heads": 48,
                "qkv_bias": False,
            }
        ),
    ),
    "llama-3-8b": Published("llama", DecoderSpec(**_LLAMA3, max_position_embeddings=8192)),
    "llama-3.1-8b": Published("llama", DecoderSpec(**_LLAMA3, rope_scaling=(("factor", 8.0), *_LLAMA3_SCALING))),
    "llama-3.2-1b": Published(
        "llama",
        DecoderSpec(
            **{**_LLAMA3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
            rope_scaling=(("factor", 32.0), *_LLAMA3_SCALING),
            tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-7b": Published(
        "qwen2",
        DecoderSpec(
            **_QWEN2,
            vocab_size=152_064,
            hidden_size=3584,
            intermediate_size=18_944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            head_dim=128,
        ),
    ),
    "qwen2.5-0.5b": Published(
        "qwen2",
        DecoderSpec(
            **_QWEN2,
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
        ),
    ),
}
"""One entry for each decoder that differs; fine-tunes (LongWriter, CodeGeeX4, …) read as their base does."""


def support_table() -> str:
    """A row a checkpoint, from the specs: what it is and where it can go (docs/family.md)."""
    rows = ["| checkpoint | files | parameters | layer | positions | q, k, v bias | converts to |", "|" + "---|" * 7]
    for name, entry in PUBLISHED.items():
        spec = entry.spec
        layer = f"{spec.residual}, {spec.feed_forward}" + (", prefix mask" if spec.attention_mask == "prefix" else "")
        targets = ", ".join(f"`{fmt}`" for fmt in entry.converts_to if fmt != entry.format)
        bias = "yes" if spec.qkv_bias else "no"
        rows.append(
            f"| {name} | `{entry.format}` | {spec.num_parameters / 1e9:.2f} B | {layer} | {_positions(spec)} "
            f"| {bias} | {targets} |"
        )
    return "\n".join(rows)


def _positions(spec: DecoderSpec) -> str:
    if spec.positions == "learned_2d":
        return "learned, 2-D"
    if spec.positions == "rotary_2d":
        return f"rotary, 2-D, base {spec.rope_theta:g}"
    scaling = "" if spec.rope_type == "default" else f", {spec.rope_type}"
    share = f"{spec.partial_rotary_factor:g} of the head"
    return f"rotary, {share}, {spec.rotary_pairing}, base {spec.rope_theta:g}{scaling}"
