"""Evaluation: our tasks are sound, infilling decoders are scored as they were trained, results reach the card."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import glmlike
from blanks import EOP, byte_level, infilling_model
from glmlike import GlmLikeForCausalLM
from glmlike.cli import main
from glmlike.data import TINY
from glmlike.errors import ConfigError, GlmLikeError
from glmlike.evaluation import FOR_ALL, FOR_BLANKS, TASKS, evaluate, scores
from glmlike.long_context import longest_text, stretched
from specs import SPECS

SENTENCE = "In the beginning God created the [MASK] and the earth."


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / name).read_text(encoding="utf8").splitlines()]


def test_every_cloze_has_one_blank_four_words_and_its_answer_in_any_place() -> None:
    for language in ("en", "zh"):
        found = [row for row in rows("cloze.jsonl") if row["language"] == language]
        assert len(found) == 32
        for row in found:
            assert row["text"].count("[MASK]") == 1
            assert len(set(row["choices"])) == 4
            assert all(word.strip() == word and word for word in row["choices"])
        assert set(Counter(row["answer"] for row in found).values()) == {8}
    assert len({row["text"] for row in rows("cloze.jsonl") + rows("texts.jsonl")}) == 64 + 24


def test_every_task_has_a_file() -> None:
    assert {path.stem for path in TASKS.glob("glmlike_*.yaml")} == {*FOR_ALL, *FOR_BLANKS}


def test_without_lm_eval_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmlike.evaluation.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs lm-eval: run pip install 'glmlike\[eval\]'"):
        evaluate(TINY)


@pytest.fixture(scope="module")
def lm() -> Any:
    pytest.importorskip("lm_eval")
    from glmlike.evaluation.blanks import BlankFillingLM

    return BlankFillingLM(pretrained=str(TINY), device="cpu", dtype="float32", batch_size=3)


def ask(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_a_word_has_the_likelihood_that_fill_gives_it(lm: Any) -> None:
    from glmlike.infilling import fill

    texts = (
        SENTENCE,
        "And the LORD said unto [MASK], Speak unto the children of Israel.",
        "床前明月光，疑是地上[MASK]。",
    )
    filled = [result.spans[0] for result in fill(lm.model, lm.tokenizer, texts, do_sample=False)]
    words = [span.text.strip() for span in filled]
    asked = [ask(text, word) for text, word in zip(texts, words, strict=True)]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([span.log_probability for span in filled], abs=1e-4)
    assert all(greedy for _, greedy in found)
    (other,) = lm.loglikelihood([ask(SENTENCE, "nothing")], disable_tqdm=True)
    assert other[0] < found[0][0]
    assert lm.generate_until([ask(text, {"until": []}) for text in texts], disable_tqdm=True) == words


def by_hand(lm: Any, ids: list[int], count: int) -> float:
    """log p of the last ``count`` ids, from the model's own logits of one row."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids[:-1]])).logits[0, -count:].float().log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids[-count:])[:, None]).sum())


def test_a_prompt_and_a_text_are_read_behind_a_gmask(lm: Any) -> None:
    config, encode = lm.model.config, lm._ids
    prompt, reply = encode("And God said,"), encode(" Let there be light")
    (found,) = lm.loglikelihood([ask("And God said,", " Let there be light")], disable_tqdm=True)
    row = [*prompt, config.gmask_token_id, config.sop_token_id, *reply]
    assert found[0] == pytest.approx(by_hand(lm, row, len(reply)), abs=1e-4)
    texts = [
        "And God saw the light, that it was good.",
        "春眠不觉晓",
        "And the evening and the morning were the first day.",
    ]
    expected = [by_hand(lm, [config.gmask_token_id, config.sop_token_id, *encode(t)], len(encode(t))) for t in texts]
    assert lm.loglikelihood_rolling([ask(t) for t in texts], disable_tqdm=True) == pytest.approx(expected, abs=1e-4)
    from_nothing = lm.loglikelihood([ask("", texts[0])], disable_tqdm=True)
    assert from_nothing[0][0] == pytest.approx(expected[0], abs=1e-4)


def test_a_text_longer_than_the_positions_is_read_in_windows(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "_max_length", 12)
    config, ids = lm.model.config, lm._ids("And God saw the light, that it was good: and God divided the light.")
    start = [config.gmask_token_id, config.sop_token_id]
    assert len(ids) > 10
    expected = sum(by_hand(lm, [*start, *ids[at : at + 10]], len(ids[at : at + 10])) for at in range(0, len(ids), 10))
    text = "And God saw the light, that it was good: and God divided the light."
    assert lm.loglikelihood_rolling([ask(text)], disable_tqdm=True) == pytest.approx([expected], abs=1e-4)


INFILLING = [name for name, spec in SPECS.items() if spec.attention_mask == "prefix"]


@pytest.mark.parametrize("name", INFILLING)
@pytest.mark.parametrize("around", [None, "[CLS] $A <eop>"])
def test_rows_of_a_batch_score_as_they_do_alone(name: str, around: str | None, make: Callable[..., Any]) -> None:
    """For every decoder that fills blanks: right padding of other lengths changes nothing."""
    pytest.importorskip("lm_eval")
    from glmlike.evaluation.blanks import BlankFillingLM

    model, tokenizer = infilling_model(make, name), byte_level(around)
    lm = BlankFillingLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    asked = [
        ("one [MASK] two three", "to"),
        ("[MASK]", "be or not"),
        ("a b c d e f", " g"),
        ("", "nothing"),
        ("x", "y"),
    ]
    found = lm.loglikelihood([ask(*pair) for pair in asked], disable_tqdm=True)
    pieces = [lm.piece_of(*pair) for pair in asked]
    assert [piece[-1] == EOP for _, piece in pieces] == [True, True, False, False, False]
    expected = [by_hand(lm, [*context, *piece], len(piece)) for context, piece in pieces]
    assert [score for score, _ in found] == pytest.approx(expected, abs=1e-3)


def test_two_blanks_are_filled_and_not_scored(lm: Any) -> None:
    two = "In the [MASK] God created the [MASK] and the earth."
    assert len(lm.generate_until([ask(two, {"until": []})], disable_tqdm=True)[0].split("\n")) == 2
    with pytest.raises(GlmLikeError, match="2 blanks"):
        lm.loglikelihood([ask(two, "heaven")], disable_tqdm=True)


@pytest.mark.slow
def test_the_command_and_the_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    for arguments in (
        ("eval", folder, "--tasks", "glmlike_infill_en,glmlike_bits_per_byte_zh", "--limit", "8", "--json"),
        ("card", folder, "--license", "apache-2.0", "--language", "en"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert not ended.value.code
        if arguments[0] == "eval":
            report = json.loads(capsys.readouterr().out)
    values = {(row["task"], row["metric"]): row["value"] for row in report["scores"]}
    assert values["glmlike_infill_en", "acc"] > 0.25
    assert 1 < values["glmlike_bits_per_byte_zh", "bits_per_byte"] < 8
    assert Path(report["file"]).parent == folder / "eval"
    written = Path(report["file"]).read_text()
    assert json.loads(written)["config"]["model"] == "model"
    assert str(tmp_path) not in written
    assert str(TASKS) not in written
    card = (folder / "README.md").read_text()
    for (task, metric), value in values.items():
        assert f"| {task} | {metric} | {value:.4f}" in card
    assert str(tmp_path) not in card


def test_a_decoder_that_only_looks_back_is_asked_by_lm_evals_own_model(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    make(SPECS["glm-4-9b"].replace(vocab_size=512)).save_pretrained(tmp_path)
    tokenizer = byte_level()
    tokenizer.eos_token = "<eop>"
    tokenizer.save_pretrained(tmp_path)
    results = evaluate(tmp_path, ["glmlike_cloze_en"], limit=2, device="cpu")
    assert [(task, metric) for task, metric, *_ in scores(results)] == [("glmlike_cloze_en", "acc")]
    with pytest.raises(GlmLikeError, match="fills no blanks. Its tasks are glmlike_bits_per_byte_en"):
        evaluate(tmp_path, ["glmlike_infill_en"])


def stretchable(make: Callable[..., Any], folder: Path) -> None:
    """A decoder trained on 48 tokens, with a tokenizer of bytes: our texts are longer."""
    make(SPECS["chatglm2"].replace(vocab_size=512, max_position_embeddings=48)).save_pretrained(folder)
    tokenizer = byte_level()
    tokenizer.eos_token = "<eop>"
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("target", ["glmlike", "chatglm", "glm"])
def test_what_lm_eval_is_told_to_load_has_its_positions_stretched(
    target: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    """Called as lm-eval's model calls it, which needs no lm-eval."""
    from glmlike.evaluation import _stretched

    stretchable(make, tmp_path / "native")
    folder = tmp_path / "native"
    if target != "glmlike":
        folder = tmp_path / target
        glmlike.convert(tmp_path / "native", folder, to=target)
    told = _stretched(str(folder), "dynamic:4", {"dtype": "float32"})
    assert told.pop("max_length") == 192
    options = {"revision": "main", "dtype": "auto", "trust_remote_code": False, "gguf_file": None, "subfolder": ""}
    model = AutoModelForCausalLM.from_pretrained(folder, **options, quantization_config=None, **told)
    assert type(model) is GlmLikeForCausalLM
    assert model.config.rope_parameters["rope_type"] == model.model.rotary_emb.rope_type == "dynamic"
    plain = GlmLikeForCausalLM.from_pretrained(tmp_path / "native").state_dict()
    assert all(plain[name].equal(value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rope", ["yarn:4", "dynamic:8"])
def test_a_stretched_decoder_is_the_one_that_is_scored(
    rope: str, make: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    stretchable(make, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "saved")
    config = stretched(tmp_path / "plain", rope)
    GlmLikeForCausalLM.from_pretrained(tmp_path / "plain", config=config).save_pretrained(tmp_path / "saved")
    task, limit = "glmlike_bits_per_byte_en", 2

    def scored(folder: str, **options: Any) -> list[Any]:
        return scores(evaluate(tmp_path / folder, [task], limit=limit, device="cpu", **options))

    plain, long = scored("plain"), {"max_length": longest_text(config)}
    expected = scored("saved", model_args=long)
    arguments = ("eval", tmp_path / "plain", "--tasks", task, "--limit", limit, "--rope", rope, "--device", "cpu")
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in report["scores"]] == [value for _, _, value, _ in expected]
    assert [value for _, _, value, _ in expected] != [value for _, _, value, _ in plain]
    assert json.loads(Path(report["file"]).read_text())["config"]["rope"] == rope


def test_a_decoder_that_cannot_be_stretched_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmlike.evaluation.find_spec", lambda name: True)  # it is refused before lm-eval is needed
    with pytest.raises(ConfigError, match="two-dimensional"):
        evaluate(TINY, rope="yarn:2")
    with pytest.raises(ConfigError, match="--rope yarn: expected KIND:FACTOR"):
        evaluate(TINY, rope="yarn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "nowhere"), "Error: nowhere: no model that can be loaded"),
        (("eval", str(TINY), "--out", "x", "--batch-size", "many"), "--batch-size many: expected a number of rows"),
        (("eval", str(TINY), "--out", "x", "--model-args", "dtype"), "--model-args dtype: expected name=value"),
        (("eval", str(TINY), "--out", "a-file/x"), "a-file/x: cannot be written. Pass --out FOLDER"),
        pytest.param(
            ("eval", str(TINY), "--out", "x", "--tasks", "nonsense"),
            "--tasks nonsense: no such task. Ours are glmlike_bits",
            marks=pytest.mark.slow,  # lm-eval reads all its own task files
        ),
    ],
)
def test_mistakes_are_sentences(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]
