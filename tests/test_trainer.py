"""The Hugging Face Trainer on every decoder: what saves memory or batches otherwise changes no number."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from specs import SPECS

MASK, GMASK, SOP = 90, 92, 93
RATE = 0.05
ALL = pytest.mark.parametrize("name", SPECS)
KINDS = pytest.mark.parametrize(
    "name", ["glm-10b", "chatglm-6b", "glm-130b", "infilling-recipe", "chatglm2", "glm-4-0414", "qwen2-sliding"]
)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What is there already is no garbage: accelerate collects it after each run, which takes longer than the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def build(make: Callable[..., Any]) -> Callable[..., Any]:
    """``build(name, **config)``: the same model each time; the biases of a prefix's projection begin at random."""

    def seeded(name: str, **config: Any) -> Any:
        torch.manual_seed(0)
        return make(SPECS[name], **config)

    return seeded


def rows(name: str) -> list[dict[str, list[int]]]:
    """Samples of different lengths, with different numbers of labels: a prompt or a context, and what is scored."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt, answer in ((5, 7), (3, 2), (8, 1), (2, 9), (6, 4), (4, 4), (7, 3), (3, 6)):
        ids = torch.randint(3, 88, (prompt + answer,), generator=generator).tolist()
        if SPECS[name].attention_mask == "prefix":
            ids[1 if answer < 5 else prompt - 2], ids[prompt - 1] = MASK if answer < 5 else GMASK, SOP
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return found


def padded(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Samples as rows of one length, padded on the left."""
    length = max(len(sample["input_ids"]) for sample in samples)

    def fill(values: list[int], padding: int) -> list[int]:
        return [padding] * (length - len(values)) + values

    return {
        "input_ids": torch.tensor([fill(sample["input_ids"], 0) for sample in samples]),
        "labels": torch.tensor([fill(sample["labels"], -100) for sample in samples]),
        "attention_mask": torch.tensor([fill([1] * len(sample["input_ids"]), 0) for sample in samples]),
    }


def train(model: Any, data: list[Any], folder: Path, *, collator: Any = padded, **options: Any) -> Trainer:
    """A trainer that has trained; plain SGD, whose steps are the gradients, unless told otherwise."""
    resume, stop_at = options.pop("resume", None), options.pop("stop_at", None)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == stop_at:
                control.should_training_stop = control.should_save = True

    settings: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    arguments = TrainingArguments(str(folder), **{**settings, **options})
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, data_collator=collator, callbacks=[Stop()]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_same_training(found: Trainer, expected: Trainer, *, exact: bool = False) -> None:
    """Losses and parameters; of inexact ones, what training moved them by."""
    assert losses(found) == pytest.approx(losses(expected), rel=0 if exact else 1e-5)
    theirs = dict(expected.model.named_parameters())
    for name, parameter in found.model.named_parameters():
        if exact:
            assert torch.equal(parameter, theirs[name]), name
        else:
            assert_close(parameter, theirs[name], atol=2e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@KINDS
def test_activation_checkpointing_changes_no_bit(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    plain = train(build(name), rows(name), tmp_path)
    saved = train(build(name), rows(name), tmp_path, gradient_checkpointing=True)
    assert_same_training(saved, plain, exact=True)


@ALL
def test_memory_saved_by_parts_and_packing_changes_no_number(
    name: str, build: Callable[..., Any], tmp_path: Path
) -> None:
    """Accumulated batches, of samples with 1 to 9 labels, are one big batch: a mean of means would be another loss."""
    whole = train(build(name), rows(name), tmp_path)
    before = dict(build(name).named_parameters())
    still = {key for key, parameter in whole.model.named_parameters() if torch.equal(parameter, before[key])}
    assert not still
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    assert_same_training(train(build(name), rows(name), tmp_path, **one), whole)
    collators = {"seq_idx": DataCollatorWithFlattening(return_position_ids=False, return_seq_idx=True)}
    # One-dimensional positions are taken as given, and a collator's are wrong where a piece fills a [MASK].
    if SPECS[name].attention_mask == "causal" or SPECS[name].positions in ("rotary_2d", "learned_2d"):
        collators["positions"] = DataCollatorWithFlattening()
    for collator in collators.values():
        two = {"collator": collator, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        assert_same_training(train(build(name), rows(name), tmp_path, **two), whole)


@KINDS
def test_evaluation(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """By itself and while training, of the loss alone and of logits, which go to compute_metrics."""
    data = rows(name)
    trainer = train(build(name), data, tmp_path, eval_strategy="steps", eval_steps=1)
    assert sum("eval_loss" in row for row in trainer.state.log_history) == 2
    expected = trainer.evaluate()["eval_loss"]
    trainer.args.prediction_loss_only = True
    assert trainer.evaluate()["eval_loss"] == expected
    assert trainer.predict(data).predictions is None
    trainer.args.prediction_loss_only = False

    def accuracy(found: Any) -> dict[str, float]:
        guesses, labels = np.argmax(found.predictions, -1)[:, :-1], found.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    trainer.compute_metrics = accuracy
    measured = trainer.evaluate()
    assert measured["eval_loss"] == expected
    model = trainer.model.eval()
    right = []
    for sample in data:
        with torch.no_grad():
            guesses = model(torch.tensor([sample["input_ids"]])).logits[0, :-1].argmax(-1)
        labels = torch.tensor(sample["labels"][1:])
        right += (guesses == labels)[labels != -100].tolist()
    assert measured["eval_accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("name", ["glm-10b", "chatglm-6b-ptuned", "infilling-recipe", "chatglm2", "llama-3.2"])
def test_a_run_goes_on_bit_for_bit(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    """From a checkpoint in the middle of an epoch, into a model of other numbers; dropout and order included."""
    options = {"optim": "adamw_torch", "max_steps": 6, "per_device_train_batch_size": 2, "seed": 3}
    options |= {"train_sampling_strategy": "random"}
    dropout = {"prefix_dropout": 0.3} if SPECS[name].prefix_length else {}
    whole = train(build(name, **dropout), rows(name), tmp_path / "whole", **options)
    train(build(name, **dropout), rows(name), tmp_path / "part", stop_at=3, **options)
    other = build(name, seed=9, **dropout)
    resumed = train(other, rows(name), tmp_path / "part", resume=str(tmp_path / "part" / "checkpoint-3"), **options)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], tensor), key
    assert losses(resumed)[-3:] == losses(whole)[-3:]


@KINDS
def test_saved_reloaded_and_trained_again(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    first = train(build(name), rows(name), tmp_path)
    first.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same_training(train(reloaded, rows(name), tmp_path), train(first.model, rows(name), tmp_path), exact=True)


@KINDS
def test_bfloat16_mixed_and_whole(name: str, build: Callable[..., Any], tmp_path: Path) -> None:
    exact = losses(train(build(name), rows(name), tmp_path))
    mixed = train(build(name), rows(name), tmp_path, bf16=True)
    assert mixed.model.lm_head.weight.dtype == torch.float32
    assert losses(mixed) == pytest.approx(exact, rel=0.1)
    whole = train(build(name).bfloat16(), rows(name), tmp_path)
    assert whole.model.lm_head.weight.dtype == torch.bfloat16
    assert losses(whole) == pytest.approx(exact, rel=0.1)
    assert np.isfinite(whole.evaluate()["eval_loss"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["chatglm2", "infilling-recipe"])
def test_compiled_training_is_plain_training(name: str, mixed: bool, build: Callable[..., Any], tmp_path: Path) -> None:
    torch.compiler.reset()
    options: dict[str, Any] = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "bf16": mixed}
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    found = train(build(name), rows(name), tmp_path, **options, **compiled)
    expected = train(build(name), rows(name), tmp_path, **options)
    if mixed:
        assert losses(found) == pytest.approx(losses(expected), rel=1e-2)
    else:
        assert_same_training(found, expected)
