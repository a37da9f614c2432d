"""transformers' own classes beside ours: the same random numbers in both."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from conftest import randomize
from glmlike import GlmLikeForCausalLM
from glmlike.checkpoint.formats import TABLES
from glmlike.configuration import as_native

FAMILIES: dict[str, tuple[Any, Any]] = {
    "glm": (GlmConfig, GlmForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def native_model(family: str, seed: int = 0, **config: Any) -> Any:
    """transformers' class of a family with random numbers."""
    config_class, model_class = FAMILIES[family]
    return randomize(model_class(config_class(**{**SIZES, **config})), seed).eval()


def to_native(tensors: dict[str, torch.Tensor], fmt: Any, spec: Any) -> dict[str, torch.Tensor]:
    """Tensors under a format's names as tensors under ours."""
    found: dict[str, torch.Tensor] = {}
    for step in TABLES[fmt].steps(spec):
        parts = step.layout.to_native([tensors[name] for name in step.foreign])
        found.update(zip(step.native, parts, strict=True))
    return found


def twin(native: Any, **config: Any) -> Any:
    """Our model with the numbers of one of transformers' own."""
    translated = as_native(native.config)
    for name, value in config.items():
        setattr(translated, name, value)
    ours = GlmLikeForCausalLM._from_config(translated, dtype=native.dtype)
    state = to_native(native.state_dict(), native.config.model_type, translated.spec)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if translated.tie_word_embeddings else [])
    ours.tie_weights()
    return ours.eval()
