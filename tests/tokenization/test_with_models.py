"""Vocabularies and models belong together: rows and special ids agree, and texts end where the originals' do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, pipeline

from glmlike import GlmLikeTokenizer, TokenizerError, hub_json
from glmlike.generation_defaults import DEFAULTS
from glmlike.tokenization.detection import require_same_version
from specs import SPECS

# vocabulary -> published configs of models that have it
CONFIGS: dict[str, tuple[str, ...]] = {
    "chatglm-6b-v1.0": ("chatglm-6b-v1.0/config.json", "chatglm-6b-slim/config.json"),
    "chatglm-6b-v1.1": ("chatglm-6b-v1.1/config.json",),
    "chatglm2-6b": ("chatglm2-6b/config.json", "codegeex2-6b/config.json"),
    "chatglm3-6b": ("chatglm3-6b/config.json",),
    "glm-4-9b-chat": (
        *("glm-4-9b-chat/config.json", "glm-4-9b/config.json", "glm-4-9b-chat-1m/config.json"),
        *("glm-4-9b-0414/config.json", "glm-z1-32b-0414/config.json"),
    ),
    "glm-10b": ("glm-10b/config.json", "glm-2b/config.json"),
    "glm-10b-chinese": ("glm-10b-chinese/config.json", "glm-large-chinese/config.json"),
    "llama-3": (
        *("llama-3/config.json", "llama-3/config.llama-3.1-8b-instruct.json"),
        "llama-3/config.llama-3.2-1b.json",
    ),
    "qwen2.5": ("qwen2.5/config.json", "qwen2.5/config.qwen2.5-0.5b-instruct.json"),
}
PAIRS = [(name, config) for name, configs in CONFIGS.items() for config in configs]
# ChatGLM-6B's releases share ids, and ChatGLM2 and ChatGLM3 one file; of the others no vocabulary fits another's model.
SHARED_BY = (("chatglm-6b-v1.0", "chatglm-6b-v1.1"), ("chatglm2-6b", "chatglm3-6b"))


@cache
def tokenizer_of(folder: Path) -> Any:
    return GlmLikeTokenizer.from_pretrained(folder)


def read(shared: Path, name: str) -> dict[str, Any]:
    found = json.loads((shared / "originals" / name).read_text(encoding="utf8"))
    assert isinstance(found, dict)
    return found


def ids_of(said: Any) -> set[int]:
    return set(said) if isinstance(said, list) else {said} - {None}


@pytest.mark.parametrize(("vocabulary", "name"), PAIRS)
def test_rows_and_special_ids_of_published_configs(vocabulary: str, name: str, shared: Path) -> None:
    """Every id has a row, and the ids that config.json names are those tokens of the vocabulary."""
    tokenizer, config = tokenizer_of(shared / "originals" / vocabulary), read(shared, name)
    rows = config.get("padded_vocab_size") or config["vocab_size"]
    dropped = hub_json.dropped_rows(config)
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1 <= rows - dropped
    said = {**config, **hub_json.token_ids(config)}
    stops = ids_of(said.get("eos_token_id"))
    assert stops <= set(DEFAULTS[tokenizer.generation].stops) | {tokenizer.eos_token_id}
    for field in ("pad_token_id", "mask_token_id", "gmask_token_id"):
        found, own = said.get(field), getattr(tokenizer, field, None)
        if found is not None and own is not None and tokenizer.generation not in ("llama-3", "glm-10b-chinese"):
            assert found == own, field


@pytest.mark.parametrize("vocabulary", CONFIGS)
def test_a_vocabulary_of_another_model_is_refused(vocabulary: str, shared: Path) -> None:
    size = len(tokenizer_of(shared / "originals" / vocabulary))
    for other, name in PAIRS:
        shares = other == vocabulary or any({other, vocabulary} <= set(group) for group in SHARED_BY)
        config = read(shared, name)
        rows = (config.get("padded_vocab_size") or config["vocab_size"]) - hub_json.dropped_rows(config)
        if shares:
            require_same_version(None, size, config, "here")
        elif size > rows or 2 * size <= rows:
            with pytest.raises(
                TokenizerError, match=rf"{size} tokens, the model of config.json \d+ rows.*Take both from"
            ):
                require_same_version(None, size, config, "here")


class Says(LogitsProcessor):
    """Makes a model say the given ids, one after another."""

    def __init__(self, ids: list[int], start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, self.ids[input_ids.shape[1] - self.start]] = 0.0
        return forced


# vocabulary -> a spec like its model, its rows, the stop ids that its published config.json says
STAND_INS: dict[str, tuple[str, int, Any]] = {
    "chatglm-6b-v1.1": ("chatglm-6b", 130_528, 130_005),
    "chatglm3-6b": ("chatglm2", 65_024, 2),
    "glm-4-9b-chat": ("glm-4-9b", 151_552, [151_329, 151_336, 151_338]),
    "llama-3": ("llama-3", 128_256, 128_009),
    "qwen2.5": ("qwen2.5", 152_064, 151_645),
}


@pytest.mark.parametrize("vocabulary", STAND_INS)
def test_a_pipeline_ends_where_the_original_does(
    vocabulary: str, make: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    """A small model with the published vocabulary, ids and no generation_config.json: each stop id ends the text."""
    name, rows, stops = STAND_INS[vocabulary]
    spec = SPECS[name].replace(
        vocab_size=rows, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8
    )
    spec = spec.replace(intermediate_size=16, num_hidden_layers=1, max_position_embeddings=64)
    tokenizer = tokenizer_of(shared / "originals" / vocabulary)
    infilling = {}
    if name == "chatglm-6b":
        infilling = {
            "mask_token_id": 130_000,
            "gmask_token_id": 130_001,
            "smask_token_id": 130_002,
            "sop_token_id": 130_004,
        }
        spec = spec.replace(num_key_value_heads=2)
    made = make(
        spec, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, **infilling
    )
    made.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    published = DEFAULTS[tokenizer.generation].stops
    assert ids_of(model.generation_config.eos_token_id) == set(published)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    start = len(tokenizer("你好")["input_ids"])
    words = tokenizer("one two", add_special_tokens=False)["input_ids"]
    for stop in published:
        ids = [*words, stop, *words, *words]
        (found,) = generate(
            "你好",
            max_new_tokens=8,
            do_sample=False,
            return_tensors=True,
            logits_processor=[Says(ids, start)],
        )
        assert found["generated_token_ids"][-len(words) - 1 :] == [*words, stop]
