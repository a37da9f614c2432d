"""The card of a fine-tune: what training left is in it, what nobody said is not, and a user's own text stays."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import glmlike
from glmlike.cards import About, Card, card_for, check_card, write_card
from glmlike.cards.curve import picture, sparkline
from glmlike.cards.readme import merged
from glmlike.cli import main
from glmlike.data import TINY
from glmlike.errors import ConfigError
from glmlike.push_checks import files_to_push
from glmlike.quantizing import quantize

ABOUT = About(
    license="apache-2.0",
    language=("en",),
    base_model="owner/base",
    datasets=("owner/texts",),
    data="A hundred **letters**.",
    recipe="AdamW, two epochs.",
    hardware="one CPU",
    evaluated_on="letters not trained on",
)
ROWS = [{"input_ids": [5, 6, 7, 8, 9, 10], "labels": [5, 6, 7, 8, 9, 10]}] * 4


def train(model: Any, out: Path, **arguments: Any) -> Trainer:
    settings = {"max_steps": 4, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}
    options = TrainingArguments(
        str(out), use_cpu=True, report_to="none", disable_tqdm=True, seed=1, **{**settings, **arguments}
    )
    trainer = Trainer(model, options, train_dataset=ROWS, eval_dataset=ROWS[:2])
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the Trainer wrote: the embedded model, tuned for four steps, evaluated, its checkpoint inside."""
    out = tmp_path_factory.mktemp("runs") / "letters"
    trainer = train(AutoModelForCausalLM.from_pretrained(TINY, dtype="float32"), out)
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())
    AutoTokenizer.from_pretrained(TINY).save_pretrained(out)
    return out


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "letters"))


def history(folder: Path) -> list[dict[str, Any]]:
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return list(state["log_history"])


def test_the_card_of_what_the_trainer_wrote(trained: Path) -> None:
    card = card_for(trained, ABOUT)
    assert check_card(card.text) == []
    losses = [row["loss"] for row in history(trained) if "loss" in row]
    assert len(losses) == 4
    assert f"{losses[0]:.4f} (step 1) to {losses[-1]:.4f} (step 4)" in card.body
    evaluated = json.loads((trained / "eval_results.json").read_text())
    assert f"| letters not trained on | loss | {evaluated['eval_loss']:.4f} |" in card.body
    assert "runtime" not in card.body
    assert f"| parameters | {glmlike.detect(TINY).spec.num_parameters:,} |" in card.body
    for said in ("# letters", "A hundred **letters**.", "AdamW, two epochs.", "one CPU", "`owner/base`"):
        assert said in card.body
    fields = ModelCard(card.text).data
    assert (fields.license, fields.language, fields.base_model) == ("apache-2.0", ["en"], "owner/base")
    assert fields.get("base_model_relation") == "finetune"
    (result,) = fields.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", evaluated["eval_loss"])
    assert result.dataset_name == "letters not trained on"
    assert str(trained.parent) not in card.text


def test_what_nobody_said_is_asked_for_and_not_made_up(trained: Path) -> None:
    card = card_for(trained)
    assert {sentence.split(":")[0] for sentence in check_card(card.text)} == {"license", "language"}
    assert all(name not in card.body for name in ("## Data", "Hardware", "## Licence"))


def test_the_pickle_beside_it_is_never_opened(folder: Path) -> None:
    for path in folder.rglob("training_args.bin"):
        path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert card_for(folder).body == card_for(folder).body
    assert list(folder.rglob("training_args.bin"))


def test_losses_are_a_picture_or_a_line(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn = card_for(trained)
    assert drawn.pictures["training_loss.svg"].startswith(b"<?xml")
    assert drawn == card_for(trained)
    assert "![Loss by step](training_loss.svg)" in drawn.body
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    text = card_for(trained)
    assert not text.pictures
    losses = [(row["step"], row["loss"]) for row in history(trained) if "loss" in row]
    assert f"training loss  {sparkline(losses)}" in text.body
    assert card_for(trained, plot=False) == text


def test_a_sparkline_is_high_where_the_loss_is() -> None:
    assert sparkline([(1, 2.0), (2, 1.0), (3, 0.0)]) == "█▅▁"
    assert sparkline([(1, 1.0)]) == "▁"
    assert sparkline([]) == ""
    assert sparkline([(1, float("nan")), (2, 3.0), (3, float("inf"))]) == "?▁?"
    assert len(sparkline([(step, 1.0 / step) for step in range(1, 1000)])) == 60


def test_a_picture_of_nothing_finite() -> None:
    pytest.importorskip("matplotlib")
    assert b"<svg" in (picture({"training": [(1, float("nan"))]}) or b"")


def test_results_of_lm_eval(folder: Path) -> None:
    """The form lm-eval 0.4 writes: results_<date>.json in a folder named after the model."""
    row = {
        "alias": "arc_easy",
        "acc,none": 0.25,
        "acc_stderr,none": 0.0125,
        "acc,strict": 0.5,
        "acc_stderr,strict": "N/A",
    }
    report = {
        "results": {"arc_easy": row},
        "configs": {"arc_easy": {"dataset_path": "allenai/ai2_arc"}},
        "n-shot": {"arc_easy": 5},
    }
    place = folder / "owner__model"
    place.mkdir()
    older = {**report, "results": {"arc_easy": {**row, "acc,none": 0.125}}}
    (place / "results_2026-01-01T00-00-00.json").write_text(json.dumps(older))
    (place / "results_2026-01-02T00-00-00.json").write_text(json.dumps(report))
    stretched = {**older, "config": {"rope": "yarn:4"}}  # of a decoder that the folder does not hold
    (place / "results_2026-01-03T00-00-00.json").write_text(json.dumps(stretched))
    (folder / "results_of_mine.json").write_text('{"results": 3}')
    card = card_for(folder, ABOUT)
    assert "| arc_easy | acc | 0.2500 ± 0.0125 | 5 |" in card.body
    assert "| arc_easy | acc (strict) | 0.5000 | 5 |" in card.body
    results = {(each.dataset_name, each.metric_type): each for each in ModelCard(card.text).data.eval_results}
    assert results["arc_easy", "acc"].metric_value == 0.25
    assert results["arc_easy", "acc"].dataset_type == "allenai/ai2_arc"
    assert results["arc_easy", "acc"].metric_args == {"num_fewshot": 5}
    assert check_card(card.text) == []
    [(name, content)] = card.eval_results.items()
    [entry] = parse_eval_result_entries(yaml.safe_load(content))
    assert (name, entry.dataset_id, entry.task_id) == (".eval_results/arc_easy.yaml", "allenai/ai2_arc", "arc_easy")
    assert (entry.value, entry.notes) == (0.25, "acc, 5-shot, lm-eval")
    assert folder / name in write_card(folder, ABOUT)
    assert write_card(folder, ABOUT, force=True)
    assert name in files_to_push(folder)[0]
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match="not of an earlier card"):
        write_card(folder, ABOUT, force=True)


def test_quantized_variants(folder: Path, tmp_path: Path) -> None:
    def evaluated(place: Path, value: float) -> None:
        row = {"word_perplexity,none": value, "acc,none": 0.5}
        report = {"results": {"wikitext": row}, "configs": {"wikitext": {"dataset_path": "wikitext"}}}
        (place / "results_2026-01-01T00-00-00.json").write_text(json.dumps(report))

    small, file = tmp_path / "small", tmp_path / "small.gguf"
    quantize(folder, small, method="glm-int8")
    file.write_bytes(b"GGUF" * 100)
    evaluated(folder, 20.0)
    evaluated(small, 21.0)
    with pytest.raises(SystemExit) as ended:
        main(["card", str(folder), "--force", "--variant", str(small), "--variant", str(file)])
    assert ended.value.code == 0
    body = (folder / "README.md").read_text()
    size = sum(path.stat().st_size for path in small.glob("*.safetensors"))
    own = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert "## Quantized variants" in body
    assert "| variant | method | MB | size | wikitext word_perplexity |" in body
    assert f"| small | glm-int8 | {size / 1e6:.1f} | {size / own:.2f} | 21.0000 (+5.0%) |" in body
    assert "| small.gguf | GGUF | 0.0 | 0.00 | — |" in body
    with pytest.raises(ConfigError, match="no weights there"):
        card_for(folder, About(variants=[tmp_path / "nowhere"]))


def test_where_it_comes_from(folder: Path) -> None:
    record = {
        "version": "1",
        "format": "glmlike",
        "source": {
            "name": "owner/original",
            "revision": "abc",
            "format": "chatglm",
            "files": {"a.safetensors": "f" * 64},
        },
        "merged_adapters": [{"name": "/home/me/letters-lora", "sha256": "0" * 64}],
    }
    (folder / "glmlike.json").write_text(json.dumps(record))
    card = card_for(folder)
    for said in (
        "`owner/original`, revision `abc`",
        f"| `a.safetensors` | `{'f' * 64}` |",
        f"`letters-lora`, sha256 `{'0' * 64}`",
    ):
        assert said in card.body
    assert "/home/me" not in card.text
    assert ModelCard(card.text).data.base_model == "owner/original"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", '{"model_type": "bert"}', "model_type='bert'"),
        ("trainer_state.json", '{"log_history": 3}', "no list of objects"),
        ("trainer_state.json", "[]", "holds list"),
        ("eval_results.json", "no", "not valid JSON"),
    ],
)
def test_damaged_files_are_a_sentence(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_card(folder)
    assert not (folder / "README.md").exists()


def test_a_folder_of_neither(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.json nor adapter_config\.json"):
        card_for(tmp_path)


def test_odd_rows_of_a_history_are_passed_over(folder: Path) -> None:
    rows = [
        {"loss": "high", "step": 1},
        {"loss": 2.0},
        {"loss": True, "step": 2},
        {"loss": float("nan"), "step": 3},
        {},
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows, "global_step": None, "epoch": "x"}))
    assert "| steps | 0 |" in card_for(folder, plot=False).body


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as PEFT saves it, with the README that PEFT leaves."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))
    out = tmp_path_factory.mktemp("adapters") / "letters-lora"
    trainer = train(model, out, eval_strategy="no")
    trainer.save_model()
    assert "[More Information Needed]" in (out / "README.md").read_text(encoding="utf8")
    return out


def test_the_card_of_an_adapter(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "letters-lora"))
    card = card_for(folder)
    assert "| rank | 2 |" in card.body
    assert "`q_proj`, `v_proj`" in card.body
    assert "Adapter of `tiny`" in card.body
    assert str(TINY.parent) not in card.text
    assert any(sentence.startswith("base_model: missing") for sentence in check_card(card.text))
    with pytest.raises(ConfigError, match="is there already"):
        write_card(folder, ABOUT)
    path, *_ = write_card(folder, ABOUT, force=True)
    text = path.read_text(encoding="utf8")
    assert check_card(text) == []
    assert "[More Information Needed]" not in text
    fields = ModelCard(text).data
    assert (fields.library_name, fields.base_model, fields.get("base_model_relation")) == (
        "peft",
        "owner/base",
        "adapter",
    )


def test_the_card_of_a_merged_adapter(adapter: Path, tmp_path: Path) -> None:
    report = glmlike.merge(TINY, adapter, tmp_path / "merged")
    card = card_for(tmp_path / "merged", ABOUT)
    assert f"Merged in: adapter `{adapter.name}`, sha256 `{report.adapters_sha256[0]}`." in card.body
    assert check_card(card.text) == []


def code_of(card: Card) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", card.body, re.DOTALL)
    return str(block)


def test_the_code_of_a_card_runs(trained: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in (trained, adapter, TINY):
        shutil.copytree(source, tmp_path / source.name)
    scope: dict[str, Any] = {}
    exec(code_of(card_for("letters")), scope)
    assert scope["tokenizer"].decode(scope["tokenizer"]("We")["input_ids"]) == "We"
    for path in (tmp_path / "letters").glob("tokenizer*"):
        path.unlink()
    assert "Tokenizer" not in code_of(card_for("letters"))
    exec(code_of(card_for("letters-lora")), scope)
    assert type(scope["model"]).__name__ == "PeftModelForCausalLM"


def test_peft_s_readme_with_a_word_of_the_user_is_the_user_s(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "letters-lora"))
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf8") + "\nI wrote this.\n", encoding="utf8")
    write_card(folder, ABOUT, force=True)
    assert path.read_text(encoding="utf8").endswith("\nI wrote this.\n")


MINE = """---
# my own comment
license: mit
my_field: [1,   2]
---
# Letters

Written by hand.
"""


def test_a_users_readme_is_kept_to_the_letter(folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(MINE, encoding="utf8")
    with pytest.raises(ConfigError, match="is there already"):
        write_card(folder, ABOUT)
    assert path.read_text(encoding="utf8") == MINE
    write_card(folder, ABOUT, force=True)
    text = path.read_text(encoding="utf8")
    assert text.startswith("---\n# my own comment\nlicense: mit\nmy_field: [1,   2]\n")
    assert text.endswith("# Letters\n\nWritten by hand.\n")
    assert (ModelCard(text).data.license, ModelCard(text).data.base_model) == ("mit", "owner/base")
    write_card(folder, ABOUT, force=True)
    assert path.read_text(encoding="utf8") == text
    path.write_text(text.replace("Written by hand.", "Written by both hands."), encoding="utf8")
    (folder / "eval_results.json").write_text('{"eval_loss": 1.5}')
    write_card(folder, ABOUT, force=True)
    again = path.read_text(encoding="utf8")
    assert again.endswith("Written by both hands.\n")
    assert [each.metric_value for each in ModelCard(again).data.eval_results] == [1.5]
    assert "| letters not trained on | loss | 1.5000 |" in again


def test_text_inside_the_marks_is_not_lost(folder: Path) -> None:
    path, *_ = write_card(folder, ABOUT)
    edited = path.read_text(encoding="utf8").replace("AdamW, two epochs.", "AdamW, three epochs.")
    path.write_text(edited, encoding="utf8")
    with pytest.raises(ConfigError, match="was edited"):
        write_card(folder, ABOUT, force=True)
    assert path.read_text(encoding="utf8") == edited
    unmarked = "\n".join(line for line in edited.splitlines() if "glmlike card" not in line) + "\n"
    path.write_text(unmarked, encoding="utf8")
    write_card(folder, ABOUT, force=True)
    assert "AdamW, three epochs." in path.read_text(encoding="utf8")


def test_a_picture_of_the_users_is_not_overwritten(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    (folder / "training_loss.svg").write_text("mine")
    with pytest.raises(ConfigError, match=r"training_loss\.svg: is there"):
        write_card(folder, ABOUT)
    assert not (folder / "README.md").exists()
    assert (folder / "training_loss.svg").read_text() == "mine"
    write_card(folder, ABOUT, plot=False)


@pytest.mark.parametrize("old", ["---\nlicense: [\n---\n# x\n", "# x\n<!-- glmlike card 0: -->\n", "\xff"])
def test_a_readme_that_cannot_be_read_is_left_alone(folder: Path, old: str) -> None:
    path = folder / "README.md"
    path.write_bytes(old.encode("latin-1"))
    with pytest.raises(ConfigError):
        write_card(folder, ABOUT, force=True)
    assert path.read_bytes() == old.encode("latin-1")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["", "---\ntags:\n- mine\n---\n"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=200),
)
def test_any_text_of_a_user_survives(front: str, body: str) -> None:
    assume(front or not body.lstrip().startswith("---"))
    card = Card({"license": "mit"}, "# new\n\nnumbers\n")
    once = merged(front + body, card)
    assert once.endswith(body.lstrip("\r\n")) or not body.strip()
    assert merged(once, card) == once
    newer = merged(once, Card({"license": "mit"}, "# newer\n\nother numbers\n"))
    assert newer.endswith(body.lstrip("\r\n")) or not body.strip()
    assert "numbers\n" in newer


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["card", str(folder), *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    code, out = run("--language", "en", "--language", "zh", "--data", "Letters.", "--base-model", "owner/base")
    assert code == 0
    assert f"wrote {folder / 'README.md'}" in out
    assert "to do: license: missing" in out
    text = (folder / "README.md").read_text(encoding="utf8")
    assert "## Data\n\nLetters." in text
    assert ModelCard(text).data.language == ["en", "zh"]
    code, out = run()
    assert code == 2
    assert out.startswith("Error: ")
    assert "--force" in out
    code, out = run("--force", "--license", "mit", "--language", "en")
    assert (code, "to do" in out) == (0, False)
