"""PEFT with its defaults on our models: every method it has default modules for, on every kind of decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from specs import SPECS

peft = pytest.importorskip("peft")

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
KINDS = ["chatglm2", "glm-4-0414", "llama-biased", "qwen2-sliding", "glm-10b", "chatglm-6b", "glm-130b"]
METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM"),
    "dora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True),
    "rslora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_rslora=True),
    "adalora": lambda: peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=10, init_r=4, target_r=2),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def trained(model: Any, config: Any) -> Any:
    """A PeftModel after one step on its adapter."""
    tuned = peft.get_peft_model(model, config)
    tuned.train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # LoRA's first step moves lora_B alone
        optimizer.zero_grad()
        tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss.backward()
        optimizer.step()
    return tuned.eval()


CASES = [(name, method) for name in KINDS for method in METHODS if not (method == "prompt" and name in KINDS[4:])]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_defaults_train_save_and_load(name: str, method: str, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS[name]).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    before = base(IDS).logits.detach()
    tuned = trained(base, METHODS[method]())
    with torch.no_grad():
        after = tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert after.shape[-1] == before.shape[-1]
    assert not torch.equal(after[:, -9:], before)
    tuned.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits, after)


@torch.no_grad()
def test_adapters_switch_merge_and_unmerge(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["glm-4-0414"])
    before = model(IDS).logits
    tuned = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False), "first").eval()
    tuned.add_adapter("second", peft.LoraConfig(init_lora_weights=False, target_modules="all-linear"))
    tuned.set_adapter("first")
    logits = {"first": tuned(IDS).logits}
    tuned.set_adapter("second")
    logits["second"] = tuned(IDS).logits
    assert not torch.allclose(logits["first"], logits["second"])
    with tuned.disable_adapter():
        assert torch.equal(tuned(IDS).logits, before)
    tuned.set_adapter("first")
    assert torch.equal(tuned(IDS).logits, logits["first"])
    tuned.merge_adapter()
    torch.testing.assert_close(tuned(IDS).logits, logits["first"], atol=1e-4, rtol=1e-4)
    tuned.unmerge_adapter()
    torch.testing.assert_close(tuned(IDS).logits, logits["first"], atol=1e-4, rtol=1e-4)


def test_every_table_of_defaults_has_our_type_and_keeps_what_remote_code_needs() -> None:
    from peft.utils import constants

    tables = {n: t for n, t in vars(constants).items() if n.endswith("_TARGET_MODULES_MAPPING")}
    assert len(tables) > 10
    assert all(table["glmlike"] for table in tables.values())
    assert constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["chatglm"] == ["query_key_value"]
