"""``glmlike push`` over the real protocol; run by tests/test_hub.py."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

import glmlike
from glmlike import GlmLikeForCausalLM
from glmlike.cli import main
from glmlike.data import TINY
from glmlike.errors import PushError
from glmlike.push import push
from hub_server import TOKEN, USER, Hub
from specs import SPECS

CARD = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# A model\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A ChatGLM3 repository's folder: fused matrices, code of its own, a card, and a Trainer's leftovers."""
    folder = tmp_path / "chatglm3"
    shutil.copytree(golden / "chatglm3", folder)
    for name in ("expected.safetensors", "cases.json"):
        (folder / name).unlink()
    (folder / "README.md").write_text(CARD)
    (folder / "modeling_chatglm.py").write_text("raise SystemExit('executed')\n")
    shutil.copy(TINY / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"0")
    return folder


def test_as_it_is(folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{USER}/as-it-is"
    code, out, err = run(capsys, "push", folder, name)
    assert code == 0, err
    assert "pushed: " in out
    plain = {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert hub.paths(name) == plain | {"modeling_chatglm.py"}
    assert hub.repositories[name].history() == ["Push chatglm"]
    model = AutoModelForCausalLM.from_pretrained(name)
    assert type(model) is GlmLikeForCausalLM
    code, out, _ = run(capsys, "push", folder, name)
    assert (code, "nothing had changed: " in out) == (0, True)
    assert hub.repositories[name].history() == ["Push chatglm"]


def test_a_dry_run_asks_the_hub_nothing(folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(hub.requests)
    arguments = ("push", folder, f"{USER}/dry", "--as", "glm", "--dry-run")
    code, out, _ = run(capsys, *arguments, "--json")
    facts = json.loads(out)
    assert (code, facts["found_format"], facts["format"], facts["target"]) == (0, "chatglm", "glm", f"{USER}/dry")
    assert facts["bytes"] == sum(facts["files"].values()) > 500_000
    assert {"model.safetensors", "config.json", "README.md"} <= facts["files"].keys()
    assert (facts["commit"], facts["changed"]) == (None, None)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "model.safetensors: " in out
    assert "pushed" not in out.replace("to be pushed", "")
    assert hub.requests == before
    assert f"{USER}/dry" not in hub.repositories


@torch.no_grad()
def test_converted_to_a_native_class(folder: Path, golden: Path, hub: Hub, mode: str) -> None:
    name = f"{USER}/as-glm"
    facts = push(folder, name, to="glm", private=True)
    assert (facts["changed"], facts["commit"]) == (True, hub.repositories[name].branches["main"])
    assert hub.repositories[name].private
    assert hub.repositories[name].history() == ["Push glm"]
    assert not [path for path in hub.paths(name) if path.endswith(".py")]
    expected = load((golden / "chatglm3" / "expected.safetensors").read_bytes())
    model = GlmForCausalLM.from_pretrained(name)
    torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"], atol=2e-5, rtol=0)
    assert push(folder, name, to="glm")["changed"] is False


@torch.no_grad()
def test_remote_code_and_a_branch(hub: Hub) -> None:
    name = f"{USER}/with-code"
    facts = push(TINY, name, to="remote-code", revision="code")
    assert facts["format"] == "glmlike with modeling_glmlike.py"
    assert hub.paths(name) == set()
    assert hub.paths(name, "code") == set(facts["files"])
    assert "auto_map" in json.loads(hub.read(name, "config.json", "code"))
    model = AutoModelForCausalLM.from_pretrained(name, revision="code")  # ours, not the file's
    assert type(model) is GlmLikeForCausalLM
    assert len(AutoTokenizer.from_pretrained(name, revision="code")) == 4096


def test_an_earlier_set_of_weights_is_replaced(make: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    name = f"{USER}/replaced"
    first, second = (make(SPECS["glm-4-9b"], seed=seed) for seed in (1, 2))
    first.save_pretrained(tmp_path / "whole")
    second.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    push(tmp_path / "whole", name, to="remote-code", tokenizer=False)
    HfApi().upload_file(path_or_fileobj=b"kept", path_in_repo="figure.txt", repo_id=name)
    facts = push(tmp_path / "shards", name, tokenizer=False)
    assert facts["replaced"] == ["model.safetensors", "modeling_glmlike.py"]
    assert "figure.txt" in hub.paths(name)
    loaded = AutoModelForCausalLM.from_pretrained(name).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in second.state_dict().items())
    facts = push(tmp_path / "whole", name, tokenizer=False)
    assert "model.safetensors.index.json" in facts["replaced"]
    loaded = AutoModelForCausalLM.from_pretrained(name).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in first.state_dict().items())


def test_a_push_that_breaks_off(
    make: Callable[..., Any], hub: Hub, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{USER}/breaks"
    for seed in (11, 12):  # numbers that the Hub has not seen yet
        make(SPECS["glm-4-9b"], seed=seed).save_pretrained(tmp_path / str(seed))
    push(tmp_path / "11", name, tokenizer=False)
    before = hub.repositories[name].at("main")
    broken = ("PUT /_lfs/", 403) if mode == "lfs" else ("GET .*/xet-write-token/", 403)
    for fault in (broken, (f"POST /api/models/{name}/commit", 403)):
        hub.faults.append(fault)
        code, out, err = run(capsys, "push", tmp_path / "12", name, "--as", "glm", "--no-tokenizer", "--json")
        hub.faults.clear()
        assert (code, out) == (2, "")
        assert "Error: tester/breaks: the Hub refuses (403). Log in with a token that may write there" in err
        assert hub.repositories[name].at("main") == before
        assert type(AutoModelForCausalLM.from_pretrained(name)) is GlmLikeForCausalLM
    assert push(tmp_path / "12", name, to="glm", tokenizer=False)["changed"] is True
    assert type(AutoModelForCausalLM.from_pretrained(name)) is GlmForCausalLM


def test_a_public_repository_is_not_taken_for_private(folder: Path, hub: Hub) -> None:
    name = f"{USER}/public"
    push(folder, name)
    before = hub.repositories[name].at("main")
    with pytest.raises(PushError, match="is there and public"):
        push(folder, name, to="glm", private=True)
    assert hub.repositories[name].at("main") == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type=None"),
        (lambda folder: save_file({"w": torch.ones(1)}, folder / "model.safetensors"), "chatglm3"),
        (lambda folder: (folder / "README.md").write_text("---\nlicense: [\n---\n"), "front matter cannot be read"),
        (lambda folder: (folder / "notes.txt").symlink_to("/etc/hostname"), "outside of"),
    ],
)
def test_a_folder_that_is_not_fit_creates_nothing(
    spoil: Callable[[Path], Any], message: str, folder: Path, hub: Hub
) -> None:
    spoil(folder)
    before = list(hub.requests)
    with pytest.raises(glmlike.GlmLikeError, match=message):
        push(folder, f"{USER}/unfit")
    assert hub.requests == before


def test_a_tokenizer_that_only_a_plugin_has(folder: Path, hub: Hub) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    with pytest.raises(PushError, match="'ChatGLMTokenizer' is no class of transformers"):
        push(folder, f"{USER}/unfit", to="remote-code", dry_run=True)


@pytest.mark.parametrize("name", ["alone", "a/b/c", "with space/x", "..", ""])
def test_names_that_are_none(name: str, folder: Path) -> None:
    with pytest.raises(PushError, match=r"no name of a repository|expected user/name"):
        push(folder, name)


def test_notes_on_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(folder, f"{USER}/x", dry_run=True)["notes"] == []
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert push(folder, f"{USER}/x", dry_run=True)["notes"] == [
        "README.md: its front matter says no library_name, pipeline_tag"
    ]
    (folder / "README.md").unlink()
    (note,) = push(folder, f"{USER}/x", dry_run=True)["notes"]
    assert "ModelCard.from_template" in note
    call = (
        note.split("`")[3].replace("license=…", "license='mit'").replace("'README.md'", repr(str(folder / "README.md")))
    )
    exec(f"from huggingface_hub import ModelCard, ModelCardData\n{call}", {})  # what it says to do works
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    assert push(folder, f"{USER}/x", dry_run=True)["notes"] == []


def test_an_adapter(hub: Hub, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    push(TINY, f"{USER}/base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    for base, folder in ((str(TINY), tmp_path / "local"), (f"{USER}/base", tmp_path / "named")):
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    with pytest.raises(PushError, match="is a place on this machine"):
        push(tmp_path / "local", f"{USER}/lora")
    with pytest.raises(PushError, match="an adapter, which --as glm cannot convert"):
        push(tmp_path / "named", f"{USER}/lora", to="glm")
    assert f"{USER}/lora" not in hub.repositories
    facts = push(tmp_path / "named", f"{USER}/lora")
    assert facts["notes"][0] == f"an adapter of {USER}/base"
    assert hub.paths(f"{USER}/lora") == {"adapter_config.json", "adapter_model.safetensors"}
    assert isinstance(
        peft.AutoPeftModelForCausalLM.from_pretrained(f"{USER}/lora").get_base_model(), GlmLikeForCausalLM
    )


def test_without_a_right_to_write(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PushError, match=r"nobody/x: the Hub refuses \(403\)"):
        push(folder, "nobody/x")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PushError, match=rf"{USER}/x: the Hub refuses \(401\)"):
        push(folder, f"{USER}/x")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match="Log in|not logged in"):
        push(folder, f"{USER}/x")
    assert f"{USER}/x" not in hub.repositories
    out, err = capfd.readouterr()
    assert "hf_wrong" not in out + err


def test_the_token_is_never_said(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    code, out, err = run(capsys, "push", folder, f"{USER}/quiet", "--as", "glmlike", "--json")
    assert code == 0
    json.loads(out)
    assert len(caplog.records) > 5
    for text in (out, err, caplog.text, *(str(record.args) for record in caplog.records)):
        assert TOKEN not in text
