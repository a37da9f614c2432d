"""``glmlike quantize``: byte for byte what transformers would save, a matrix at a time; plans, records, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import glmlike
from gguf_sources import save_tokenizer, train_bytes, write_folder
from glmlike import CheckpointError, ConfigError, GlmIntConfig, GlmLikeError, GlmLikeForCausalLM, integers
from glmlike.checkpoint.spooled import spooled_shards
from glmlike.cli import main
from glmlike.data import TINY
from glmlike.quantizing import METHODS, methods, quantize
from released_integers import quantize as released_quantizer
from specs import FAMILY, SPECS
from test_quantized_loading import FUSED, outputs, wide

FOLDERS = [name for name, method in METHODS.items() if method.engine != "gguf"]


def need(method: str) -> str:
    """The method, where its packages are installed."""
    for package in methods.ENGINES[METHODS[method].engine]:
        pytest.importorskip(package)
    return method


@pytest.fixture(scope="module")
def source(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``source(name)``: a decoder of a spec in the format its checkpoints are published in."""
    place = tmp_path_factory.mktemp("sources")

    def folder_of(name: str) -> Path:
        if not (place / name).exists():
            make(wide(name)).save_pretrained(place / f"{name}-native")
            if FAMILY[name] == "glmlike":
                return place / f"{name}-native"
            glmlike.convert(place / f"{name}-native", place / name, to=FAMILY[name])
        return place / name

    return folder_of


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same_bytes(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        and torch.equal(tensor.reshape(-1).view(torch.uint8), right[name].reshape(-1).view(torch.uint8))
        for name, tensor in left.items()
    )


@pytest.mark.parametrize("method", [name for name in FOLDERS if METHODS[name].engine != "glmlike"])
@pytest.mark.parametrize("name", ["chatglm2", "glm-10b"])
def test_the_files_are_those_of_loading_quantized_and_saving(
    name: str, method: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = source(name)
    report = quantize(folder, tmp_path / "ours", method=need(method), max_shard_size="200KB")
    assert METHODS[method].config is not None
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=METHODS[method].config())
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert same_bytes(ours, theirs)
    said = [
        json.loads((tmp_path / which / "config.json").read_text())["quantization_config"]
        for which in ("ours", "theirs")
    ]
    assert said[0] == said[1]
    assert report.bytes_after == sum(tensor.nbytes for tensor in ours.values())
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")), outputs(model))
    if METHODS[method].engine == "bitsandbytes":
        AutoModel.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "glm-int8") for name in SPECS), *((name, "nf4") for name in FUSED), ("glm-130b", "torchao-int8-wo")],
)
def test_every_spec_quantizes_and_loads(name: str, method: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source(name)
    plan = quantize(folder, tmp_path / "dst", method=need(method), dry_run=True)
    assert not (tmp_path / "dst").exists()
    report = quantize(folder, tmp_path / "dst", method=method)
    assert (report.quantized, report.kept) == (plan.quantized, plan.kept)
    assert abs(report.bytes_after - plan.bytes_after) <= 0.005 * report.bytes_after
    expected = outputs(GlmLikeForCausalLM.from_pretrained(folder))
    found = outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "dst"))
    worst = 0.8 if method == "nf4" else 0.15  # random matrices: each number matters as much as any other
    assert 0 < (found - expected).norm() <= worst * expected.norm()


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].engine == "gguf"])
def test_gguf_files_are_those_of_the_exporter(method: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    from glmlike.checkpoint.gguf import write_gguf

    need(method)
    spec = SPECS["llama-3"].replace(vocab_size=420, hidden_size=128, intermediate_size=192)
    folder = save_tokenizer(write_folder(tmp_path / "src", spec), train_bytes("llama-bpe"))
    plan = quantize(folder, tmp_path / "a.gguf", method=method, dry_run=True)
    assert not (tmp_path / "a.gguf").exists()
    report = quantize(folder, tmp_path / "a.gguf", method=method)
    write_gguf(folder, tmp_path / "b.gguf", dtype=method.removeprefix("gguf-"))  # type: ignore[arg-type]
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert plan.bytes_after == report.bytes_after < report.bytes_before / 3
    back = glmlike.detect(tmp_path / "a.gguf").checkpoint.tensors.values()
    assert sum(info.dtype == method.removeprefix("gguf-").upper() for info in back) == report.quantized > 14


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_integers_are_those_of_the_releases_quantizer(bits: int, data: st.DataObject) -> None:
    """Against a restatement of it; rows of zeros are zeros, and nothing leaves the integers' range."""
    rows, columns = data.draw(st.integers(1, 5)), 2 * data.draw(st.integers(1, 9))
    seed, exponent = data.draw(st.integers(0, 10_000)), data.draw(st.integers(-2, 4))
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    found, scale = integers.quantize(matrix, bits)
    expected, scales, meant = released_quantizer(matrix, bits)
    assert torch.equal(scale, scales)
    assert torch.equal(found, expected)
    assert_close(integers.dequantize(found, scale, bits, torch.float32), meant)
    zeros, scale = integers.quantize(torch.zeros(2, 4), bits)
    assert not zeros.any()
    assert not scale.any()
    tiny, scale = integers.quantize(torch.tensor([[1e-7, -1e-7]]), bits)  # a scale that float16 rounds coarsely
    assert integers.dequantize(tiny, scale, bits, torch.float32).abs().max() <= 2e-5


def test_integers_load_as_integers_and_as_floats(source: Callable[[str], Path], tmp_path: Path) -> None:
    for bits in (4, 8):
        quantize(source("chatglm-6b"), tmp_path / f"int{bits}", method=f"glm-int{bits}")
        kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"int{bits}")
        assert f"bits={bits}" in repr(kept.model.layers[0].mlp.up_proj)
        floats = AutoModelForCausalLM.from_pretrained(tmp_path / f"int{bits}", quantization_config=GlmIntConfig())
        assert_close(outputs(kept), outputs(floats), atol=1e-4, rtol=1e-4)
        glmlike.convert(tmp_path / f"int{bits}", tmp_path / f"back{bits}", to="chatglm-6b")
        back = GlmLikeForCausalLM.from_pretrained(tmp_path / f"back{bits}")
        assert torch.equal(outputs(back), outputs(floats))


def test_companions_and_a_record_travel(tmp_path: Path) -> None:
    report = quantize(TINY, tmp_path / "dst", method="glm-int8", skip=["down_proj"], dtype="bfloat16")
    record = json.loads((tmp_path / "dst" / "glmlike.json").read_text())
    assert record["quantization"]["method"] == "glm-int8"
    assert record["quantization"]["kept"] == list(report.kept)
    assert record["source"]["format"] == report.source_format
    names = {name for file in record["tensors"].values() for name in file}
    assert names == tensors_of(tmp_path / "dst").keys()
    floats = {tensor.dtype for name, tensor in tensors_of(tmp_path / "dst").items() if "scale" not in name}
    assert floats == {torch.bfloat16, torch.int8}
    assert any("down_proj" in name for name in report.kept)
    text = "A text about heaven."
    assert AutoTokenizer.from_pretrained(tmp_path / "dst")(text) == AutoTokenizer.from_pretrained(TINY)(text)
    assert (tmp_path / "dst" / "generation_config.json").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dst").dtype == torch.bfloat16


def test_skipped_modules_are_added_to_the_usual_ones(source: Callable[[str], Path], tmp_path: Path) -> None:
    report = quantize(source("chatglm2"), tmp_path / "dst", method=need("int8"), skip=["layers.0.mlp", "o_proj"])
    assert "lm_head.weight" in report.kept
    assert report.quantized == 14 - 3 - 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dst")
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.model.layers[1].self_attn.o_proj) is torch.nn.Linear
    assert type(model.model.layers[1].mlp.up_proj) is not torch.nn.Linear


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"method": "int3"}, ConfigError, "expected one of nf4"),
        ({"method": "glm-int8", "dtype": "int8"}, ConfigError, "expected one of float32"),
        ({"method": "gguf-q8_0", "skip": ["o_proj"]}, ConfigError, "llama.cpp's own rule"),
        ({"method": "gguf-q8_0"}, CheckpointError, "ends in .gguf"),
        ({"method": "glm-int8", "max_shard_size": "much"}, GlmLikeError, "expected a size"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    arguments: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        quantize(TINY, tmp_path / "dst", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_is_quantized_or_there_already_is_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    quantize(source("chatglm2"), tmp_path / "nf4", method=need("nf4"))
    for run in (
        lambda: quantize(tmp_path / "nf4", tmp_path / "twice", method="glm-int8"),
        lambda: glmlike.convert(tmp_path / "nf4", tmp_path / "twice", to="chatglm"),
    ):
        with pytest.raises(ConfigError, match="quantized by bitsandbytes: its files hold that library's tensors"):
            run()
    with pytest.raises(CheckpointError, match="exists already"):
        quantize(source("chatglm2"), tmp_path / "nf4", method="nf4")
    with pytest.raises(CheckpointError, match="must not be"):
        quantize(source("chatglm2"), source("chatglm2") / "inside", method="nf4")
    assert [path.name for path in tmp_path.iterdir()] == ["nf4"]


def test_a_failure_leaves_nothing(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["chatglm2"])
    model.model.layers[2].mlp.up_proj.weight.data[3, 5] = float("inf")
    model.save_pretrained(tmp_path / "src")
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj.*Leave it out"):
        quantize(tmp_path / "src", tmp_path / "dst", method="glm-int8")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(GlmLikeError, match=r"needs the package torchao: pip install 'glmlike\[torchao\]'"):
        quantize(TINY, tmp_path / "dst", method="float8")


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["quantize", str(TINY), str(tmp_path / "dst"), "--method", "glm-int8", "--json"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--dry-run"])
    assert not done.value.code
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "dst").exists()
    with pytest.raises(SystemExit):
        main(arguments)
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in plan if name not in ("memory", "bytes_after")} == {
        name: plan[name] for name in plan if name not in ("memory", "bytes_after")
    }
    assert plan["bytes_after"] == report["bytes_after"] < plan["bytes_before"]
    with pytest.raises(SystemExit) as done:
        main(["quantize", str(TINY), str(tmp_path / "other"), "--method", "int3"])
    assert done.value.code == 2
    assert "expected one of nf4" in capsys.readouterr().err


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_spooled_shards_hold_what_was_added(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any dtypes in any order, files no larger than the limit unless one tensor is; metadata that grew in the last."""
    folder = tmp_path_factory.mktemp("spooled")
    dtypes = st.sampled_from(
        [torch.uint8, torch.float16, torch.float32, torch.int8, torch.bfloat16, torch.float8_e4m3fn]
    )
    shapes = st.lists(st.integers(0, 5), max_size=3)
    drawn = data.draw(st.lists(st.tuples(dtypes, shapes), min_size=1, max_size=12))
    limit = data.draw(st.integers(1, 400))
    tensors = {f"t{i}": torch.randint(0, 100, shape).to(dtype) for i, (dtype, shape) in enumerate(drawn)}
    metadata: dict[str, str] = {}
    with spooled_shards(folder, limit, metadata) as shards:
        for name, tensor in tensors.items():
            metadata[name] = "known"
            shards.add(name, tensor)
    assert same_bytes(tensors_of(folder), tensors)
    weight_map = shards.index["weight_map"]
    assert weight_map.keys() == tensors.keys() == shards.sums.keys()
    for file in set(weight_map.values()):
        inside = [tensors[name].nbytes for name, where in weight_map.items() if where == file]
        assert len(inside) == 1 or sum(inside) <= limit
    from safetensors import safe_open

    with safe_open(folder / max(weight_map.values()), framework="pt") as last:
        assert last.metadata().keys() == {"format", *tensors}
    assert {path.name for path in folder.iterdir()} <= {*weight_map.values(), "model.safetensors.index.json"}


_PEAK = """
import json, sys
from pathlib import Path
from glmlike.quantizing import quantize
report = quantize(sys.argv[1], sys.argv[2], method=sys.argv[3])
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps([peak * 1024, report.memory, report.bytes_before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
@pytest.mark.parametrize("method", ["nf4", "glm-int4"])
def test_memory_is_that_of_one_matrix(method: str, tmp_path: Path) -> None:
    """The peak stays below what the plan says, which is far below the size of the model."""
    need(method)
    spec = SPECS["chatglm2"].replace(hidden_size=1024, intermediate_size=4096, head_dim=256, num_hidden_layers=4)
    with torch.device("meta"):
        model = GlmLikeForCausalLM(glmlike.GlmLikeConfig.from_spec(spec))
    model.to_empty(device="cpu").to(torch.float32)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(tmp_path / "src")
    arguments = [sys.executable, "-W", "ignore", "-c", _PEAK, str(tmp_path / "src"), str(tmp_path / "dst"), method]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    peak, planned, size = json.loads(done.stdout.splitlines()[-1])
    print(f"{method}: peak {peak / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB, source {size / 1e6:.0f} MB")
    assert peak <= planned
