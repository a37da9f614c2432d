"""Runs that are killed at random moments and resumed, whatever they write."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from glmlike.checkpoint.journal import NAME as JOURNAL


def sums(written: Path) -> dict[str, str]:
    """The sha256 of a file, or of every file of a folder."""
    paths = [written] if written.is_file() else sorted(path for path in written.rglob("*") if path.is_file())
    return {path.relative_to(written).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _has_tensors(journal: Path) -> bool:
    return journal.exists() and b'"tensor"' in journal.read_bytes()


def kill_and_resume(tmp_path: Path, name: str, command: Callable[..., list[str]], *, kills: int, after: float) -> None:
    """Kill -9 at random moments, resume each time; what comes out is what an undisturbed run gives.

    ``command(target, *options)`` writes the file or folder ``target``, which is called ``name``; ``after`` is the part
    of an undisturbed run's time before which nothing is killed, since nothing is written yet. The first kill is at the
    moment when the first tensors are done, so that there is something to resume.
    """
    whole, out = tmp_path / "whole" / name, tmp_path / "out" / name
    for target in (whole, out):
        target.parent.mkdir()
    started = time.perf_counter()
    subprocess.run(command(whole), check=True)
    seconds, chance = time.perf_counter() - started, random.Random(0)
    journal, landed = out.parent / f".{name}.partial" / JOURNAL, 0
    for number in range(kills):
        process = subprocess.Popen(command(out, "--resume"))
        try:
            while number == 0 and process.poll() is None and not _has_tensors(journal):
                time.sleep(0.001)
            process.wait(0 if number == 0 else chance.uniform(after, 0.97) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        landed += process.wait() == -signal.SIGKILL
        assert number or _has_tensors(journal)
        if out.exists():
            assert sums(out) == sums(whole)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert landed
    subprocess.run(command(out, "--resume"), check=True)
    assert sums(out) == sums(whole)
    assert [path.name for path in out.parent.iterdir()] == [name]
