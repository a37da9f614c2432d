"""The journal of a conversion: what is done, one JSON line each, so that a run that was killed can be resumed.

The first line says which plan the folder belongs to. Every other line is written after the bytes it speaks of; a line
that was cut off is as good as none.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from glmlike.checkpoint.containers import Sums
from glmlike.errors import CheckpointError

NAME = ".glmlike-journal"


class Journal:
    """The journal in a folder, opened for one plan; safe to use from several threads.

    Raises:
        CheckpointError: the folder has the journal of another plan.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        self.tensors: dict[tuple[str, str], Sums] = {}
        self.sources: dict[str, str] = {}
        lines = self._read()
        if lines and lines[0].get("plan") != plan:
            raise CheckpointError(
                f"{folder}: holds a part of another conversion: the source, the options or the version changed since. "
                "Remove this folder and start anew without --resume."
            )
        for line in lines[1:]:
            self._take(line)
        content = "".join(json.dumps(line) + "\n" for line in ({"plan": plan}, *lines[1:]))
        fresh = self._path.with_suffix(".new")
        fresh.write_text(content, encoding="utf8")
        fresh.replace(self._path)  # a cut-off last line is gone, and at no moment is there no journal
        self._fd: int | None = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def _read(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if not self._path.exists():
            return found
        for line in self._path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict):
                break
            found.append(entry)
        return found

    def _take(self, line: dict[str, Any]) -> None:
        if "source" in line:
            self.sources[str(line["source"])] = str(line["sha256"])
        elif "tensor" in line:
            self.tensors[str(line["file"]), str(line["tensor"])] = Sums(str(line["hash"]), int(line["crc32"]))

    def _append(self, line: dict[str, Any]) -> None:
        with self._lock:
            assert self._fd is not None, "the journal is closed"
            os.write(self._fd, (json.dumps(line) + "\n").encode())

    def tensor_done(self, file: str, name: str, sums: Sums) -> None:
        """A tensor's bytes are in their place in ``file``."""
        self.tensors[file, name] = sums
        self._append({"file": file, "tensor": name, "hash": sums.hash, "crc32": sums.crc32})

    def source_done(self, file: str, sha256: str) -> None:
        """A source file was hashed."""
        self.sources[file] = sha256
        self._append({"source": file, "sha256": sha256})

    def close(self, *, remove: bool) -> None:
        """End the journal; ``remove`` it when the folder is whole."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if remove:
            self._path.unlink()
