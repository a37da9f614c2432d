"""Batches of blank infilling: positions as the decoder derives them, the Trainer as it is, exact restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from glmlike import GlmLikeConfig
from glmlike.errors import ConfigError
from glmlike.infilling import OBJECTIVES, BlankInfillingObjective, DataCollatorForBlankInfilling
from glmlike.infilling.collator import SENTENCE_ENDS
from specs import SPECS

INFILLING = ["infilling-recipe", "chatglm-6b", "glm-10b", "glm-130b"]
MIXED = BlankInfillingObjective(token=0.4, sentence=0.2, document=0.2, causal=0.2, level_per="sample")
SPECIAL = {"[MASK]": 90, "[sMASK]": 91, "[gMASK]": 92, "<sop>": 93, "<eop>": 94, "<dBLOCK>": 95}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """96 tokens: words, a full stop, and the special tokens where the ``make`` fixture's models have them."""
    vocabulary = {"<pad>": 0, "</s>": 1, "[CLS]": 2, ".": 3, **{f"w{n}": n for n in range(4, 90)}, **SPECIAL}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w4"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        cls_token="[CLS]",
        mask_token="[MASK]",
        extra_special_tokens=[AddedToken(name, special=True) for name in list(SPECIAL)[1:]],
    )


@pytest.fixture
def model(make: Callable[..., Any]) -> Any:
    return make(SPECS["infilling-recipe"])


def texts(count: int, seed: int = 0, low: int = 8, high: int = 40) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(3, 90, int(rng.integers(low, high))).tolist()} for _ in range(count)]


@pytest.mark.parametrize("name", INFILLING)
@pytest.mark.parametrize("objective", [OBJECTIVES["glm-large"], OBJECTIVES["glm-130b"]])
def test_positions_in_order_are_what_the_decoder_derives(
    name: str, objective: Any, make: Callable[..., Any], tokenizer: Any
) -> None:
    model = make(SPECS[name])
    objective = replace(objective, shuffle=False)
    for seed in range(5):
        batch = DataCollatorForBlankInfilling(tokenizer, model.config, objective, seed=seed)(texts(6, seed))
        derived = model.infilling_positions(batch["input_ids"], batch["attention_mask"])
        real = batch["attention_mask"].bool()
        if derived.ndim == 3:
            real = real[:, None].expand_as(derived)
        assert torch.equal(batch["position_ids"][real], derived[real])


def test_labels_are_shifted_as_transformers_expects(model: Any, tokenizer: Any) -> None:
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED)
    samples = collator.samples(texts(7))
    batch = collator.collate(samples)
    for row, sample in enumerate(samples):
        size = len(sample.input_ids)
        assert batch["labels"][row, 1 : size + 1].tolist() == sample.targets.tolist()
        assert batch["labels"][row, 0] == -100
        assert (batch["labels"][row, size + 1 :] == -100).all()
        assert batch["attention_mask"][row].sum() == size
    with torch.no_grad():
        output = model(**batch)
        summed = count = 0.0
        for row, sample in enumerate(samples):
            targets = torch.from_numpy(sample.targets)
            logits = output.logits[row, : len(targets)]
            summed += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += int((targets != -100).sum())
    assert abs(output.loss.item() - summed / count) < 1e-5


@pytest.mark.parametrize("name", INFILLING)
def test_packed_rows_have_the_loss_of_the_samples_alone(name: str, make: Callable[..., Any], tokenizer: Any) -> None:
    model = make(SPECS[name])
    losses = []
    for pack_length in (None, 64, 100):
        collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED, pack_length=pack_length)
        batch = collator(texts(9))
        if pack_length is not None:
            assert batch["input_ids"].shape[0] < 9
            assert batch["attention_mask"].sum(-1).max() <= pack_length
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append((loss.item(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()))
    for loss, gradient in losses[1:]:
        assert abs(loss - losses[0][0]) < 1e-5
        torch.testing.assert_close(gradient, losses[0][1], atol=1e-5, rtol=1e-4)


def test_levels_are_drawn_in_their_shares(model: Any, tokenizer: Any) -> None:
    per_sample = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED)
    per_batch = DataCollatorForBlankInfilling(
        tokenizer, model.config, BlankInfillingObjective(token=0.5, sentence=0.3, document=0.2)
    )
    seen, batches = Counter(), Counter()
    for seed in range(150):
        seen.update(_level(sample) for sample in per_sample.samples(texts(8, seed)))
        levels = {_level(sample) for sample in per_batch.samples(texts(8, seed))}
        assert len(levels) == 1
        batches.update(levels)
    assert [round(seen[level] / 1200, 1) for level in (90, 91, 92, 0)] == [0.4, 0.2, 0.2, 0.2]
    assert 55 < batches[90] < 95
    assert 30 < batches[91] < 62


def _level(sample: Any) -> int:
    return next((token for token in (90, 91, 92) if token in sample.input_ids), 0)


def test_a_batch_has_one_document_length(model: Any, tokenizer: Any) -> None:
    objective = BlankInfillingObjective(token=0, document=1)
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, objective)
    for seed in range(20):
        samples = collator.samples(texts(5, seed, 20, 21))
        lengths = {int(((sample.targets != -100) & (sample.targets != 94)).sum()) for sample in samples}
        assert len(lengths) == 1
        assert 10 <= lengths.pop() <= 18


def test_batches_depend_on_seed_epoch_and_contents_and_on_nothing_else(model: Any, tokenizer: Any) -> None:
    def ids(seed: int = 0, epoch: int = 0, features: Any = None, warm: int = 0) -> list[list[int]]:
        collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED, seed=seed)
        for number in range(warm):
            collator(texts(3, number))
        collator.set_epoch(epoch)
        return collator(features or texts(4))["input_ids"].tolist()

    assert ids() == ids(warm=5)
    different = [ids(), ids(seed=1), ids(epoch=1), ids(features=texts(4)[::-1])]
    assert len({str(found) for found in different}) == 4


def test_texts_are_cut_and_shortened(model: Any, tokenizer: Any) -> None:
    cut = DataCollatorForBlankInfilling(
        tokenizer, model.config, BlankInfillingObjective(token=0, causal=1), max_length=10
    )
    assert {len(sample.input_ids) for sample in cut.samples(texts(5, 0, 20, 30))} == {10}
    objective = BlankInfillingObjective(token=0, causal=1, short_probability=1)
    shorter = DataCollatorForBlankInfilling(tokenizer, model.config, objective)
    features = texts(4, 0, 200, 201)
    joined = [" ".join(map(str, feature["input_ids"])) for feature in features]
    for seed in range(10):
        shorter.set_epoch(seed)
        samples = shorter.samples(features)
        assert all(len(sample.input_ids) <= 200 for sample in samples)
        assert all(any(" ".join(map(str, sample.input_ids)) in whole for whole in joined) for sample in samples)
        if len(samples) > 4:
            assert max(len(sample.input_ids) for sample in samples) <= 100


def test_pairs_are_trained_beside_texts(model: Any, tokenizer: Any) -> None:
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, BlankInfillingObjective())
    pair = {"input_ids": [10, 90, 11], "target_ids": [12, 13]}
    batch = collator([*texts(2), pair])
    assert batch["input_ids"][2, :6].tolist() == [10, 90, 11, 93, 12, 13]
    assert batch["labels"][2, :7].tolist() == [-100, -100, -100, -100, 12, 13, 94]
    assert batch["position_ids"][2, :, :6].tolist() == [[0, 1, 2, 1, 1, 1], [0, 0, 0, 1, 2, 3]]


def test_sentence_ends_follow_the_vocabulary(model: Any, tokenizer: Any) -> None:
    assert "." in SENTENCE_ENDS
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, BlankInfillingObjective(token=0, sentence=1))
    sample = collator.samples([{"input_ids": [10, 11, 3, 12, 13, 14, 3, 15]}])[0]
    piece = sample.targets[sample.targets != -100].tolist()
    assert piece in ([10, 11, 3, 94], [12, 13, 14, 3, 94], [15, 94])


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 8,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    return TrainingArguments(**{**defaults, **more})


def losses(trainer: Trainer) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


@pytest.mark.parametrize("name", INFILLING)
def test_the_trainer_trains_and_evaluates(name: str, make: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    model = make(SPECS[name])
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED, pack_length=96)
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=30),
        train_dataset=texts(40),
        eval_dataset=texts(12, 1),
        data_collator=collator,
        callbacks=[collator.callback()],
    )
    model.gradient_checkpointing_enable()
    before = trainer.evaluate()["eval_loss"]
    batches = [collator(texts(12, 1)[start : start + 4]) for start in (0, 4, 8)]
    with torch.no_grad():
        by_hand = sum(model(**batch).loss.item() for batch in batches) / 3
    assert abs(before - by_hand) < 0.05 * by_hand  # the mean over batches
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_a_resumed_run_sees_the_same_batches(make: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    def run(folder: Path, resume: bool = False, **more: Any) -> dict[int, float]:
        model = make(SPECS["infilling-recipe"])
        collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED)
        trainer = Trainer(
            model=model,
            args=arguments(folder, **more),
            train_dataset=texts(20),
            data_collator=collator,
            callbacks=[collator.callback()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return losses(trainer)

    whole = run(tmp_path / "whole", save_strategy="steps", save_steps=3)
    for checkpoint in ("checkpoint-6", "checkpoint-8"):
        assert (tmp_path / "whole" / checkpoint).exists()
    resumed = run(tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoint-3"))  # type: ignore[arg-type]
    assert {step: resumed[step] for step in range(4, 9)} == pytest.approx({step: whole[step] for step in range(4, 9)})


def test_workers_give_the_same_batches(model: Any, tokenizer: Any) -> None:
    collator = DataCollatorForBlankInfilling(tokenizer, model.config, MIXED)
    data = texts(12)
    loaders = [
        torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collator, num_workers=workers)  # type: ignore[arg-type]
        for workers in (0, 2)
    ]
    for here, there in zip(*loaders, strict=True):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here)


def test_bad_input_is_named(model: Any, tokenizer: Any) -> None:
    causal = GlmLikeConfig.from_spec(SPECS["chatglm2"])
    with pytest.raises(ConfigError, match=r"attention_mask='causal': only decoders with attention_mask='prefix'"):
        DataCollatorForBlankInfilling(tokenizer, causal)
    with pytest.raises(ConfigError, match=r"objective='bert': expected one of glm-base"):
        DataCollatorForBlankInfilling(tokenizer, model.config, "bert")
    collator = DataCollatorForBlankInfilling(tokenizer, model.config)
    with pytest.raises(ConfigError, match=r"a text holds a mask or start-of-piece token"):
        collator([{"input_ids": [10, 90]}])
    with pytest.raises(ConfigError, match=r"a feature has \['text'\], expected 'input_ids'"):
        collator([{"text": "x"}])
    with pytest.raises(ConfigError, match=r"input_ids has shape \[1, 2\] and dtype int64, expected one list"):
        collator([{"input_ids": [[10, 11]]}])
    nameless = GlmLikeConfig.from_spec(SPECS["infilling-recipe"], pad_token_id=0)
    with pytest.raises(ConfigError, match=r"mask_token_id, sop_token_id: neither the config nor the vocabulary says"):
        DataCollatorForBlankInfilling(tokenizer, nameless)
