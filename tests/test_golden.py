"""Original ChatGLM2, ChatGLM3 and GLM-4 checkpoints through the Auto classes give the original code's outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import glmlike
from glmlike.checkpoint.native import native_shapes

GOLDEN = ("chatglm2", "chatglm3", "glm4")
TOLERANCE = 2e-5


@pytest.fixture(params=GOLDEN)
def folder(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / str(request.param)


@pytest.fixture
def expected(folder: Path) -> dict[str, torch.Tensor]:
    assert json.loads((folder / "cases.json").read_text())["tolerance"] == TOLERANCE
    return load_file(folder / "expected.safetensors")


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def test_logits_and_hidden_states(model: Any, expected: dict[str, torch.Tensor]) -> None:
    assert type(model) is glmlike.GlmLikeForCausalLM
    output = model(expected["input_ids"], labels=expected["labels"], output_hidden_states=True)
    assert_close(output.logits, expected["logits"], atol=TOLERANCE, rtol=0)
    assert_close(output.loss.reshape(1), expected["loss"], atol=TOLERANCE, rtol=0)
    hidden = model.model(expected["input_ids"]).last_hidden_state
    assert_close(hidden, expected["last_hidden_state"], atol=TOLERANCE, rtol=0)
    assert_close(output.hidden_states[-1], expected["last_hidden_state"], atol=TOLERANCE, rtol=0)


def test_gradients(model: Any, expected: dict[str, torch.Tensor]) -> None:
    model(expected["input_ids"], labels=expected["labels"]).loss.backward()
    first = model.model.layers[0]
    qkv = [getattr(first.self_attn, name).weight.grad for name in ("q_proj", "k_proj", "v_proj")]
    assert_close(torch.cat(qkv), expected["grad.qkv0"], atol=TOLERANCE, rtol=0)
    gate_up = [first.mlp.gate_proj.weight.grad, first.mlp.up_proj.weight.grad]
    assert_close(torch.cat(gate_up), expected["grad.h4h0"], atol=TOLERANCE, rtol=0)


def test_greedy_tokens(model: Any, expected: dict[str, torch.Tensor]) -> None:
    prompt = expected["input_ids"][:1]
    count = expected["greedy"].shape[1] - prompt.shape[1]
    found = model.generate(prompt, max_new_tokens=count, do_sample=False, eos_token_id=None)
    assert found.tolist() == expected["greedy"].tolist()


@torch.no_grad()
def test_left_padded_batch(model: Any, expected: dict[str, torch.Tensor]) -> None:
    """With the position ids the original computed, and with those generate derives from the mask: the same logits."""
    mask = expected["padded.attention_mask"]
    derived = (mask.cumsum(-1) - 1).clamp(min=0)
    for position_ids in (expected["padded.position_ids"], derived):
        logits = model(expected["padded.input_ids"], attention_mask=mask, position_ids=position_ids).logits
        assert_close(logits * mask[..., None], expected["padded.logits"], atol=TOLERANCE, rtol=0)


def write_bin(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    """Three shards; each fused matrix and its bias land in different files."""
    names = sorted(tensors)
    bin_file = suffix == "bin"
    stem, index = ("pytorch_model", "pytorch_model.bin.index.json") if bin_file else ("model", "")
    weight_map = {}
    for number in range(3):
        part = {name: tensors[name] for name in names[number::3]}
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        if bin_file:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / (index or "model.safetensors.index.json")).write_text(text)


WRITERS: dict[str, Callable[[Path, dict[str, torch.Tensor]], None]] = {
    "one .bin": write_bin,
    ".bin shards": lambda folder, tensors: write_shards(folder, tensors, "bin"),
    ".safetensors shards": lambda folder, tensors: write_shards(folder, tensors, "safetensors"),
}


@pytest.mark.parametrize("how", WRITERS)
@torch.no_grad()
def test_every_way_the_files_come(
    how: str, folder: Path, expected: dict[str, torch.Tensor], model: Any, tmp_path: Path
) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    WRITERS[how](tmp_path, load_file(folder / "model.safetensors"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(expected["input_ids"]).logits, model(expected["input_ids"]).logits)
    assert glmlike.verify(folder, tmp_path) == len(native_shapes(model.config.spec))


@pytest.mark.parametrize("trust", [None, False, True])
def test_no_file_of_the_folder_is_executed(trust: bool | None, folder: Path, tmp_path: Path) -> None:
    """Code files that raise when they are read; every class the original auto_map names is ours."""
    shutil.copytree(folder, tmp_path / "repo")
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm", "quantization"):
        (tmp_path / "repo" / f"{name}.py").write_text("raise SystemExit('a file of the folder was executed')\n")
    where = tmp_path / "repo"
    config = AutoConfig.from_pretrained(where, trust_remote_code=trust)
    assert isinstance(config, glmlike.GlmLikeConfig)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        assert type(auto.from_pretrained(where, trust_remote_code=trust)) is glmlike.GlmLikeForCausalLM
        assert type(auto.from_config(config, trust_remote_code=trust)) is glmlike.GlmLikeForCausalLM


def test_saving_writes_native_names_and_our_config(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "glmlike"
    assert config["architectures"] == ["GlmLikeForCausalLM"]
    assert not {"auto_map", "padded_vocab_size", "_origin_format", "kv_channels"} & config.keys()
    assert glmlike.detect(tmp_path).format == "glmlike"
