"""What people do with PEFT around our models: every spec, virtual tokens, new tokens, quantized bases, old adapters."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging import version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import glmlike
import hub_server
from specs import SPECS

peft = pytest.importorskip("peft")

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(IDS)


def learn(model: Any, steps: int = 8, rate: float = 2e-2, ids: torch.Tensor = IDS) -> list[float]:
    """The losses of some steps on what can be trained."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("name", SPECS)
def test_lora_without_targets_is_on_every_layer_and_starts_as_nothing(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    before = logits(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig())
    adapted = {module for module, part in tuned.named_modules() if hasattr(part, "lora_A")}
    assert len(adapted) == 2 * SPECS[name].num_hidden_layers
    assert torch.equal(logits(tuned), before)
    assert 0 < tuned.get_nb_trainable_parameters()[0] < tuned.get_nb_trainable_parameters()[1] / 5


VIRTUAL: dict[str, Callable[[], Any]] = {
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "projected prefix": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16
    ),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
}


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("name", ["chatglm2", "glm-4-0414", "llama-3", "qwen2.5-tied"])
def test_virtual_tokens_learn_save_and_load(kind: str, name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS[name]).save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(load(tmp_path / "base"), VIRTUAL[kind]())
    losses = learn(tuned)
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(tuned))


@pytest.mark.parametrize("name", ["chatglm2", "glm-10b"])
def test_modules_to_save_learn_save_load_and_merge(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS[name]).save_pretrained(tmp_path / "base")
    saved = ["norm"] if SPECS[name].tie_word_embeddings else ["norm", "lm_head"]
    tuned = peft.get_peft_model(load(tmp_path / "base"), peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=saved))
    losses = learn(tuned)
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    expected = logits(tuned)
    assert torch.equal(logits(again), expected)
    torch.testing.assert_close(logits(again.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)
    glmlike.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["chatglm2", "tied-recipe"])
def test_new_tokens_are_trained_saved_with_the_adapter_and_loaded(
    name: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    """PEFT sees that the vocabulary grew, and saves embedding and head; they load onto a base resized alike."""
    make(SPECS[name]).save_pretrained(tmp_path / "base")

    def resized() -> Any:
        model = load(tmp_path / "base")
        model.resize_token_embeddings(100)
        return model

    tokens = {"modules_to_save": ["embed_tokens", "lm_head"]}
    ids = torch.cat((IDS, torch.full((2, 2), 98)), dim=1)
    options = {"task_type": "CAUSAL_LM", **({} if SPECS[name].tie_word_embeddings else tokens)}
    tuned = peft.get_peft_model(resized(), peft.LoraConfig(**options))
    losses = learn(tuned, ids=ids)
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    shapes = {tuple(t.shape) for n, t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    assert (100, SPECS[name].hidden_size) in shapes
    again = peft.PeftModel.from_pretrained(resized(), tmp_path / "adapter")
    assert torch.equal(logits(again, ids), logits(tuned, ids))


@pytest.mark.parametrize("name", ["chatglm2", "glm-4-0414", "glm-10b"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_qlora_learns_saves_and_loads(kind: str, name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    """On a base that bitsandbytes quantized while it was read; dimensions are multiples of 64, as its kernels ask."""
    pytest.importorskip("bitsandbytes")
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    spec = SPECS[name].replace(hidden_size=128, intermediate_size=256, num_hidden_layers=2, **heads)
    make(spec).save_pretrained(tmp_path / "base")
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}

    def quantized() -> Any:
        return load(tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), dtype="float32")

    model = peft.prepare_model_for_kbit_training(quantized())
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    assert {type(p).__name__ for p in tuned.parameters() if not p.requires_grad} & {"Params4bit", "Int8Params"}
    losses = learn(tuned)
    assert losses[-1] < 0.9 * losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(quantized(), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(tuned), atol=1e-2, rtol=1e-2)


def test_transformers_own_adapters(make: Callable[..., Any], tmp_path: Path) -> None:
    """add_adapter, training, save_pretrained, load_adapter, several at a time: what transformers' models have."""
    oldest = getattr(importlib.import_module("transformers.integrations.peft"), "MIN_PEFT_VERSION", "0")
    if version.parse(peft.__version__) < version.parse(oldest):
        pytest.skip(f"this transformers asks for PEFT {oldest}, here is {peft.__version__}")
    make(SPECS["glm-4-9b"]).save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    plain = logits(model)
    model.add_adapter(peft.LoraConfig(task_type="CAUSAL_LM"), adapter_name="first")
    losses = learn(model)
    assert losses[-1] < losses[0]
    first = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load(tmp_path / "base")
    again.load_adapter(tmp_path / "adapter", adapter_name="mine")
    assert torch.equal(logits(again), first)
    again.add_adapter(peft.LoraConfig(init_lora_weights=False), adapter_name="second")
    again.set_adapter("second")
    assert not torch.allclose(logits(again), first)
    again.set_adapter("mine")
    assert torch.equal(logits(again), first)
    again.disable_adapters()
    assert torch.equal(logits(again), plain)


def test_a_folder_of_an_old_adapter_is_a_model(make: Callable[..., Any], tmp_path: Path) -> None:
    """AutoModel… of an adapter trained on fused modules: its base, with the adapter on native modules."""
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(load(tmp_path / "base"), config)
    tuned.save_pretrained(tmp_path / "native")
    glmlike.convert_adapter(tmp_path / "native", tmp_path / "old", to="chatglm", base=tmp_path / "base")
    said = json.loads((tmp_path / "old" / "adapter_config.json").read_text())
    assert said["target_modules"] == ["query_key_value"]
    expected = logits(tuned)
    torch.testing.assert_close(logits(load(tmp_path / "old")), expected)
    base = load(tmp_path / "base")
    base.load_adapter(tmp_path / "old")
    torch.testing.assert_close(logits(base), expected)
    with pytest.raises(ValueError, match="Target modules .*query_key_value.* not found"):  # PEFT's: see load_adapter
        peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "old")
    torch.testing.assert_close(logits(glmlike.load_adapter(load(tmp_path / "base"), tmp_path / "old")), expected)


_FROM_THE_HUB = """
import json, sys
import peft, torch, glmlike
from transformers import AutoModelForCausalLM
base, first = sys.argv[1:]
ids = torch.arange(3, 12)[None]
found = []
for load in (
    lambda model: glmlike.load_adapter(model, "some/old", revision=first),
    lambda model: model.load_adapter("some/old", adapter_kwargs={"revision": first}),
    lambda model: glmlike.load_adapter(model, "some/nested", subfolder="inner"),
):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    loaded = load(model)
    model = loaded if isinstance(loaded, peft.PeftModel) else model
    found.append(model.eval()(ids).logits.tolist())
try:
    glmlike.load_adapter(AutoModelForCausalLM.from_pretrained(base), "some/absent")
except ValueError as error:
    found.append(str(error))
print(json.dumps(found))
"""


def test_old_adapters_on_the_hub(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(load(tmp_path / "base"), config)
    tuned.save_pretrained(tmp_path / "native")
    glmlike.convert_adapter(tmp_path / "native", tmp_path / "old", to="chatglm", base=tmp_path / "base")
    content = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    with hub_server.running() as hub:
        first = hub.put("some/old", content)
        hub.put("some/old", {"README.md": b"withdrawn"})
        hub.put("some/nested", {f"inner/{name}": data for name, data in content.items()})
        known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {
            **known,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", _FROM_THE_HUB, str(tmp_path / "base"), first]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *found, absent = json.loads(done.stdout)
    expected = logits(tuned, torch.arange(3, 12)[None])
    for tokens in found:
        torch.testing.assert_close(torch.tensor(tokens), expected)
    assert "some/absent" in absent
