"""A merge is a conversion whose numbers change: planned, bounded, resumed, read back. The numbers: test_adapters.py."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from big_files import write_big
from glmlike import CheckpointError, ConfigError, GlmLikeError, convert, detect, merge, verify
from glmlike.checkpoint import Plan, execute
from glmlike.checkpoint.journal import NAME as JOURNAL
from glmlike.checkpoint.native import native_shapes
from killed import kill_and_resume

MATRICES = ("q_proj", "v_proj", "down_proj")


def write_lora(folder: Path, base: Path, *, rank: int = 4, tables: bool = False, dora: bool = False) -> Path:
    """An adapter of random numbers for the decoder in ``base``, as PEFT saves one; ``tables``: of its embedding too."""
    generator, tensors = torch.Generator().manual_seed(1), {}

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    for name, shape in native_shapes(detect(base).spec).items():
        module, _, kind = name.rpartition(".")
        before = f"base_model.model.{module}"
        if kind == "weight" and module.endswith(MATRICES):
            tensors |= {
                f"{before}.lora_A.weight": noise(rank, shape[1]),
                f"{before}.lora_B.weight": noise(shape[0], rank),
            }
            if dora:
                tensors[f"{before}.lora_magnitude_vector"] = noise(shape[0]).abs() + 1
        elif tables and name == "model.embed_tokens.weight":
            tensors[f"{before}.lora_embedding_A"] = noise(rank, shape[0])
            tensors[f"{before}.lora_embedding_B"] = noise(shape[1], rank)
            if dora:
                tensors[f"{before}.lora_magnitude_vector"] = noise(shape[1]).abs() + 1
        elif tables and name == "lm_head.weight":
            tensors[f"{before}.weight"] = torch.zeros(shape).fill_(0.5)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "use_dora": dora, "target_modules": [*MATRICES]}
    config |= {"modules_to_save": ["lm_head"]} if tables else {}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "glm4", tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "adapter", base)


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_plan_says_what_is_merged_and_writes_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = merge(base, adapter, tmp_path / "out", to="glm", dry_run=True)
    assert isinstance(plan, Plan)
    how = {step.name: step.how for step in plan.steps}
    assert how["model.layers.0.self_attn.q_proj.weight"] == how["model.layers.1.mlp.down_proj.weight"] == "merge"
    assert how["model.layers.0.self_attn.k_proj.weight"] == how["model.norm.weight"] == "bytes"
    said = json.loads(plan.to_json())
    assert [entry["name"] for entry in said["merged"]] == ["adapter"]
    assert (said["lossless"], said["verify"]) == (False, "hash")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    with pytest.raises(ConfigError, match="verify='roundtrip'.* no way back"):
        merge(base, adapter, tmp_path / "out", verify="roundtrip")


def test_the_same_bytes_whatever_the_memory_the_workers_and_the_order(base: Path, tmp_path: Path) -> None:
    """Fused and split: the rows of a head are asked for one by one where q, k and v stand head by head."""
    adapter = write_lora(tmp_path / "adapter", base, tables=True, dora=True)
    expected = load_file(Path(merge(base, adapter, tmp_path / "1", to="glmlike").destination) / "model.safetensors")
    for number, options in enumerate(({"workers": 1}, {"max_memory": "3GB", "workers": 4}, {"verify": "none"}), 2):
        merge(base, adapter, tmp_path / f"{number}", to="glmlike", **options)  # type: ignore[call-overload]
        found = load_file(tmp_path / f"{number}" / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    merge(base, adapter, tmp_path / "fused")
    assert verify(tmp_path / "fused", tmp_path / "1")


def test_records_and_companions(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(base, adapter, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "glmlike.json").read_text())
    assert record["merged_adapters"] == [{"name": "adapter", "sha256": report.adapters_sha256[0]}]
    assert record["source"]["name"] == "base"
    assert list(record["source"]["files"]) == ["model.safetensors"]
    written = {name for file in record["tensors"].values() for name in file}
    assert written == load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {path.name for path in base.glob("tokenizer*")} <= {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(CheckpointError, match="Nothing is left to do"):
        merge(base, adapter, tmp_path / "out")
    with pytest.raises(CheckpointError, match="must not be"):
        merge(base, adapter, adapter / "inside")


def test_an_adapter_that_makes_numbers_infinite_is_refused_by_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = torch.inf
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\..*not finite"):
        merge(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_the_disk_changed_is_seen(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = execute.ByteFile.write
    flipped = []

    def flip(self: Any, view: memoryview, offset: int) -> None:
        content = bytearray(view)
        if not flipped and len(content) > 1000:
            content[500] ^= 1
            flipped.append(offset)
        write(self, memoryview(content), offset)

    monkeypatch.setattr(execute.ByteFile, "write", flip)
    with pytest.raises(CheckpointError, match="read back is not what was written"):
        merge(base, adapter, tmp_path / "out")
    assert flipped
    assert not (tmp_path / "out").exists()


@contextmanager
def interrupted_after(count: int) -> Iterator[Any]:
    """A watch that is Ctrl-C after some progress."""
    seen = []

    @contextmanager
    def watch(total: int) -> Iterator[Callable[[int], None]]:
        def progress(done: int) -> None:
            seen.append(done)
            if len(seen) > count:
                raise KeyboardInterrupt

        yield progress

    yield watch


def test_an_interrupted_merge_is_resumed_with_the_same_adapter_only(
    base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merge(base, adapter, tmp_path / "whole")
    with interrupted_after(15) as watch, pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "out", watch=watch)
    assert "--resume goes on" in caplog.text
    other = write_lora(tmp_path / "other", base, rank=5)
    with pytest.raises(CheckpointError, match="a part of another conversion"):
        merge(base, other, tmp_path / "out", resume=True)
    with pytest.raises(CheckpointError, match="an interrupted conversion"):
        merge(base, adapter, tmp_path / "out")
    report = merge(base, adapter, tmp_path / "out", resume=True)
    assert report.resumed > 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


_RUN = "import sys; from glmlike.cli import main; main(sys.argv[1:])"


def command(folder: Path, target: Path, *options: str) -> list[str]:
    ends = (str(folder / "base"), str(folder / "adapter"), str(target))
    return [sys.executable, "-c", _RUN, "merge", *ends, "-q", "--max-shard-size", "20MB", *options]


def killed(tmp_path: Path, kills: int, layers: int) -> None:
    write_lora(tmp_path / "adapter", write_big(tmp_path / "base", layers=layers), dora=True)
    kill_and_resume(tmp_path, "model", partial(command, tmp_path), kills=kills, after=0.5)


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    killed(tmp_path, kills=2, layers=8)


@pytest.mark.exhaustive
def test_killed_and_resumed_a_hundred_times(tmp_path: Path) -> None:
    killed(tmp_path, kills=100, layers=12)


def test_a_signal_leaves_what_resume_needs_and_says_so(tmp_path: Path) -> None:
    write_lora(tmp_path / "adapter", write_big(tmp_path / "base", layers=20))
    process = subprocess.Popen(command(tmp_path, tmp_path / "out"), stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.partial" / JOURNAL
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "The same command with --resume goes on" in said
    subprocess.run(command(tmp_path, tmp_path / "out", "--resume"), check=True)
    assert detect(tmp_path / "out").format == "chatglm"


_PEAK = """
import sys, json
from glmlike import merge
report = merge(*sys.argv[1:4], max_memory=sys.argv[4])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": peak * 1024, "bytes": report.bytes}))
"""
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")


def peak(tmp_path: Path, bound: str) -> dict[str, Any]:
    """The peak resident memory of a whole process that merges, torch included."""
    ends = [str(tmp_path / name) for name in ("base", "adapter", "out")]
    done = subprocess.run([sys.executable, "-c", _PEAK, *ends, bound], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def least(tmp_path: Path) -> int:
    """The megabytes that a refusal asks for: what torch takes of them is not the same everywhere."""
    with pytest.raises(subprocess.CalledProcessError) as refused:
        peak(tmp_path, "20MB")
    return int(re.search(r"Pass at least (\d+) MB", refused.value.stderr)[1])  # type: ignore[index]


@on_linux
def test_the_whole_process_stays_below_its_bound(tmp_path: Path) -> None:
    """One shard, and two of its tensors, are larger than what the bound leaves beside torch."""
    sizes = {"layers": 4, "hidden": 1024, "inner": 4096, "vocab": 150_000}
    base = write_big(tmp_path / "base", sparse=True, **sizes)  # type: ignore[arg-type]
    write_lora(tmp_path / "adapter", base, rank=8, tables=True, dora=True)
    bound = least(tmp_path) + 15
    found = peak(tmp_path, f"{bound}MB")
    assert found["bytes"] > 650e6
    assert found["peak"] < bound * 1e6 < 450e6


@on_linux
def test_the_norms_of_dora_leave_no_room_unused(tmp_path: Path) -> None:
    """Those of tall matrices are made in hundreds of blocks; room that each block left behind once added up."""
    base = write_big(tmp_path / "base", layers=1, sparse=True, hidden=512, inner=60_000, vocab=512)
    write_lora(tmp_path / "adapter", base, rank=4, dora=True)
    bound = least(tmp_path) + 15
    found = peak(tmp_path, f"{bound}MB")
    assert found["bytes"] > 180e6
    assert found["peak"] < bound * 1e6


@on_linux
@pytest.mark.exhaustive
def test_gigabytes_within_the_bound(tmp_path: Path) -> None:
    base = write_big(tmp_path / "base", layers=10, hidden=4096, inner=13_696, vocab=65_024)
    write_lora(tmp_path / "adapter", base, rank=16, dora=True)
    bound = least(tmp_path) + 15
    found = peak(tmp_path, f"{bound}MB")
    assert found["bytes"] > 4.9e9
    assert found["peak"] < bound * 1e6 < 450e6


def test_too_little_memory_is_refused_with_the_least_that_will_do(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(GlmLikeError, match=r"Pass at least \d+ MB"):
        merge(base, adapter, tmp_path / "out", max_memory="20MB")
    assert not (tmp_path / "out").exists()


def test_the_sha256_of_an_adapter_is_what_earlier_records_hold(tmp_path: Path) -> None:
    """Else an adapter that a released version merged would be merged again."""
    base = write_big(tmp_path / "base", layers=1, sparse=True, hidden=128, inner=64, vocab=64)
    adapter = write_lora(tmp_path / "adapter", base, dora=True, tables=True)
    tensors = {}
    for number, (name, tensor) in enumerate(sorted(load_file(adapter / "adapter_model.safetensors").items())):
        tensors[name] = torch.arange(tensor.numel()).reshape(tensor.shape).remainder(7 + number).float() / 8
    save_file(tensors, adapter / "adapter_model.safetensors")
    report = merge(base, adapter, tmp_path / "out")
    assert report.adapters_sha256 == ("f31096488d81e58da07c48638e754f242e70df5b6d7d6c2ddaa3e33f229e1ab8",)


def test_the_merged_folder_converts_as_any_other(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out", to="glm")
    convert(tmp_path / "out", tmp_path / "back", to="glmlike")
    assert verify(tmp_path / "out", tmp_path / "back")
