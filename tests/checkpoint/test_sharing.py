"""Where a file system shares blocks between files, bytes that are only moved are shared, not copied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from big_files import write_big
from glmlike import convert, verify
from glmlike.checkpoint import Plan
from glmlike.checkpoint.byte_files import BLOCK, ByteFile
from glmlike.checkpoint.containers import Sums
from glmlike.errors import CheckpointError
from killed import sums

SIZES = {"layers": 2, "hidden": 512, "inner": 1024, "vocab": 4096}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_big(tmp_path / "source", **SIZES)  # type: ignore[arg-type]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """A file system that shares: what it was asked for, as (offset there, offset here, bytes). It copies instead."""
    asked = []

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        source, offset, count, to = (int.from_bytes(argument[at : at + 8], "little") for at in range(0, 32, 8))
        if offset % BLOCK or count % BLOCK or to % BLOCK:
            raise OSError(22, "Invalid argument")
        asked.append((offset, to, count))
        os.pwrite(fd, os.pread(source, count, offset), to)
        return 0

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


@pytest.mark.parametrize("mode", ["none", "roundtrip"])
def test_a_conversion_that_renames_shares_all_but_edges(
    mode: Any, source: Path, tmp_path: Path, shared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    write, copy_from = ByteFile.write, ByteFile.copy_from

    def noted_write(self: ByteFile, view: memoryview, offset: int) -> None:
        copied.append(len(view))
        write(self, view, offset)

    def noted_copy(self: ByteFile, other: ByteFile, offset: int, count: int, to: int) -> bool:
        done = copy_from(self, other, offset, count, to)
        copied.append(count if done else 0)
        return done

    monkeypatch.setattr(ByteFile, "write", noted_write)
    monkeypatch.setattr(ByteFile, "copy_from", noted_copy)
    report = convert(source, tmp_path / "out", to="chatglm", verify=mode)
    assert verify(source, tmp_path / "out")
    assert all((there - here) % BLOCK == 0 for there, here, _ in shared)
    assert sum(count for _, _, count in shared) > 0.9 * report.bytes
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sum(copied) + sum(count for _, _, count in shared) == size  # every byte once: nothing shared is copied too


def test_stretches_of_a_fused_tensor_are_shared(source: Path, tmp_path: Path, shared: list[Any]) -> None:
    report = convert(source, tmp_path / "out", to="glmlike", max_shard_size="6MB")
    assert verify(source, tmp_path / "out")
    assert sum(count for _, _, count in shared) > 0.5 * report.bytes


def test_the_bytes_are_the_same_with_and_without(source: Path, tmp_path: Path, shared: list[Any]) -> None:
    convert(source, tmp_path / "shared", to="glm")
    assert shared
    count = len(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByteFile, "share_from", lambda *_: (0, 0))
        convert(source, tmp_path / "copied", to="glm")
    assert len(shared) == count
    assert sums(tmp_path / "shared") == sums(tmp_path / "copied")


def test_what_is_not_shared_is_read_back(
    source: Path, tmp_path: Path, shared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared blocks are the source's own; a byte beside them that came out wrong is found."""
    write = ByteFile.write

    def fails_once(self: ByteFile, view: memoryview, offset: int) -> None:
        wrong.append(bytes(each ^ 1 for each in view) if not wrong else bytes(view))
        write(self, memoryview(wrong[-1]), offset)

    wrong: list[bytes] = []
    monkeypatch.setattr(ByteFile, "write", fails_once)
    with pytest.raises(CheckpointError, match="read back is not what was written"):
        convert(source, tmp_path / "out", to="chatglm", workers=1)
    assert shared
    assert 0 < len(wrong[0]) < 2 * BLOCK
    assert not (tmp_path / "out").exists()


def test_headers_are_padded_by_less_than_a_block_and_only_where_it_is_worth_it(source: Path, tmp_path: Path) -> None:
    moved = convert(source, tmp_path / "out", to="chatglm", dry_run=True)
    cast = convert(source, tmp_path / "out", to="chatglm", dry_run=True, dtype="float16")
    assert isinstance(moved, Plan)
    assert 0 <= moved.containers[0].size - cast.containers[0].size < BLOCK
    start = min(moved.containers[0].at.values())
    assert start % BLOCK == min(info.start for info in moved.found.checkpoint.tensors.values()) % BLOCK
    small = write_big(tmp_path / "small", layers=1, hidden=128, inner=128, vocab=256)
    plan = convert(small, tmp_path / "out", to="chatglm", dry_run=True)
    assert plan.bytes < 2**20
    header = plan.containers[0].frame({step.name: Sums() for step in plan.steps})[0][1]
    assert len(header) - len(header.rstrip(b" ")) < 8


def test_a_real_file_system_shares(tmp_path: Path) -> None:
    """Runs where the temporary folder is on XFS, Btrfs or another that shares: free room says it."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "b").write_bytes(b"\0" * 2**14)
    if ByteFile(tmp_path / "b", writable=True).share_from(ByteFile(tmp_path / "a"), 0, 2**14, 0) == (0, 0):
        pytest.skip("the temporary folder's file system shares no blocks")
    source = write_big(tmp_path / "source", layers=4, hidden=1024, inner=4096, vocab=16_384)
    size = (source / "model.safetensors").stat().st_size

    def used() -> int:
        os.sync()
        found = os.statvfs(tmp_path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    before = used()
    convert(source, tmp_path / "out", to="chatglm")
    assert used() - before < 0.2 * size
    assert verify(source, tmp_path / "out")
