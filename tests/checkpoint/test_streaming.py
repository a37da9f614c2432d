"""What a conversion promises: bounded memory, all or nothing, resumable, verified, with a record, the same twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from big_files import write_big
from glmlike import CheckpointError, ConfigError, GlmLikeError, convert, detect, verify
from glmlike.checkpoint import Plan, execute, fingerprint, verification
from glmlike.checkpoint.journal import NAME as JOURNAL
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.verification import verify_written
from glmlike.hub_json import write_config
from killed import kill_and_resume
from specs import SPECS

QKV = "transformer.encoder.layers.0.self_attention.query_key_value.weight"


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "glm4", tmp_path / "source"))


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["glmlike"])
    return found


def tensor_hashes(path: Path) -> dict[str, str]:
    """The XXH3-128 of the bytes of every tensor of a file."""
    raw = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in load_file(path).items()}
    return {name: xxhash.xxh3_128_hexdigest(content) for name, content in raw.items()}


def sha256(path: Path) -> str:
    """The sha256 of a file, as the Hub shows it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The plan.


def test_the_plan_says_every_step_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    plan = convert(source, tmp_path / "out", to="glm", max_shard_size="50KB", dry_run=True)
    assert isinstance(plan, Plan)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = convert(source, tmp_path / "out", to="glm", max_shard_size="50KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {step.name: step.file for step in plan.steps} == index["weight_map"]
    assert (plan.bytes, plan.bytes_moved, plan.lossless) == (report.bytes, report.bytes, True)
    assert plan.disk == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    step = next(step for step in plan.steps if step.name == "model.layers.0.self_attn.k_proj.weight")
    assert (step.sources, step.how) == ((QKV,), "bytes")
    assert "Fused" in step.layout
    assert json.loads(plan.to_json())["steps"][0]["file"] == plan.files[0]


def test_the_plan_names_missing_and_unknown_tensors(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["extra"] = tensors.pop(QKV)
    save_file(tensors, source / "model.safetensors")
    plan = convert(source, tmp_path / "out", to="glm", dry_run=True)
    assert (plan.missing, plan.unknown) == ((QKV,), ("extra",))
    assert not any(QKV in step.sources for step in plan.steps)
    with pytest.raises(CheckpointError, match=f"1 tensors missing .first: '{QKV}'.*'extra'"):
        convert(source, tmp_path / "out", to="glm")


# Bytes.


def test_the_same_source_gives_the_same_bytes_whatever_the_workers(source: Path, tmp_path: Path) -> None:
    for name, options in (("a", {"workers": 1}), ("b", {"workers": 4}), ("c", {"max_memory": "2GB"})):
        convert(source, tmp_path / name, to="glm", max_shard_size="50KB", **options)  # type: ignore[call-overload]
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")


def test_without_hashes_the_tensors_are_the_same(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "fast", to="glm", verify="none")
    assert fingerprint(tmp_path / "fast") == fingerprint(source)
    assert metadata(tmp_path / "fast" / "model.safetensors").keys() == {"version", "format", "source"}


def test_where_the_kernel_cannot_copy_bytes_are_read_and_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", cannot, raising=False)
    convert(source, tmp_path / "fast", to="glm", verify="none")
    assert fingerprint(tmp_path / "fast") == fingerprint(source)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_rounds_every_tensor(dtype: Any, source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "exact", to="glm")
    rounded = convert(source, tmp_path / "out", to="glm", dtype=dtype)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "out"))
    assert all(torch.equal(after[name], tensor.to(getattr(torch, dtype))) for name, tensor in before.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert (report.verify, rounded.verify) == ("roundtrip", "roundtrip" if dtype == "float32" else "hash")
    assert rounded.bytes_moved == (rounded.bytes if dtype == "float32" else 0)


def test_a_dtype_too_small_is_refused_and_the_tensor_named(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors[QKV][3, 3] = 1e6
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{QKV}': 1 numbers .*do not fit in float16"):
        convert(source, tmp_path / "out", to="glm", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(ConfigError, match="cannot be made again from the result"):
        convert(source, tmp_path / "out", to="glm", dtype="bfloat16", verify="roundtrip")
    with pytest.raises(ConfigError, match="dtype='int8': expected one of float32"):
        convert(source, tmp_path / "out", to="glm", dtype="int8")  # type: ignore[call-overload]


# Verification.


@pytest.mark.parametrize("mode", ["hash", "roundtrip"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_bit_that_flips_on_the_disk_is_seen(
    mode: Any, name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flipped(plan: Plan, folder: Path, *arguments: Any) -> None:
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[plan.containers[0].at[name] + 5] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        verify_written(plan, folder, *arguments)

    monkeypatch.setattr(sys.modules["glmlike.checkpoint.convert"], "verify_written", flipped)
    with pytest.raises(CheckpointError, match="read back is not what was written|made again from the result differs"):
        convert(source, tmp_path / "out", to="glm", verify=mode)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_wrong_layout_is_seen_by_the_round_trip(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes alone only say that what was written is what was to be written."""
    from glmlike.checkpoint.layouts import Fused

    right = Fused.native_rows
    monkeypatch.setattr(Fused, "native_rows", lambda self, shapes: [right(self, shapes)[0]] * len(self.sizes))
    with pytest.raises(CheckpointError, match="made again from the result differs"):
        convert(source, tmp_path / "out", to="glmlike")


def test_moved_bytes_are_proved_by_their_places_and_the_source_is_not_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k, v and gate, up are stretches of one tensor each; what was computed is compared byte by byte."""
    compared: list[str] = []
    require_same = verification._require_same

    def noted(name: str, *arguments: Any) -> None:
        compared.append(name)
        require_same(name, *arguments)

    monkeypatch.setattr(verification, "_require_same", noted)
    convert(source, tmp_path / "glm", to="glm", max_shard_size="50KB")
    convert(tmp_path / "glm", tmp_path / "back", to="chatglm")
    assert compared == []
    convert(source, tmp_path / "half", to="glm", dtype="bfloat16")
    convert(tmp_path / "half", tmp_path / "float", to="glmlike", dtype="float32", verify="hash")
    assert compared == []
    transposed = as_bin(source, lambda tensors: tensors.update({QKV: tensors[QKV].t().contiguous().t()}))
    convert(transposed, tmp_path / "from bin", to="glm")
    assert compared == [QKV]


# The record.


def test_the_record_says_where_numbers_come_from_and_names_no_path(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="glm", max_shard_size="50KB")
    record = json.loads((tmp_path / "out" / "glmlike.json").read_text())
    assert record["source"]["files"] == {"model.safetensors": sha256(source / "model.safetensors")}
    assert (record["source"]["name"], record["source"]["format"], record["format"]) == ("source", "chatglm", "glm")
    for path in (tmp_path / "out").glob("*.safetensors"):
        found = metadata(path)
        assert found["tensors"] == tensor_hashes(path) == record["tensors"][path.name]
        assert found["tensor_hash"] == record["tensor_hash"] == "xxh3_128"
        assert found["source"]["files"] == record["source"]["files"]
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_snapshot_of_the_hub_cache_is_named_by_its_id(source: Path, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--THUDM--glm-4-9b" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    convert(snapshot, tmp_path / "out", to="glm")
    found = metadata(tmp_path / "out" / "model.safetensors")["source"]
    assert (found["name"], found["revision"]) == ("THUDM/glm-4-9b", revision)


def in_cache(source: Path, tmp_path: Path, digest: str) -> Path:
    """A snapshot in the Hub's cache: a link to a blob named by its sha256, and on to one that repositories share."""
    repository = tmp_path / "hub" / "models--a--b"
    shared = tmp_path / "hub" / "blobs" / ("f" * 64)
    snapshot = repository / "snapshots" / ("1" * 40)
    for folder in (shared.parent, repository / "blobs", snapshot.parent):
        folder.mkdir(parents=True)
    source.rename(snapshot)
    (snapshot / "model.safetensors").rename(shared)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    (repository / "blobs" / digest).symlink_to(f"../../blobs/{shared.name}")
    return snapshot


def in_own_folder(source: Path, tmp_path: Path, digest: str) -> Path:
    """What ``hf download --local-dir`` leaves beside a file."""
    note = source / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0' * 40}\n{digest}\n{time.time() + 1}\n")
    return source


@pytest.mark.parametrize("downloaded", [in_cache, in_own_folder])
@pytest.mark.parametrize("mode", ["none", "roundtrip"])
def test_what_the_hub_said_of_a_file_is_recorded_and_can_be_checked(
    downloaded: Callable[..., Path], mode: Any, source: Path, tmp_path: Path
) -> None:
    digest = sha256(source / "model.safetensors")
    folder = downloaded(source, tmp_path, digest)
    said = []
    for name, checked in (("a", False), ("b", True), ("c", None)):
        convert(folder, tmp_path / name, to="glm", verify=mode, sha256=checked)
        record = json.loads((tmp_path / name / "glmlike.json").read_text())
        said.append({key: record["source"].get(key) for key in ("files", "published_files")})
        assert metadata(tmp_path / name / "model.safetensors")["source"].items() <= record["source"].items()
    known = {"model.safetensors": digest}
    noted, computed = {"files": None, "published_files": known}, {"files": known, "published_files": None}
    assert said == [noted, computed, noted]


@pytest.mark.parametrize("downloaded", [in_cache, in_own_folder])
def test_a_file_that_is_not_what_the_hub_said_is_named(
    downloaded: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    folder = downloaded(source, tmp_path, "0" * 64)
    with pytest.raises(CheckpointError, match=r"model.safetensors: its sha256 is .*, but was 0{64} on the Hub"):
        convert(folder, tmp_path / "out", to="glm", sha256=True)
    assert not (tmp_path / "out").exists()


def test_a_file_written_after_its_download_is_not_the_hubs(source: Path, tmp_path: Path) -> None:
    folder = in_own_folder(source, tmp_path, "0" * 64)
    later = time.time() + 100
    os.utime(folder / "model.safetensors", (later, later))
    convert(folder, tmp_path / "out", to="glm", sha256=True)
    convert(folder, tmp_path / "unhashed", to="glm")
    assert "published_files" not in (tmp_path / "unhashed" / "glmlike.json").read_text()


def test_a_resumed_run_takes_the_sums_of_files_from_the_journal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"to": "glm", "sha256": True, "workers": 1}
    convert(source, tmp_path / "whole", **options)
    with interrupted_after(30, KeyboardInterrupt()) as watch, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", watch=watch, **options)
    monkeypatch.setattr(execute, "_sha256_of", lambda *_: pytest.fail("hashed again"))
    assert convert(source, tmp_path / "out", resume=True, **options).resumed
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_converting_twice_says_so(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="glm")
    with pytest.raises(CheckpointError, match="it is this conversion of the same source to 'glm'. Nothing is left"):
        convert(source, tmp_path / "out", to="glm")
    with pytest.raises(CheckpointError, match="exists already. Choose a new folder"):
        convert(source, tmp_path / "out", to="glmlike")
    report = convert(tmp_path / "out", tmp_path / "again", to="glmlike")
    assert "the source was itself converted, from source (chatglm)" in report.notes[0]
    record = json.loads((tmp_path / "again" / "glmlike.json").read_text())
    assert record["source"]["converted_from"]["name"] == "source"


# Torch zip files.


def as_bin(source: Path, change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None) -> Path:
    """The weights of a folder in pytorch_model.bin instead."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    return source


def test_bin_files_are_moved_as_bytes(source: Path, tmp_path: Path) -> None:
    before = fingerprint(source)
    plan = convert(as_bin(source), tmp_path / "out", to="glm", dry_run=True)
    assert {step.how for step in plan.steps} == {"bytes"}
    for mode in ("none", "hash", "roundtrip"):
        convert(source, tmp_path / mode, to="glm", verify=mode)  # type: ignore[call-overload]
        assert fingerprint(tmp_path / mode) == before


def test_strided_and_shared_tensors_of_bin_files(source: Path, tmp_path: Path) -> None:
    """A transposed tensor is read by torch; a tensor that is a part of a storage is a stretch of it."""
    before = fingerprint(source)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QKV] = tensors[QKV].t().contiguous().t()
        norm = "transformer.encoder.final_layernorm.weight"
        tensors[norm] = torch.cat([tensors[norm], tensors[norm]])[: len(tensors[norm])]

    plan = convert(as_bin(source, change), tmp_path / "out", to="glm", dry_run=True)
    assert {step.name for step in plan.steps if step.how == "tensor"} == {
        f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"
    }
    assert convert(source, tmp_path / "out", to="glm").verify == "roundtrip"
    assert fingerprint(source) == fingerprint(tmp_path / "out") == before


@pytest.mark.parametrize("mode", ["hash", "roundtrip"])
@pytest.mark.parametrize("name", [QKV, "transformer.encoder.final_layernorm.weight"])
def test_a_damaged_bin_file_is_seen_while_it_is_read(mode: Any, name: str, source: Path, tmp_path: Path) -> None:
    info = detect(as_bin(source)).checkpoint.tensors[name]
    content = bytearray((source / "pytorch_model.bin").read_bytes())
    content[info.start + 5] ^= 1
    (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"the bytes of '{name}' are damaged .their CRC-32"):
        convert(source, tmp_path / "out", to="glm", verify=mode)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(CheckpointError, match=f"the bytes of '{name}' are damaged"):
        fingerprint(source)


def test_a_link_in_a_folder_of_templates_does_not_leave(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside of"):
        convert(source, tmp_path / "out", to="glm")
    assert not (tmp_path / "out").exists()


# Whole or not at all.


def test_destinations_through_links_are_seen(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for destination in (tmp_path / "link", tmp_path / "link" / "inside"):
        with pytest.raises(CheckpointError, match="must not be"):
            convert(source, destination, to="glm")
    with pytest.raises(CheckpointError, match="must not be"):
        convert(tmp_path / "link", source, to="glm")


def test_a_disk_too_small_is_seen_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"needs 0\.\d GB, its disk has 0.0 GB free"):
        convert(source, tmp_path / "out", to="glm")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_memory_that_is_too_little_is_refused_with_the_least_that_will_do(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GlmLikeError, match=r"max_memory=20 MB: this process holds \d+ MB already.* Pass at least \d+ MB"
    ):
        convert(source, tmp_path / "out", to="glm", max_memory="20MB")
    with pytest.raises(GlmLikeError, match="workers=0"):
        convert(source, tmp_path / "out", to="glm", workers=0)


@contextmanager
def interrupted_after(count: int, error: BaseException) -> Iterator[Any]:
    """A watch that raises in the main thread's stead after some progress."""
    seen = []

    def watch(total: int) -> Any:
        @contextmanager
        def context() -> Iterator[Callable[[int], None]]:
            def progress(done: int) -> None:
                seen.append(done)
                if len(seen) > count:
                    raise error

            yield progress

        return context()

    yield watch


def test_an_interrupted_run_is_resumed_and_gives_the_same_bytes(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(source, tmp_path / "whole", to="glm", max_shard_size="50KB")
    options: dict[str, Any] = {"to": "glm", "max_shard_size": "50KB"}
    with interrupted_after(20, KeyboardInterrupt()) as watch, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", watch=watch, **options)
    assert "finished tensors are in" in caplog.text
    assert "--resume goes on" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "source", "whole"]
    with pytest.raises(CheckpointError, match="an interrupted conversion to .* is here. Go on with it .--resume."):
        convert(source, tmp_path / "out", **options)
    for changed in ({"max_shard_size": "500KB"}, {"dtype": "bfloat16"}):
        with pytest.raises(CheckpointError, match="a part of another conversion"):
            convert(source, tmp_path / "out", resume=True, **{**options, **changed})
    report = convert(source, tmp_path / "out", resume=True, **options)
    assert report.resumed > 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def test_what_changed_since_is_not_resumed(source: Path, tmp_path: Path) -> None:
    with interrupted_after(20, KeyboardInterrupt()) as watch, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", to="glm", watch=watch)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match="the source, the options or the version changed since"):
        convert(source, tmp_path / "out", to="glm", resume=True)


def test_a_finished_tensor_that_was_damaged_is_written_again(source: Path, tmp_path: Path) -> None:
    with interrupted_after(30, KeyboardInterrupt()) as watch, pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", to="glm", watch=watch)
    path = tmp_path / ".out.partial" / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    report = convert(source, tmp_path / "out", to="glm", resume=True)
    assert report.resumed == 0
    assert fingerprint(tmp_path / "out") == fingerprint(source)


def test_a_leftover_without_a_journal_is_not_trusted(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_bytes(b"x" * 10**6)
    (tmp_path / ".out.partial" / "stray").write_text("x")
    convert(source, tmp_path / "out", to="glm", resume=True)
    assert fingerprint(tmp_path / "out") == fingerprint(source)
    assert not (tmp_path / "out" / "stray").exists()


def test_an_error_in_a_worker_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(execute.ByteFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "out", to="glm")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["chatglm-6b", "glm-130b", "tied-recipe"])
def test_every_kind_of_layout_is_verified_by_its_inverse(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    """q, k and v by heads, ranks cut by rows and columns, and a tensor that one format stores twice."""
    to: Any = {"tied-recipe": "chatglm"}.get(name, name)
    make(SPECS[name]).save_pretrained(tmp_path / "native")
    options = {"tensor_parallel": 2} if to == "glm-130b" else {}
    assert convert(tmp_path / "native", tmp_path / "there", to=to, **options).verify == "roundtrip"
    assert convert(tmp_path / "there", tmp_path / "back", to="glmlike").verify == "roundtrip"
    assert fingerprint(tmp_path / "back") == fingerprint(tmp_path / "native")


# Real processes.

_RUN = "import sys; from glmlike.cli import main; main(sys.argv[1:])"


def command(source: Path, target: Path, *options: str, to: str = "glm") -> list[str]:
    return [sys.executable, "-c", _RUN, "convert", str(source), str(target), "--to", to, "-q", *options]


# What is written -> its name, and the options of the command
KILLED = {
    "shards": ("model", "glm", ("--max-shard-size", "20MB")),
    "gguf": ("model.gguf", "gguf", ()),
    "gguf of blocks": ("model.gguf", "gguf", ("--dtype", "q4_1")),
}


def killed(tmp_path: Path, kind: str, kills: int, layers: int) -> None:
    if "gguf" in kind:
        pytest.importorskip("gguf")
    name, to, options = KILLED[kind]
    source = write_big(tmp_path / "source", layers=layers)

    def run(target: Path, *more: str) -> list[str]:
        return command(source, target, *options, *more, to=to)

    kill_and_resume(tmp_path, name, run, kills=kills, after=0.3)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("shards", 6), *(pytest.param(kind, 3, marks=pytest.mark.slow) for kind in KILLED if kind != "shards")],
)
def test_killed_and_resumed(kind: str, kills: int, tmp_path: Path) -> None:
    killed(tmp_path, kind, kills, layers=6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KILLED)
def test_killed_and_resumed_a_hundred_times(kind: str, tmp_path: Path) -> None:
    killed(tmp_path, kind, kills=100, layers=12)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_what_resume_needs_and_says_so(number: int, code: int, tmp_path: Path) -> None:
    source = write_big(tmp_path / "source", layers=20)
    # A job in the background of a shell ignores SIGINT, and so do its children; a person at a terminal does not.
    process = subprocess.Popen(
        command(source, tmp_path / "out"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / ".out.partial" / JOURNAL
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "The same command with --resume goes on" in said
    subprocess.run(command(source, tmp_path / "out", "--resume"), check=True)
    assert verify(source, tmp_path / "out") > 0


_PEAK = """
import sys, json
from glmlike import convert
report = convert(sys.argv[1], sys.argv[2], to=sys.argv[3], **json.loads(sys.argv[4]))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": peak * 1024, "torch": "torch" in sys.modules, "bytes": report.bytes}))
"""


def peak(source: Path, target: Path, to: str, **options: Any) -> dict[str, Any]:
    """The peak resident memory of a whole process that converts."""
    arguments = [sys.executable, "-c", _PEAK, str(source), str(target), to, json.dumps(options)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")


@on_linux
def test_the_whole_process_stays_below_its_bound(tmp_path: Path) -> None:
    """A model larger than the bound; nothing of torch is imported where bytes are moved."""
    source = write_big(tmp_path / "source", layers=60, sparse=True)
    assert sum(path.stat().st_blocks * 512 for path in source.iterdir()) < 10e6
    found = peak(source, tmp_path / "out", "glm", max_memory="100MB", verify="hash")
    assert found["bytes"] > 200e6
    assert found["peak"] < 100e6
    assert not found["torch"]


@on_linux
def test_rank_files_stay_below_the_bound_and_need_no_torch_to_be_read(tmp_path: Path) -> None:
    spec = SPECS["llama-3"].replace(hidden_size=1024, intermediate_size=4096, head_dim=256, vocab_size=16_000)
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in native_shapes(spec).items()}
    zeros["lm_head.weight"] += 1
    (tmp_path / "source").mkdir()
    save_file(zeros, tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "config.json").write_text(json.dumps(write_config(spec, "llama")))
    there = peak(tmp_path / "source", tmp_path / "ranks", "meta", max_memory="450MB", tensor_parallel=2)
    back = peak(tmp_path / "ranks", tmp_path / "back", "llama", max_memory="100MB")
    assert there["peak"] < 450e6
    assert back["peak"] < 100e6 < back["bytes"]
    assert not back["torch"]
    assert verify(tmp_path / "source", tmp_path / "back")


@on_linux
def test_the_bound_holds_for_casts_torch_included(tmp_path: Path) -> None:
    source = write_big(tmp_path / "source", layers=20, sparse=True)
    assert peak(source, tmp_path / "out", "glm", max_memory="350MB", dtype="float32", verify="none")["peak"] < 350e6


@on_linux
@pytest.mark.exhaustive
def test_forty_gigabytes_of_holes_stay_holes_within_the_bound(tmp_path: Path) -> None:
    source = write_big(tmp_path / "source", layers=95, sparse=True, hidden=4096, inner=13_696, vocab=65_024)
    found = peak(source, tmp_path / "out", "glm", max_memory="200MB", verify="hash")
    assert found["bytes"] > 39e9
    assert found["peak"] < 200e6
    assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "out").iterdir()) < 200e6


@on_linux
@pytest.mark.exhaustive
def test_five_real_gigabytes_within_the_bound(tmp_path: Path) -> None:
    source = write_big(tmp_path / "source", layers=10, hidden=4096, inner=13_696, vocab=65_024)
    found = peak(source, tmp_path / "out", "glm", max_memory="200MB")
    assert found["bytes"] > 4.9e9
    assert found["peak"] < 200e6
    shutil.rmtree(tmp_path / "out")
    assert peak(source, tmp_path / "out", "glm", max_memory="500MB", dtype="float16")["peak"] < 500e6
