"""Conversion of folders: whole or not at all, nothing lost, bad input named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmForCausalLM

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeError, convert, detect, verify
from glmlike.checkpoint.convert import fingerprint
from glmlike.checkpoint.shards import parse_size
from specs import SPECS

NORM = "transformer.encoder.final_layernorm.weight"
QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "glm4", tmp_path / "source"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_glm4_becomes_transformers_own_class(source: Path, tmp_path: Path) -> None:
    """The converted folder needs nothing of ours, and gives the original's logits."""
    report = convert(source, tmp_path / "glm", to="glm", max_shard_size="50KB")
    model = GlmForCausalLM.from_pretrained(tmp_path / "glm")
    expected = load_file(source / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=2e-5, rtol=0)
    assert (report.source_format, report.target_format) == ("chatglm", "glm")
    assert report.tensors == len(model.state_dict())
    assert report.bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert verify(source, tmp_path / "glm") > 0
    index = json.loads((tmp_path / "glm" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "glm").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 2


def test_the_way_back_is_the_original_file(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "glm", to="glm")
    convert(tmp_path / "glm", tmp_path / "back", to="chatglm")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() - after.keys() <= {"transformer.rotary_pos_emb.inv_freq"}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_companions_travel_and_code_does_not(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["x.X", null]}, "model_max_length": 5}'
    )
    (source / "tokenizer.model").write_bytes(b"\x00vocabulary")
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (source / "LICENSE").write_text("terms")
    (source / "modeling_chatglm.py").write_text("raise SystemExit")
    convert(source, tmp_path / "out", to="glm")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.model"),
        *("generation_config.json", "LICENSE", "glmlike.json"),
    }
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"model_max_length": 5}


def test_token_ids_and_dtype_travel(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="glm")
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after["eos_token_id"] == before["eos_token_id"]
    assert after["pad_token_id"] == before["pad_token_id"]
    assert after["dtype"] == before["torch_dtype"]


def damage_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def damage_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def damage_overlap(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[first]["data_offsets"] = header[second]["data_offsets"]
    header[first]["shape"], header[first]["dtype"] = header[second]["shape"], header[second]["dtype"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def damage_index_escape(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: "../elsewhere.safetensors"}}))


def damage_index_form(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1, 2]}')


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (damage_truncated, r"model.safetensors.*(ends|bytes|truncated)"),
    "a Git LFS pointer": (damage_lfs, "Git LFS pointer, not the file itself. Download the real file"),
    "overlapping tensors": (damage_overlap, "overlaps the tensor before it|leaves a hole before it"),
    "an index that leaves the folder": (damage_index_escape, "'../elsewhere.safetensors', which is not a plain file"),
    "an index of another form": (damage_index_form, "expected an object with a 'weight_map'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights found; expected one of"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: not there"),
    "a missing tensor": (lambda folder: rewrite(folder, lambda t: t.pop(QKV)), QKV),
    "an unknown tensor": (lambda folder: rewrite(folder, lambda t: t.update(extra=torch.ones(2))), "extra"),
    "another shape": (
        lambda folder: rewrite(folder, lambda t: t.update({NORM: torch.ones(63)})),
        rf"'{NORM}' has shape \[63\], but config.json asks for \[64\]",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_sources_are_named_and_nothing_is_written(case: str, source: Path, tmp_path: Path) -> None:
    damage, message = DAMAGES[case]
    damage(source)
    with pytest.raises((CheckpointError, ConfigError), match=message) as raised:
        convert(source, tmp_path / "out", to="glm")
    assert "\n" not in str(raised.value)
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())


def test_destination_must_be_new_and_apart(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    for destination, message in (
        (source, "must not be"),
        (source / "inside", "must not be"),
        (tmp_path, "must not be"),
        (tmp_path / "full", "exists already. Choose a new folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(source, destination, to="glm")
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert convert(source, tmp_path / "empty", to="glm").tensors > 0


def test_a_failure_in_the_middle_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "out", to="glm")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_wrong_arguments(source: Path, tmp_path: Path) -> None:
    with pytest.raises(GlmLikeError, match="to='ggml': expected one of glmlike, .*qwen2"):
        convert(source, tmp_path / "out", to="ggml")  # type: ignore[arg-type]
    for size in ("many", "-1GB", "0", "1e999GB", "5 TBs"):
        with pytest.raises(GlmLikeError, match="expected a size such as 5GB"):
            convert(source, tmp_path / "out", to="glm", max_shard_size=size)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("20KB", 20_000), (7, 7), ("300", 300)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_verify_names_the_first_difference(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="glm")
    name = "model.layers.1.self_attn.v_proj.weight"
    rewrite(tmp_path / "out", lambda tensors: tensors[name][3, 5].add_(1e-6))
    with pytest.raises(CheckpointError, match=f"differ in '{name}'"):
        verify(source, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_ratio": 1}))
    with pytest.raises(CheckpointError, match="different decoders: .*rope_theta"):
        verify(source, tmp_path / "out")


def test_a_stored_copy_of_a_tied_head_must_be_one(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["tied-recipe"]).save_pretrained(tmp_path / "tied")
    embedding = load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path / "tied", lambda t: t.update({"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" in convert(tmp_path / "tied", tmp_path / "out", to="glm").dropped
    rewrite(tmp_path / "tied", lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(CheckpointError, match="hold two different tensors. Set tie_word_embeddings to false"):
        convert(tmp_path / "tied", tmp_path / "out2", to="glm")


def test_special_numbers_keep_their_bits(source: Path, tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]).repeat(16)
    rewrite(source, lambda tensors: tensors.update({NORM: odd}))
    convert(source, tmp_path / "out", to="glm")
    found = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))


def test_bin_files_read_like_safetensors(source: Path, tmp_path: Path) -> None:
    expected = fingerprint(source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    assert fingerprint(source) == expected
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"not a zip file.*nothing in it was executed.*save_file\(torch.load\("):
        fingerprint(source)


def test_inspection_and_conversion_of_safetensors_headers_need_no_torch(source: Path) -> None:
    import subprocess
    import sys

    code = f"import sys, glmlike; glmlike.detect({str(source)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_detection_is_public() -> None:
    assert glmlike.detect is detect
