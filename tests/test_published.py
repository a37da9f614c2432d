"""The named decoders are the published ones, and the README's table is made from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmlike.hub_json import detect, read_spec
from glmlike.published import PUBLISHED, support_table

ORIGINALS = {
    "glm-515m": "glm-515m/config.json",
    "glm-large-chinese": "glm-large-chinese/config.json",
    "glm-2b": "glm-2b/config.json",
    "glm-10b": "glm-10b/config.json",
    "glm-10b-chinese": "glm-10b-chinese/config.json",
    "chatglm-6b": "chatglm-6b-v1.1/config.json",
    "chatglm2-6b": "chatglm2-6b/config.json",
    "codegeex2-6b": "codegeex2-6b/config.json",
    "chatglm3-6b": "chatglm3-6b/config.json",
    "glm-4-9b": "glm-4-9b/config.json",
    "glm-4-9b-chat": "glm-4-9b-chat/config.json",
    "glm-4-9b-chat-1m": "glm-4-9b-chat-1m/config.json",
    "glm-edge-1.5b": "glm-edge-1.5b/config.json",
    "glm-4-9b-0414": "glm-4-9b-0414/config.json",
    "glm-z1-32b-0414": "glm-z1-32b-0414/config.json",
    "llama-3-8b": "llama-3/config.json",
    "llama-3.1-8b": "llama-3/config.llama-3.1-8b-instruct.json",
    "llama-3.2-1b": "llama-3/config.llama-3.2-1b.json",
    "qwen2.5-7b": "qwen2.5/config.json",
    "qwen2.5-0.5b": "qwen2.5/config.qwen2.5-0.5b-instruct.json",
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_named_decoder_is_what_the_published_config_says(name: str, shared: Path) -> None:
    config = json.loads((shared / "originals" / ORIGINALS[name]).read_text(encoding="utf8"))
    assert detect(config) == PUBLISHED[name].format
    assert PUBLISHED[name].spec.differences(read_spec(config)) == {}


def test_glm_130b_is_what_its_launch_script_says() -> None:
    """configs/model_glm_130b.sh of THUDM/GLM-130B; there is no config.json."""
    arguments = {
        "num_layers": 70,
        "hidden_size": 12_288,
        "inner_hidden_size": 32_768,
        "vocab_size": 150_528,
        "num_attention_heads": 96,
        "max_sequence_length": 2048,
        "layernorm_order": "post",
    }
    assert detect(arguments) == PUBLISHED["glm-130b"].format
    spec = PUBLISHED["glm-130b"].spec
    assert read_spec(arguments) == spec
    assert spec.residual_scale == 140**0.5
    assert spec.num_parameters == 128_697_794_560  # the name rounds up


def test_only_a_derived_entry_has_no_original_config() -> None:
    assert set(PUBLISHED) - set(ORIGINALS) == {"chatglm3-6b-32k", "glm-4-9b-chat-hf", "glm-130b"}


def test_the_table_has_a_row_for_each() -> None:
    rows = support_table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == list(PUBLISHED)
