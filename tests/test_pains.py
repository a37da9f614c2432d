"""What people did with the 2023-24 remote code and failed at, done here: each test is one old habit, as it was written.

The folders are in the original layouts. What an old habit raised is quoted beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import glmlike
import zero3
from specs import SPECS

ORIGINALS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm2", "chatglm3": "chatglm2", "glm": "glm-10b"}
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(5))
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS.repeat(4, 1)]


def train(model: Any, folder: Path, **options: Any) -> Trainer:
    """Four steps of the Trainer, an evaluation after the second and the last."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:2])
    trainer.train()
    return trainer


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, r=4, lora_alpha=16, lora_dropout=0.0, **options)


@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "chatglm3"])
def test_the_lora_scripts_of_2023(name: str, golden: Path, tmp_path: Path) -> None:
    """``AutoModel``, ``trust_remote_code``, ``.float()``, the three calls before PEFT, ``config.use_cache = False``.

    They raised "object has no attribute 'enable_input_require_grads'" and "does not support gradient checkpointing".
    """
    peft = pytest.importorskip("peft")
    model = AutoModel.from_pretrained(golden / name, trust_remote_code=True).float()
    model.supports_gradient_checkpointing = True
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.is_parallelizable = model.model_parallel = True
    model = peft.get_peft_model(model, lora())
    before = {key: value.clone() for key, value in model.state_dict().items() if "lora_B" in key}
    assert before
    trainer = train(model, tmp_path / "run")
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[-1] < losses[0]
    after = model.state_dict()
    assert all(not torch.equal(after[key], value) for key, value in before.items())
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModel.from_pretrained(golden / name, trust_remote_code=True).float()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    model.eval()
    assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ORIGINALS)
def test_checkpointing_with_frozen_embeddings_reaches_the_adapters(name: str, reentrant: bool, golden: Path) -> None:
    """Reentrant checkpoints pass no gradient unless their inputs ask for one."""
    peft = pytest.importorskip("peft")
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        tuned = peft.get_peft_model(model, lora(init_lora_weights=False)).train()
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({key: p.grad for key, p in tuned.named_parameters() if p.requires_grad})
        if checkpointing:
            model.disable_input_require_grads()
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for key, gradient in plain.items():
        assert gradient.abs().sum() > 0
        assert_close(checkpointed[key], gradient)


@pytest.mark.parametrize("name", ORIGINALS)
def test_add_adapter_without_target_modules(name: str, golden: Path, tmp_path: Path) -> None:
    """It said "Please specify target_modules", or "Target modules … not found in the base model"."""
    pytest.importorskip("peft")
    from transformers.integrations import peft as integration

    wanted = integration.MIN_PEFT_VERSION
    if tuple(map(int, version("peft").split(".")[:2])) < tuple(map(int, wanted.split(".")[:2])):
        pytest.skip(f"this transformers adds adapters with peft {wanted} or newer alone")
    model = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
    before = model(IDS).logits.detach()
    model.add_adapter(lora(init_lora_weights=False), adapter_name="mine")
    after = model(IDS).logits.detach()
    assert not torch.allclose(after, before, atol=1e-3)
    model.disable_adapters()
    assert_close(model(IDS).logits, before)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
    again.load_adapter(str(tmp_path))
    assert_close(again(IDS).logits, after)


@pytest.mark.parametrize("name", ORIGINALS)
def test_trained_evaluated_saved_reloaded_and_trained_again(name: str, golden: Path, tmp_path: Path) -> None:
    """Evaluation raised ``KeyError: 'loss'``, or unpacked a tuple cache; saved folders needed their .py files."""
    model = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32, trust_remote_code=True)
    first = train(model, tmp_path / "first")
    measured = first.evaluate()
    predicted = first.predict(ROWS[:2])
    assert predicted.predictions.shape[:2] == (2, 12)  # logits alone: no cache among them
    first.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").glob("*.py"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)
    second = train(again, tmp_path / "second")
    assert second.evaluate()["eval_loss"] != measured["eval_loss"]
    glmlike.convert(tmp_path / "saved", tmp_path / "original", to=ORIGINALS[name].replace("chatglm2", "chatglm"))
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.float32)
    assert_close(back(IDS).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(IDS).logits)


def test_a_p_tuning_checkpoint_travels_with_its_base_or_alone(golden: Path, tmp_path: Path) -> None:
    """A checkpoint of the original scripts holds the prefix alone; people wanted one merged folder.

    It raised "size mismatch for embedding.weight" and "object has no attribute 'prefix_encoder'".
    """
    tensors = load_file(golden / "chatglm2_ptuning" / "model.safetensors")
    config = json.loads((golden / "chatglm2_ptuning" / "config.json").read_text())
    del config["pre_seq_len"]
    prefix = {name: tensors.pop(name) for name in list(tensors) if "prefix_encoder" in name}
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({**config, "prefix_projection": False}))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    from glmlike.ptuning import load_prefix, save_prefix

    whole = AutoModel.from_pretrained(golden / "chatglm2_ptuning", trust_remote_code=True, dtype=torch.float32)
    alone = tmp_path / "checkpoint-3000"
    alone.mkdir()
    torch.save(prefix, alone / "pytorch_model.bin")
    joined = load_prefix(AutoModel.from_pretrained(base, trust_remote_code=True, dtype=torch.float32), alone)
    assert torch.equal(joined(IDS).logits, whole(IDS).logits)
    save_prefix(joined, tmp_path / "prefix")
    again = load_prefix(AutoModel.from_pretrained(base, dtype=torch.float32), tmp_path / "prefix")
    assert torch.equal(again(IDS).logits, whole(IDS).logits)
    joined.save_pretrained(tmp_path / "merged")  # one folder, as was asked for
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, whole(IDS).logits)


def test_a_lora_merges_in_memory_that_the_model_does_not_fit_in(make: Callable[..., Any], tmp_path: Path) -> None:
    """``merge_and_unload`` of a 6B model was ``Killed`` on 15 GB; shard by shard it takes the memory one asks for."""
    peft = pytest.importorskip("peft")
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "chatglm", to="chatglm", max_shard_size="60KB")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "chatglm", dtype=torch.float32)
    tuned = peft.get_peft_model(base, lora(init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    glmlike.merge(tmp_path / "chatglm", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert_close(merged(IDS).logits, tuned(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_tokenizers_special_tokens_are_set_saved_and_reloaded(tmp_path: Path) -> None:
    """It raised "property 'eos_token' of 'ChatGLMTokenizer' object has no setter" at the second load."""
    from glmlike.data import TINY

    tokenizer = AutoTokenizer.from_pretrained(TINY, trust_remote_code=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.pad_token = tokenizer.eos_token = "<eop>"
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path / "first")
    again = AutoTokenizer.from_pretrained(tmp_path / "first", trust_remote_code=True)
    again.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    again.save_pretrained(tmp_path / "second")
    third = AutoTokenizer.from_pretrained(tmp_path / "second", eos_token="<|endoftext|>")
    assert (again.eos_token, again.pad_token, again.padding_side) == ("<eop>", "<eop>", "left")
    assert (third.eos_token, third.pad_token) == ("<|endoftext|>", "<eop>")
    assert third.convert_tokens_to_ids("<tool>") == len(tokenizer)


@pytest.mark.parametrize("name", ORIGINALS)
def test_built_without_numbers_then_filled(name: str, golden: Path) -> None:
    """``skip_init`` and ``empty_init`` of the remote code ended in "Cannot copy out of meta tensor; no data!"."""
    loaded = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
    with torch.device("meta"):
        empty = glmlike.GlmLikeForCausalLM(loaded.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    filled = glmlike.GlmLikeForCausalLM.from_pretrained(None, config=loaded.config, state_dict=loaded.state_dict())
    assert torch.equal(filled(IDS).logits, loaded(IDS).logits)
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        skeleton = glmlike.GlmLikeForCausalLM(loaded.config)
    skeleton.load_state_dict(loaded.state_dict(), assign=True)
    skeleton.tie_weights()
    assert torch.equal(skeleton.eval()(IDS).logits, loaded(IDS).logits)


@pytest.mark.parametrize("name", ORIGINALS)
def test_loaded_under_zero_3(name: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter is empty once its module is built, and no fused matrix is lost on the way into it."""
    expected = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
    with zero3.enabled(monkeypatch, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    assert parameters
    assert all(parameter.numel() == 0 for parameter in parameters.values())
    with zero3.gathered(parameters.values()):
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
