"""The memory of a process and of all that it starts, together, while it runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run_and_watch(command: Sequence[str]) -> int:
    """Run a command to its end: the largest sum of the resident memory of its processes, in bytes.

    Pages that several of them share count for each. Raises CalledProcessError if it fails.
    """
    process, most = subprocess.Popen(command), 0
    while process.poll() is None:
        most = max(most, sum(_resident(pid) for pid in _family(process.pid)))
        time.sleep(0.002)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def _family(pid: int) -> list[int]:
    children = [child for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in _read(listed).split()]
    return [pid, *(relative for child in children for relative in _family(int(child)))]


def _resident(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process ended meanwhile
        return ""
