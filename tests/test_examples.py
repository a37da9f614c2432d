"""Every script of examples/ runs, on small inputs, and has its effect."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from glmlike.data import CONSTITUTION, TINY

ROOT = Path(__file__).parents[1]
# examples/push.py is run in tests/hub_cases, with a Hub to push to; prepare_data.py in test_prepare_data.py.
COVERED = {"examples/train_tiny.py", "examples/pipeline.py", "examples/classify.py", "examples/push.py"}
COVERED |= {
    "examples/held_out_blanks.py",
    "examples/prune_and_recover.py",
    "examples/needle.py",
    "examples/prepare_data.py",
}

# What each script measures on held-out data before and after, and what it must have come to: at least or at most.
EFFECTS = {
    "sft": ([], "right", 0.9, 1),
    "sft, packed": (["--packing", "--epochs", "15"], "right", 0.9, 1),
    "dpo": ([], "preference accuracy", 0.9, 1),
    "reward": ([], "accuracy", 0.9, 1),
    "grpo": ([], "reward", 0.6, 1),
    "distill": ([], "divergence", 0.18, -1),
    "pretrain": ([], "bits a byte", 2.0, -1),
    "lora": (["--epochs", "1"], "loss", 5.8, -1),
    "lora, four bits": (["--epochs", "0.25", "--four-bit"], "loss", 6.2, -1),
    "blanks": ([], "perplexity", 20.0, -1),
}
NEEDS = {"lora": ("trl", "peft"), "lora, four bits": ("trl", "peft", "bitsandbytes"), "pretrain": (), "blanks": ()}
MINUTES = {"sft, packed", "lora, four bits", "grpo", "distill", "blanks"}
COVERED |= {f"examples/{name}.py" for name in EFFECTS if "," not in name}


def script(path: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_script_is_run_here() -> None:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")}
    assert found == COVERED


def test_the_table_of_effects_has_every_script_that_trains() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        jobs = script("benchmarks/examples.py").JOBS
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    trained = {case.partition(",")[0] for case in EFFECTS} | {"classify", "prune_and_recover"}
    assert {job.script for job in jobs.values()} == {f"{name}.py" for name in trained}
    rows = json.loads((ROOT / "benchmarks" / "results" / "examples.json").read_text(encoding="utf8"))["rows"]
    assert [row["script of examples/"] for row in rows] == [f"`{job.call}`" for job in jobs.values()]


def test_pipeline() -> None:
    assert (
        script("examples/pipeline.py")
        .main(["In the beginning God", "--tokens", "5"])
        .startswith("In the beginning God")
    )


def test_train_tiny_on_ones_own_text(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path / "out"), "--text", str(CONSTITUTION), "--steps", "4", "--phases", "1"]
    summary = script("examples/train_tiny.py").main([*arguments, "--vocab-size", "400"])
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == summary
    assert [phase["steps"] for phase in summary["phases"]] == [4]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer) == 400
    assert tokenizer.decode(tokenizer("We the People")["input_ids"]) == "We the People"
    second = ["--start", str(tmp_path / "out"), "--output", str(tmp_path / "second"), *arguments[2:4]]
    summary = script("examples/train_tiny.py").main([*second, "--steps", "2", "--phases", "2"])
    assert [phase["steps"] for phase in summary["phases"]] == [4, 2]
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        blanks = script("examples/held_out_blanks.py").main([str(tmp_path / "second"), "--text", str(CONSTITUTION)])
    finally:
        sys.path.remove(str(ROOT / "examples"))
    assert json.loads((tmp_path / "second" / "training.json").read_text()) == {**summary, "blanks": blanks}
    assert blanks["English"]["blanks"] > 10
    assert blanks["English"]["n-gram"] > 0


def test_heads_of_a_new_tiny_model_look_at_neighbours() -> None:
    """Where each head of the first layers looks most, from the middle of a context and from inside a piece."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = script("examples/train_tiny.py").build_model(tokenizer).eval()
    model.set_attn_implementation("eager")
    context = torch.arange(300, 310)
    context[5] = model.config.mask_token_id
    ids = torch.cat((context, torch.tensor([model.config.sop_token_id, 400, 401])))[None]
    places = torch.tensor([[*range(10), 5, 5, 5], [*[0] * 10, 1, 2, 3]])[None]
    with torch.no_grad():
        attentions = model(ids, position_ids=places, output_attentions=True).attentions
    for layer in attentions[:2]:
        assert layer[0, :5, 3].argmax(-1).tolist() == [2, 4, 3, 1, 5]
        before, after = layer[0, :2, 12, [4, 6]]  # beside the blank, from its third token
        assert before[0] > before[1]
        assert after[0] < after[1]
        assert layer[0, 2, 11].argmax(-1) == 10  # the token of the piece before


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.exhaustive] if case in MINUTES else []) for case in EFFECTS]
)
def test_training_has_its_effect_on_held_out_data(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the script is, on the embedded model and its own data, with a result that loads."""
    for package in ("datasets", "accelerate", *NEEDS.get(case, ("trl",))):
        pytest.importorskip(package, reason=f"examples need it: pip install 'glmlike[train]' (without {package})")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments, what, bound, sign = EFFECTS[case]
    measured = script(f"examples/{case.partition(',')[0]}.py").main(["--output", str(tmp_path / "out"), *arguments])
    before, after = measured[f"{what} before"], measured[f"{what} after"]
    assert sign * after > sign * before
    assert sign * after >= sign * bound
    if case.startswith("lora"):
        peft = pytest.importorskip("peft")
        reloaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    elif case == "reward":
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    else:
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Moses")["input_ids"]
    assert reloaded.config.model_type == "glmlike"


@pytest.mark.slow
def test_ones_own_data_and_the_reward_model_of_the_other_script(tmp_path: Path) -> None:
    for package in ("datasets", "trl"):
        pytest.importorskip(package)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {word}"}],
            "chosen": [{"role": "assistant", "content": word}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for word in ("light", "day", "night", "earth", "water", "heaven", "grass", "seed", "tree", "fruit")
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", str(data), "--output"]
    judge = str(tmp_path / "judge")
    assert 0 <= script("examples/reward.py").main([*options, judge, "--epochs", "1"])["accuracy after"] <= 1
    measured = script("examples/grpo.py").main(
        [*options, str(tmp_path / "rewarded"), "--reward-model", judge, "--steps", "1", "--tokens", "4"]
    )
    assert measured["reward before"] != measured["reward after"]


def test_classify_learns_and_its_model_reloads(tmp_path: Path) -> None:
    assert script("examples/classify.py").main(["--output", str(tmp_path / "classifier")]) > 0.75
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    sentences = ["We the People of the United States", "States the of United the People We"]
    logits = model(**tokenizer(sentences, return_tensors="pt", padding=True)).logits
    assert [model.config.id2label[int(index)] for index in logits.argmax(-1)] == ["in order", "shuffled"]


def test_a_pruned_model_recovers_by_distillation(tmp_path: Path) -> None:
    arguments = ["--layers", "5", "--width", "560", "--length", "96", "--steps", "12", "--rate", "5e-4"]
    measured = script("examples/prune_and_recover.py").main([*arguments, "--output", str(tmp_path / "small")])
    assert measured["parameters after"] < measured["parameters"]
    assert measured["perplexity"] < measured["perplexity pruned"]
    assert measured["perplexity recovered"] < (measured["perplexity"] + measured["perplexity pruned"]) / 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (5, 576)
    assert model.num_parameters() == measured["parameters after"]


def test_recovery_goes_on_where_it_was_saved() -> None:
    example = script("examples/prune_and_recover.py")
    teacher = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    rows = torch.randint(300, 400, (12, 16), generator=torch.Generator().manual_seed(0))
    options = {"first": 3, "steps": 4, "batch": 3, "rate": 1e-3, "bfloat16": False}

    def begun() -> Any:
        student = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        example.prune_depth(student, [rows[:4]], keep=5)
        return example.Recovery(student, teacher, rows, **options)

    whole, part, rest = begun(), begun(), begun()
    part.batches = whole.batches
    expected = [whole.step() for _ in range(4)]
    losses = [part.step(), part.step()]
    rest.load_state_dict(part.state_dict())
    assert [*losses, rest.step(), rest.step()] == expected


def test_needles_are_where_they_are_said_to_be() -> None:
    example = script("examples/needle.py")
    torch.manual_seed(0)
    rows, places = example.haystacks(20, 40, 3)
    for row, place in zip(rows, places, strict=True):
        asked = row[-6:].view(3, 2)
        assert torch.equal(row[place : place + 2], asked[0])
        for key, value in asked:
            (at,) = (row[:-6] == key).nonzero()[:, 0].tolist()
            assert row[at + 1] == value
    results = example.main(["--trained", "64", "--steps", "2", "--lengths", "64", "128", "--count", "8"])
    assert set(results) == {"none", "linear", "dynamic", "yarn", "llama3"}
    assert all(results[kind][64] == results["none"][64] for kind in results)
