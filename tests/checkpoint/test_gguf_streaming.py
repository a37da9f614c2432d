"""GGUF files are converted as folders are: planned, bounded, resumed, read back, recorded; damage is refused."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import damage
from test_streaming import interrupted_after, on_linux, peak

from big_files import write_big
from gguf_sources import write_folder
from glmlike.checkpoint import Plan, convert, detect, fingerprint, verification
from glmlike.checkpoint.gguf import detect_gguf, write_gguf
from glmlike.checkpoint.gguf_blocks import require_near
from glmlike.errors import CheckpointError, GlmLikeError
from specs import SPECS

gguf = pytest.importorskip("gguf")
BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", SPECS["llama-3.1"], torch.bfloat16)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [None, "q4_0", "f16"])
def test_the_plan_says_every_step_and_writes_nothing(dtype: str | None, source: Path, tmp_path: Path) -> None:
    plan = convert(source, tmp_path / "model.gguf", to="gguf", dtype=dtype, dry_run=True)
    assert isinstance(plan, Plan)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = convert(source, tmp_path / "model.gguf", to="gguf", dtype=dtype)
    assert (plan.bytes, plan.verify, report.notes) == (report.bytes, report.verify, plan.notes)
    assert plan.disk == (tmp_path / "model.gguf").stat().st_size
    said = {step["name"]: (step["dtype"], list(step["shape"])) for step in json.loads(plan.to_json())["steps"]}
    stored = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert said == {found.name: (found.tensor_type.name, found.shape.tolist()[::-1]) for found in stored}
    step = next(step for step in plan.steps if step.name == "blk.0.attn_v.weight")
    assert (step.sources, step.how) == (
        ("model.layers.0.self_attn.v_proj.weight",),
        {None: "bytes", "q4_0": "quantize", "f16": "cast"}[dtype],
    )
    assert report.verify == ("roundtrip" if dtype is None else "hash")


@pytest.mark.parametrize("dtype", [None, "q8_0"])
def test_an_interrupted_file_is_resumed_and_gives_the_same_bytes(
    dtype: str | None, source: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"to": "gguf", "dtype": dtype}
    convert(source, tmp_path / "whole.gguf", workers=1, **options)
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "whole.gguf"
    with interrupted_after(20, KeyboardInterrupt()) as watch, pytest.raises(KeyboardInterrupt):
        convert(source, target, watch=watch, **options)
    assert [path.name for path in target.parent.iterdir()] == [".whole.gguf.partial"]
    with pytest.raises(CheckpointError, match="an interrupted conversion to"):
        convert(source, target, **options)
    assert convert(source, target, resume=True, max_memory="2GB", **options).resumed > 0
    assert sha256(target) == sha256(tmp_path / "whole.gguf")
    assert [path.name for path in target.parent.iterdir()] == ["whole.gguf"]
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, target, **options)


def test_the_record_is_in_the_file_and_travels(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf", dtype="q8_0")
    found = detect_gguf(tmp_path / "model.gguf")
    assert found.record is not None
    raw = (tmp_path / "model.gguf").read_bytes()
    for name, info in found.checkpoint.tensors.items():
        assert xxhash.xxh3_128_hexdigest(raw[info.start : info.end]) == found.record["tensors"][name]
    assert (found.record["source"]["name"], found.record["source"]["format"]) == ("source", "glmlike")
    assert str(tmp_path).encode() not in raw
    convert(tmp_path / "model.gguf", tmp_path / "back", to="glmlike")
    record = json.loads((tmp_path / "back" / "glmlike.json").read_text())
    assert record["source"]["converted_from"]["name"] == "source"
    assert record["source"]["files"] == {"model.gguf": sha256(tmp_path / "model.gguf")}


def test_what_the_disk_changed_is_seen(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are of what was to be written, blocks are decoded and compared with the source."""
    right = verification.sums_of
    monkeypatch.setattr(verification, "sums_of", lambda *found: right(*found).__class__())
    with pytest.raises(CheckpointError, match="read back is not what was written"):
        write_gguf(source, tmp_path / "model.gguf", dtype="q4_0")
    monkeypatch.undo()
    whole = gguf.quants.quantize

    def wrong(numbers: Any, kind: Any) -> Any:
        return whole(numbers * 1.2, kind)

    monkeypatch.setattr(gguf.quants, "quantize", wrong)
    with pytest.raises(CheckpointError, match=r"weight'.*comes back from q4_0 with an error of"):
        write_gguf(source, tmp_path / "model.gguf", dtype="q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BLOCKS), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-6, 1e-3, 1.0, 300.0]))
def test_every_number_is_within_the_bound_that_is_stated(kind: str, seed: int, scale: float) -> None:
    chance = np.random.default_rng(seed)
    numbers = (chance.standard_normal((4, 64)) * scale + chance.choice([0, 0, 3 * scale])).astype(np.float32)
    numbers[0, :32] = chance.choice([0, scale, -scale], 32)
    number = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(numbers, number)
    require_near(numbers, gguf.quants.dequantize(packed, number), kind)
    if scale >= 1e-3:
        swapped = gguf.quants.dequantize(packed, number)[::-1]
        with pytest.raises(CheckpointError, match="comes back from"):
            require_near(numbers, swapped, kind)


def test_numbers_that_no_scale_holds_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = write_folder(tmp_path / "source", SPECS["llama-3"])
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e9
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.weight'.*Write dtype 'bf16' or 'f32'"):
        write_gguf(source, tmp_path / "model.gguf", dtype="q8_0")


def test_damaged_headers_end_in_our_errors(tmp_path: Path) -> None:
    """No crash, no hang, and tensors of the same names and shapes where it is read."""
    source = write_folder(tmp_path / "source", SPECS["glm-4-0414"].replace(num_hidden_layers=1))
    write_gguf(source, tmp_path / "model.gguf", dtype="q8_0")
    whole = (tmp_path / "model.gguf").read_bytes()
    first = min(info.start for info in detect_gguf(tmp_path / "model.gguf").checkpoint.tensors.values())
    chance, refused = random.Random(0), 0
    for number in range(600):
        bad = damage(whole[:first], chance) + whole[first:]
        (tmp_path / "bad.gguf").write_bytes(bad)
        try:
            fingerprint(tmp_path / "bad.gguf")
        except GlmLikeError as error:
            refused += 1
            assert len(str(error)) < 3000
        except Exception as error:
            raise AssertionError(f"{number}") from error
    assert refused > 200


@on_linux
def test_the_whole_process_stays_below_its_bound(tmp_path: Path) -> None:
    """Files larger than the bound: floats moved, blocks packed, and both read again."""
    source = write_big(tmp_path / "source", layers=60, sparse=True)
    there = peak(source, tmp_path / "model.gguf", "gguf", max_memory="200MB")
    assert there["bytes"] > 200e6
    assert there["peak"] < 200e6
    back = peak(tmp_path / "model.gguf", tmp_path / "back", "glm", max_memory="150MB", verify="hash")
    assert back["peak"] < 150e6
    packed = peak(source, tmp_path / "q8.gguf", "gguf", max_memory="200MB", dtype="q8_0")
    assert packed["peak"] < 200e6
    assert not packed["torch"]
    read = peak(tmp_path / "q8.gguf", tmp_path / "q8", "glm", max_memory="600MB", dtype="float32")
    assert read["bytes"] > 400e6
    assert read["peak"] < 600e6
    assert detect(tmp_path / "q8").spec == detect(source).spec
