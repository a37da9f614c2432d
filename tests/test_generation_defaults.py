"""Where models stop when their folder does not say: as the originals, never against the user's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from glmlike import GlmLikeForCausalLM
from glmlike.errors import ConfigError
from glmlike.generation_defaults import DEFAULTS, all_stops, chat_arguments, generation_config
from glmlike.tokenization.templates import GENERATIONS
from specs import SPECS


def test_every_generation_has_defaults() -> None:
    assert sorted(DEFAULTS) == sorted(GENERATIONS)
    for name in DEFAULTS:
        config = generation_config(name)
        config.validate()
        assert config.eos_token_id == list(DEFAULTS[name].stops)
    with pytest.raises(ConfigError, match="glm-5"):
        generation_config("glm-5")


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A small model with ChatGLM3's number of rows and the one stop that its config.json names."""
    spec = SPECS["chatglm2"].replace(vocab_size=65_024, hidden_size=16, num_attention_heads=2, num_key_value_heads=2)
    spec = spec.replace(head_dim=8, intermediate_size=16, num_hidden_layers=1)
    make(spec, eos_token_id=2).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


def test_a_folder_without_the_file_gets_all_stops(folder: Path) -> None:
    model = GlmLikeForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [2, 64_795, 64_797]
    assert model.config.eos_token_id == 2
    assert not model.generation_config.do_sample


@pytest.mark.parametrize("said", [{"eos_token_id": 2}, {"eos_token_id": 2, "_from_model_config": True}, {"top_k": 3}])
def test_the_file_of_the_folder_stays(folder: Path, said: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    model = GlmLikeForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == said.get("eos_token_id")


def test_a_config_that_is_passed_stays(folder: Path) -> None:
    model = GlmLikeForCausalLM.from_pretrained(folder, generation_config=GenerationConfig(eos_token_id=7))
    assert model.generation_config.eos_token_id == 7


def test_other_ids_are_the_owners_choice(make: Callable[..., Any]) -> None:
    class Config:
        vocab_size = 65_024
        eos_token_id: Any = 5

    assert all_stops(Config()) is None
    Config.eos_token_id = None
    assert all_stops(Config()) is None
    Config.eos_token_id, Config.vocab_size = [151_336], 151_552
    assert all_stops(Config()) == [151_329, 151_336, 151_338]
    Config.vocab_size = 100
    assert all_stops(Config()) is None


def test_arguments_of_chat() -> None:
    assert chat_arguments("chatglm3", {}) == {
        "num_beams": 1,
        "max_length": 8192,
        "do_sample": True,
        "top_p": 0.8,
        "temperature": 0.8,
    }
    greedy = chat_arguments("chatglm-6b", {"do_sample": False, "max_new_tokens": 4})
    assert greedy == {"num_beams": 1, "do_sample": False, "max_new_tokens": 4}
    assert chat_arguments("chatglm-6b", {"max_length": 9})["max_length"] == 9
