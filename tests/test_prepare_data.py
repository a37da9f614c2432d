"""examples/prepare_data.py: what is left out is counted, no token is lost or scored twice, packing costs nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY
from test_examples import script

datasets = pytest.importorskip("datasets")
pytest.importorskip("datasketch")
recipe: Any = script("examples/prepare_data.py")
WORDS = sorted(set(CONSTITUTION.read_text(encoding="utf8").split()))


def document(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype="float32").eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


CLEAN = {
    "a\r\nb\rc": "a\nb\nc",
    "e\u0301 \ufeffx\u200by\x00": "é xy",
    "行一，　行二。\u202e": "行一，　行二。",
    "می\u200cخواهم \U0001f468\u200d\U0001f469": "می\u200cخواهم \U0001f468\u200d\U0001f469",
    " a \n\n\n\n b\t\n": "a\n\n b",
}


@pytest.mark.parametrize(("text", "expected"), CLEAN.items())
def test_clean(text: str, expected: str) -> None:
    assert recipe.clean(text) == expected


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_cleaning_again_changes_nothing(text: str) -> None:
    once = recipe.clean(text)
    assert recipe.clean(once) == once


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("too short", False),
        (document(0), True),
        ("=-+*#|" * 20, False),
        ("中华人民共和国" * 4, True),
        ("\ufffd" * 3 + "a" * 99, False),
    ],
)
def test_worth_keeping(text: str, kept: bool) -> None:
    assert recipe.is_worth_keeping(text) is kept


def test_near_duplicates_are_found_and_others_stay() -> None:
    texts = [document(seed) for seed in range(30)]
    copies = [texts[3].upper(), texts[7].replace(" ", "\n"), texts[11] + " indeed", "x " + texts[20]]
    assert recipe.first_of_each_kind([*texts, *copies], 0.8) == list(range(30))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(8, 40), st.integers(0, 4))
def test_splitting_loses_no_token_and_scores_each_once(words: list[int], length: int, overlap: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [document(seed, count) for seed, count in enumerate(words)]
    rows = recipe.pieces(texts, tokenizer, length, overlap)
    whole = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert [label for labels in rows["labels"] for label in labels if label != -100] == whole
    assert max(map(len, rows["input_ids"])) <= length
    again = [
        (ids[place], label) for ids, labels in zip(*rows.values(), strict=True) for place, label in enumerate(labels)
    ]
    assert all(label in (-100, token) for token, label in again)


def test_packed_rows_cost_what_separate_rows_cost(tokenizer: Any, model: Any) -> None:
    rows = recipe.pieces([document(seed, 5 + 9 * seed) for seed in range(7)], tokenizer, 64, 8)
    packed = recipe.pack(rows, 64, tokenizer.pad_token_id)
    assert len(packed["input_ids"]) < len(rows["input_ids"])
    assert {len(ids) for name in packed for ids in packed[name]} == {64}

    def cost(batch: dict[str, list[Any]]) -> float:
        total = 0.0
        for number in range(len(batch["input_ids"])):
            row = {name: torch.tensor(values[number])[None] for name, values in batch.items()}
            with torch.no_grad():
                total += float(model(**row, num_items_in_batch=1).loss)
        return total

    assert cost(packed) == pytest.approx(cost(rows), rel=1e-5)
    mixed = {**packed, "seq_idx": [[0] * 64 for _ in packed["seq_idx"]]}
    assert cost(mixed) != pytest.approx(cost(rows), rel=1e-4)


def test_text_to_training(tmp_path: Path, tokenizer: Any, model: Any) -> None:
    texts = [document(seed, 150) for seed in range(8)]
    bad = ["", "#" * 50, texts[2].upper(), "\x07" + texts[5]]
    source = jsonl(tmp_path / "corpus.jsonl", [{"text": text, "id": 1} for text in [*texts, *bad]])
    (tmp_path / "more.txt").write_text(document(99, 400), encoding="utf8")
    chosen = ["--tokenizer", str(TINY), "--length", "128", "--overlap", "16"]
    counts = recipe.main([str(source), str(tmp_path / "more.txt"), str(tmp_path / "out"), *chosen])
    assert (counts["read"], counts["clean"], counts["unlike"]) == (13, 11, 9)
    assert counts["samples"] > 9
    dataset = datasets.load_from_disk(tmp_path / "out")
    assert counts["rows"] == len(dataset) <= counts["samples"]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, report_to="none", use_cpu=True, save_strategy="no"
    )
    assert Trainer(model, arguments, train_dataset=dataset).train().training_loss > 0
    with pytest.raises(SystemExit, match="exists: pass a name"):
        recipe.main([str(source), str(tmp_path / "out")])


def test_chats(tmp_path: Path, tokenizer: Any) -> None:
    talks = [
        [
            {"role": "user", "content": f"{document(seed, 9)}?"},
            {"role": "assistant", "content": document(seed + 50, size)},
        ]
        for seed, size in ((0, 10), (1, 15), (2, 500), (0, 10))
    ]
    source = jsonl(tmp_path / "chats.jsonl", [{"messages": talk} for talk in talks])
    assert recipe.main([str(source), str(tmp_path / "clean.jsonl")]) == {"read": 4, "clean": 4, "unlike": 3}
    lines = (tmp_path / "clean.jsonl").read_text(encoding="utf8").splitlines()
    assert [json.loads(line)["messages"] for line in lines] == talks[:3]
    chosen = ["--tokenizer", str(TINY), "--length", "256", "--rows", "separate"]
    counts = recipe.main([str(source), str(tmp_path / "rows.jsonl"), *chosen])
    assert counts["samples"] == 2  # the chat of 500 words is longer than a row
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf8").splitlines()]
    for row, talk in zip(rows, talks[:2], strict=True):
        assert row["length"] == len(row["input_ids"]) == len(row["labels"])
        learnt = tokenizer.decode([label for label in row["labels"] if label != -100], skip_special_tokens=True)
        assert learnt.strip() == talk[1]["content"]


def test_inputs_of_two_kinds_are_refused(tmp_path: Path) -> None:
    chats = jsonl(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}])
    (tmp_path / "a.txt").write_text("text", encoding="utf8")
    with pytest.raises(SystemExit, match="expected 'text' in all, or 'messages'"):
        recipe.main([str(chats), str(tmp_path / "a.txt"), str(tmp_path / "out")])
