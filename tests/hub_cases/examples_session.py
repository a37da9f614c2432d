"""``--push`` of the examples over the real protocol; run by tests/test_hub.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from glmlike.data import TINY
from glmlike.pruning import prune_depth
from hub_server import TOKEN, USER, Hub

EXAMPLES = Path(__file__).parents[2] / "examples"
PUSHED = sorted(path.stem for path in EXAMPLES.glob("*.py") if '"--push"' in path.read_text(encoding="utf8"))
WORDS = ("light", "day", "night", "earth", "water", "heaven", "grass", "seed", "tree", "fruit")
SHORT = {"grpo": ["--steps", "2", "--tokens", "12"], "distill": ["--steps", "2", "--tokens", "4", "--layers", "1"]}
BASE = f"{USER}/base"


def rows(name: str) -> list[dict[str, Any]]:
    """A few rows of what the example reads."""
    if name in ("pretrain", "blanks", "lora"):
        return [{"text": f"And God called the {word} good, and saw that it was so. " * 5} for word in WORDS]
    chats = [({"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word}) for word in WORDS]
    if name == "sft":
        return [{"messages": list(chat)} for chat in chats]
    if name in ("grpo", "distill"):  # common words: some answers have one of them, which GRPO rewards
        common = "and the of to in that it unto he they"
        return [{"prompt": [{"role": "user", "content": f"{common} {word}"}]} for word in WORDS]
    no = {"role": "assistant", "content": "no"}
    return [{"prompt": [question], "chosen": [answer], "rejected": [no]} for question, answer in chats]


def run(name: str, *arguments: str) -> dict[str, float]:
    """The example's ``main``."""
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    measured: dict[str, float] = module.main(list(arguments))
    return measured


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    """Weights of the embedded model with two layers, which is on the Hub as BASE."""
    for package in ("datasets", "accelerate", "trl", "peft"):
        pytest.importorskip(package, reason=f"examples need it: pip install 'glmlike[train]' (without {package})")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    prune_depth(model, [torch.arange(300, 316)[None]], keep=2)
    model.push_to_hub(BASE)
    AutoTokenizer.from_pretrained(TINY).push_to_hub(BASE)
    return dict(model.state_dict())


@pytest.mark.parametrize("name", PUSHED)
def test_what_was_trained_is_there_with_its_tokenizer_and_a_card(
    name: str, base: dict[str, torch.Tensor], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps (the first may only warm up) on one's own data, from a model on the Hub to a new repository."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, output, repository = tmp_path / "data.jsonl", tmp_path / "out", f"{USER}/{name}"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    model = "--teacher" if name == "distill" else "--model"
    arguments = [model, BASE, "--data", str(data), "--output", str(output), "--push", repository]
    run(name, *arguments, *SHORT.get(name, ["--epochs", "2"]))

    paths = hub.paths(repository)
    weights = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    assert {weights, weights.replace("model.safetensors", "config.json"), "tokenizer.json", "README.md"} <= paths
    for path in (weights, "tokenizer.json"):
        assert hub.read(repository, path) == (output / path).read_bytes()
    text = "We the [MASK] of the United States"
    assert (
        AutoTokenizer.from_pretrained(repository)(text)["input_ids"]
        == AutoTokenizer.from_pretrained(TINY)(text)["input_ids"]
    )
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    loaded = kind.from_pretrained(repository, dtype=torch.float32).state_dict()
    trained = load(hub.read(repository, weights))
    if name == "lora":
        assert any(float(value.abs().max()) > 0 for key, value in trained.items() if "lora_B" in key)
        assert sum("lora_B" in key for key in loaded) == sum("lora_B" in key for key in trained) > 0
    else:
        assert all(torch.equal(loaded[key], value.float()) for key, value in trained.items())
        assert not all(torch.equal(base[key], trained[key].float()) for key in base.keys() & trained.keys())
    card = ModelCard(hub.read(repository, "README.md").decode())
    assert card.data.base_model == BASE
    assert card.data.library_name in ("transformers", "peft")
    assert TOKEN not in card.content
    assert str(tmp_path) not in card.content
