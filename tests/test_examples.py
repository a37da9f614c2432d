"""Every script of examples/ runs, on small inputs, and has its effect."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from glmlike.data import CONSTITUTION, TINY

ROOT = Path(__file__).parents[1]
# examples/push.py is run in tests/hub_cases, with a Hub to push to.
COVERED = {"examples/train_tiny.py", "examples/pipeline.py", "examples/classify.py", "examples/push.py"}
# examples/prepare_data.py is run in test_prepare_data.py.
COVERED |= {"examples/held_out_blanks.py", "examples/prepare_data.py"}


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


def test_classify_learns_and_its_model_reloads(tmp_path: Path) -> None:
    assert script("examples/classify.py").main(["--output", str(tmp_path / "classifier")]) > 0.75
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    sentences = ["We the People of the United States", "States the of United the People We"]
    logits = model(**tokenizer(sentences, return_tensors="pt", padding=True)).logits
    assert [model.config.id2label[int(index)] for index in logits.argmax(-1)] == ["in order", "shuffled"]
