"""Models, tokenizers, trainers, adapters on a Hub, over the real protocol; run by tests/test_hub.py."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

import glmlike
from glmlike import GlmLikeForCausalLM
from glmlike.data import TINY
from hub_server import TOKEN, USER, Hub
from specs import SPECS

NAME = f"{USER}/tiny"
IDS = torch.tensor([[5, 6, 90, 7, 93, 11, 12]])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def tiny(tokenizer: Any, hub: Hub) -> Any:
    """The embedded model in float32, pushed with its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    model.push_to_hub(NAME)
    tokenizer.push_to_hub(NAME)
    return model


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    mine, theirs = left.state_dict(), right.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_was_pushed_loads_by_id(tiny: Any, hub: Hub, mode: str) -> None:
    assert hub.paths(NAME) >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    for loader in (AutoModelForCausalLM, GlmLikeForCausalLM):
        model = loader.from_pretrained(NAME)
        assert type(model) is GlmLikeForCausalLM
        assert same(model, tiny)
    assert same(AutoModel.from_pretrained(NAME), tiny.model)
    scored = AutoModelForSequenceClassification.from_pretrained(NAME, num_labels=3)
    assert same(scored.model, tiny.model)
    assert glmlike.GlmLikeConfig.from_pretrained(NAME).spec == tiny.config.spec
    sent = any("/info/lfs/" in request for request in hub.requests), any("xet-write" in one for one in hub.requests)
    assert sent == ((True, False) if mode == "lfs" else (False, True))


def test_the_tokenizer_too(tiny: Any, tokenizer: Any) -> None:
    text = "We the [MASK] of 中文 the United States"
    assert AutoTokenizer.from_pretrained(NAME)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_pipeline_by_name(tiny: Any) -> None:
    generate = transformers.pipeline("text-generation", model=NAME)
    said = generate("We the People", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    inputs = generate.tokenizer("We the People", return_tensors="pt", return_token_type_ids=False)
    expected = tiny.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert said == generate.tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_second_push_makes_no_commit(tiny: Any, tokenizer: Any, hub: Hub) -> None:
    before = hub.repositories[NAME].at("main")
    tiny.push_to_hub(NAME)
    tokenizer.push_to_hub(NAME)
    assert hub.repositories[NAME].at("main") == before


def test_snapshot_download(tiny: Any, hub: Hub, tmp_path: Path) -> None:
    folder = Path(snapshot_download(NAME, local_dir=tmp_path / "snapshot"))
    assert {path.name for path in folder.iterdir() if path.is_file()} >= hub.paths(NAME)
    assert same(AutoModelForCausalLM.from_pretrained(folder), tiny)
    assert glmlike.detect(folder).format == "glmlike"
    cached = Path(snapshot_download(NAME))  # made of links, over Xet to blobs that all repositories share
    assert (cached / "model.safetensors").is_symlink()
    assert glmlike.verify(folder, cached) > 10


def test_branches_tags_and_commits(make: Callable[..., Any], hub: Hub) -> None:
    name, api = f"{USER}/branched", HfApi()
    first, second = (make(SPECS["glm-4-0414"], seed=seed) for seed in (1, 2))
    commit = first.push_to_hub(name)
    api.create_tag(name, tag="v1")
    api.create_branch(name, branch="trial")
    second.push_to_hub(name, revision="trial")
    assert same(AutoModelForCausalLM.from_pretrained(name), first)
    assert same(AutoModelForCausalLM.from_pretrained(name, revision="trial"), second)
    assert {ref.name for ref in api.list_repo_refs(name).branches} == {"main", "trial"}
    second.push_to_hub(name)
    assert same(AutoModelForCausalLM.from_pretrained(name), second)
    for revision in ("v1", commit.oid):
        assert same(AutoModelForCausalLM.from_pretrained(name, revision=revision), first)
    with pytest.raises(OSError, match="nowhere"):
        AutoConfig.from_pretrained(name, revision="nowhere")


def test_several_shards(make: Callable[..., Any], hub: Hub) -> None:
    name, model = f"{USER}/sharded", make(SPECS["qwen2.5"])
    model.push_to_hub(name, max_shard_size="100KB")
    assert len([path for path in hub.paths(name) if path.endswith(".safetensors")]) > 3
    assert "model.safetensors.index.json" in hub.paths(name)
    assert same(AutoModelForCausalLM.from_pretrained(name), model)


@pytest.mark.parametrize("family", ["chatglm2", "chatglm-6b", "glm-10b"])
def test_an_original_layout_is_read_by_id(family: str, make: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    """A repository as its authors pushed it, auto_map included: read on the fly, and no code of it."""
    from specs import FAMILY

    name, model = f"{USER}/original-{family}", make(SPECS[family])
    model.save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "original", to=FAMILY[family])
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=tmp_path / "original")
    with torch.no_grad():
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(name)(IDS).logits, model(IDS).logits)


def test_a_trainer_pushes(tiny: Any, tokenizer: Any, hub: Hub, tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(8, 16)), "labels": list(range(8, 16))}] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=1,
        push_to_hub=True,
        hub_model_id=f"{USER}/trained",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    assert {"README.md", "tokenizer.json", "model.safetensors"} <= hub.paths(f"{USER}/trained")
    loaded = AutoModelForCausalLM.from_pretrained(f"{USER}/trained")
    assert same(loaded, trainer.model)
    assert not same(loaded, tiny)


def test_an_adapter_finds_its_base(tiny: Any, hub: Hub) -> None:
    peft = pytest.importorskip("peft")
    name = f"{USER}/adapter"
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(NAME)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.push_to_hub(name)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.paths(name)
    assert "model.safetensors" not in hub.paths(name)
    with torch.no_grad():
        expected = adapted(IDS).logits
        for loaded in (
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(NAME), name),
            peft.AutoPeftModelForCausalLM.from_pretrained(name),
            AutoModelForCausalLM.from_pretrained(name),
        ):
            inner = getattr(loaded, "base_model", loaded)
            assert isinstance(getattr(inner, "model", inner), (GlmLikeForCausalLM, glmlike.GlmLikeModel))
            torch.testing.assert_close(loaded.eval()(IDS).logits, expected)
    assert not torch.allclose(expected, tiny(IDS).logits)


def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(make: Callable[..., Any], hub: Hub, mode: str) -> None:
    name = f"{USER}/broken"
    first, second = (make(SPECS["llama-3"], seed=seed) for seed in (1, 2))
    first.push_to_hub(name)
    before = hub.repositories[name].at("main")
    broken = ("PUT /_lfs/", 403) if mode == "lfs" else ("GET .*/xet-write-token/", 403)
    for fault in (broken, (f"POST /api/models/{name}/commit", 400)):
        hub.faults.append(fault)
        with pytest.raises((HfHubHTTPError, RuntimeError, OSError)):
            second.push_to_hub(name)
        hub.faults.clear()
        assert hub.repositories[name].at("main") == before
        assert same(AutoModelForCausalLM.from_pretrained(name), first)
    second.push_to_hub(name)
    assert same(AutoModelForCausalLM.from_pretrained(name), second)


def test_a_private_repository(make: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    name, model = f"{USER}/private", make(SPECS["glm-edge"])
    model.push_to_hub(name, private=True)
    assert hub.repositories[name].private
    assert same(AutoModelForCausalLM.from_pretrained(name, token=TOKEN), model)
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained, GlmLikeForCausalLM.from_pretrained):
        with pytest.raises(OSError, match=r"(?s)private.*token"):
            load(name, token=False, cache_dir=tmp_path)  # nothing of it was ever downloaded there


def test_the_token_is_never_said(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    name = f"{USER}/quiet"
    make(SPECS["llama-3"]).push_to_hub(name, private=True)
    AutoModelForCausalLM.from_pretrained(name, token=TOKEN)
    with pytest.raises(OSError, match="nowhere"):
        AutoModelForCausalLM.from_pretrained(f"{USER}/nowhere", token=TOKEN)
    out, err = capfd.readouterr()
    assert len(caplog.records) > 5  # something was said
    for text in (out, err, caplog.text, *(str(record.args) for record in caplog.records)):
        assert TOKEN not in text


@pytest.mark.parametrize("private", [False, True])
def test_examples_push(private: bool, hub: Hub) -> None:
    name = f"{USER}/from-example-{private}"
    script = Path(__file__).parents[2] / "examples" / "push.py"
    command = [sys.executable, str(script), name, *["--private"] * private]
    for _ in range(2):  # the second push finds everything there
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.endswith("GlmLikeForCausalLM\n")
        assert TOKEN not in done.stdout + done.stderr
    assert hub.repositories[name].private is private
    assert hub.repositories[name].history() == ["Tokenizer", "Model in glmlike's native layout"]
    assert same(AutoModelForCausalLM.from_pretrained(name), AutoModelForCausalLM.from_pretrained(TINY))
