"""Carrying a plan out: several threads read, hash and write stretches of tensors, each within its share of memory.

Every file has its final size before a byte of it is written, and every tensor its place, so tensors are written in any
order, by any thread, and a hole in a source stays one. A tensor that is done is noted in the journal with its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.containers import Container, Sums
from glmlike.checkpoint.journal import Journal
from glmlike.checkpoint.plan import Plan, Step, index_of, leaves
from glmlike.checkpoint.streams import Columns, SideBySide, Stored, Stream, size_of, stored_runs, stretches
from glmlike.errors import CheckpointError

Part = tuple[Path, str]
"""What one file of a source holds under a name."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were dealt with since the last call; from any thread, one at a time."""

_INDEX = "model.safetensors.index.json"
_KERNEL_CHUNK = 2**26  # bytes that the kernel is told to copy at once; none of them count as memory


class Stopped(BaseException):
    """Raised in a worker once another failed or the run was interrupted."""


@dataclass
class Crew:
    """The workers of a run: what they share."""

    workers: int
    progress: Progress | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, count: int) -> None:
        """Say that ``count`` bytes are done. Raises Stopped when the run is over."""
        if self._stop.is_set():
            raise Stopped
        if self.progress is not None:
            with self._lock:
                self.progress(count)

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Carry out all tasks, in order as workers are free; the first failure ends the run and is raised."""
        with ThreadPoolExecutor(self.workers, "glmlike") as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failures = [error for future in done if (error := future.exception()) is not None]
                if failures:
                    raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise


@dataclass(frozen=True)
class Written:
    """What a run left: the sums of every tensor by (file, name), and how many tensors an earlier run had written."""

    sums: dict[tuple[str, str], Sums]
    resumed: int


def carry_out(plan: Plan, folder: Path, journal: Journal, crew: Crew) -> Written:
    """Write every file of weights of ``plan`` into ``folder``, but for what the journal and the files agree is done.

    Raises:
        CheckpointError: the source contradicts itself or changed while it was read; a cast overflows.
        OSError: the disk is full or fails.
    """
    targets = {container.path: _prepare(folder, container) for container in plan.containers}
    places = {container.path: container.at for container in plan.containers}
    checked = {container.path: container.checked for container in plan.containers}
    resumed: list[Step] = []

    def do(step: Step) -> None:
        target, at = targets[step.file], places[step.file][step.name]
        if plan.verify == "none" and not checked[step.file]:
            _move(step, target, at, plan, crew)
            return
        known = journal.tensors.get((step.file, step.name))
        stored = Stored(target, at, step.dtype, step.shape)
        if known is not None and sums_of(stored, plan, crew) == known:
            resumed.append(step)
            return
        journal.tensor_done(step.file, step.name, _write(step, target, at, plan, crew, fresh=known is None))

    def hash_source(part: Part) -> None:
        file, name = _named(part, plan)
        if (file, name) not in journal.sources:
            stream = plan.found.checkpoint.stored(*part)
            journal.source_done(file, name, sums_of(stream, plan, crew).sha256)

    moved, others = source_parts(plan)
    crew.run(_tasks(plan, others, do, hash_source))
    if plan.verify != "none":
        hashes = {_named(part, plan): journal.tensors[step.file, step.name].sha256 for part, step in moved.items()}
        plan.source_hashes.update(hashes | {_named(part, plan): journal.sources[_named(part, plan)] for part in others})
    _frame(plan, folder, targets, journal)
    return Written(dict(journal.tensors), len(resumed))


def source_parts(plan: Plan) -> tuple[dict[Part, Step], dict[Part, int]]:
    """What the files of the source hold of its tensors: what some step moves whole, with the step, and the others.

    The first have the hash of what is written, and need none of their own; of the others the size is said.
    """
    steps = {_place(step.stream): step for step in plan.steps if isinstance(step.stream, Stored)}
    checkpoint = plan.found.checkpoint
    names = [name for name in checkpoint.tensors if name not in plan.dropped]
    parts = dict.fromkeys(part for name in names for part in checkpoint.parts(name))
    moved: dict[Part, Step] = {}
    others: dict[Part, int] = {}
    for part in parts:
        stream = checkpoint.stored(*part)
        step = steps.get(_place(stream)) if isinstance(stream, Stored) else None
        if step is not None:
            moved[part] = step
        else:
            others[part] = size_of(stream)
    return moved, others


def _place(stream: Stored) -> tuple[Path, int, int]:
    return stream.file.path, stream.offset, size_of(stream)


def _named(part: Part, plan: Plan) -> tuple[str, str]:
    return (part[0].name if part[0] == plan.source else part[0].relative_to(plan.source).as_posix()), part[1]


def _tasks(
    plan: Plan, others: Iterable[Part], do: Callable[[Step], None], hash_source: Callable[[Part], None]
) -> Iterator[Callable[[], None]]:
    """What of the source needs a hash of its own is hashed beside the step that reads it, from the system's memory."""
    left = dict.fromkeys(others) if plan.verify != "none" else {}
    for step in plan.steps:
        yield partial(do, step)
        for part in (part for name in step.sources for part in plan.found.checkpoint.parts(name)):
            if part in left:
                del left[part]
                yield partial(hash_source, part)
    for part in left:
        yield partial(hash_source, part)


def _prepare(folder: Path, container: Container) -> ByteFile:
    """The file of a container, of its final size, with what an earlier run wrote."""
    path = folder / container.path
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        os.ftruncate(fd, container.size)
    finally:
        os.close(fd)
    return ByteFile(path, writable=True)


def _write(step: Step, target: ByteFile, at: int, plan: Plan, crew: Crew, *, fresh: bool) -> Sums:
    """Write one tensor; a hole is left one where the file is ``fresh``, and holds no bytes of an earlier run."""

    def write(view: memoryview, start: int, hole: bool) -> None:
        if not (hole and fresh):
            target.write(view, at + start)

    try:
        return _read(step.stream, plan.memory.chunk(step.stream), crew, write, plan.ranked is not None)
    except CheckpointError as error:
        raise CheckpointError(f"{plan.source}: {step.sources[0]!r}: {str(error).rstrip('.')}.") from None


def _move(step: Step, target: ByteFile, at: int, plan: Plan, crew: Crew) -> None:
    """Write one tensor without hashing it: by the kernel, where only bytes are moved."""
    if step.how != "bytes" or any(isinstance(part, (Columns, SideBySide)) for part in leaves(step.stream)):
        _write(step, target, at, plan, crew, fresh=True)
        return
    for start, stop in stretches(step.stream, _KERNEL_CHUNK):
        place = at + start
        for file, offset, count in stored_runs(step.stream, start, stop):
            if not file.is_hole(offset, offset + count) and not target.copy_from(file, offset, count, place):
                _copy(Stored(file, offset, "U8", (count,)), target, place, plan)
            place += count
        crew.advance(stop - start)


def _copy(stream: Stored, target: ByteFile, at: int, plan: Plan) -> None:
    """Read and write the bytes of a stretch."""
    size = plan.memory.chunk(stream)
    buffer = memoryview(bytearray(size))
    for start, stop in stretches(stream, size):
        stream.read_into(buffer[: stop - start], start)
        target.write(buffer[: stop - start], at + start)


def sums_of(stream: Stream, plan: Plan, crew: Crew) -> Sums:
    """The sums of a tensor, read in stretches of a worker's share."""
    return _read(stream, plan.memory.chunk(stream), crew, lambda view, start, hole: None, plan.ranked is not None)


def _read(stream: Stream, size: int, crew: Crew, use: Callable[[memoryview, int, bool], None], with_crc: bool) -> Sums:
    sha256, crc32 = hashlib.sha256(), 0
    buffer = memoryview(bytearray())
    for start, stop in stretches(stream, size):
        if len(buffer) < stop - start:
            buffer = memoryview(bytearray(stop - start))
        view = buffer[: stop - start]
        hole = stream.is_hole(start, stop)
        if hole:
            view = memoryview(bytes(stop - start))
        else:
            stream.read_into(view, start)
        sha256.update(view)
        crc32 = zlib.crc32(view, crc32) if with_crc else 0
        use(view, start, hole)
        crew.advance(stop - start)
    return Sums(sha256.hexdigest(), crc32)


def _frame(plan: Plan, folder: Path, targets: dict[str, ByteFile], journal: Journal) -> None:
    """Headers, directories and the index: written last, since they hold the hashes of what is written."""
    for container in plan.containers:
        mine = [step.name for step in plan.steps if step.file == container.path]
        sums = {name: journal.tensors.get((container.path, name), Sums()) for name in mine}
        for offset, content in container.frame(sums):
            targets[container.path].write(memoryview(content), offset)
    if plan.ranked is None and len(plan.containers) > 1:
        (folder / _INDEX).write_text(json.dumps(index_of(plan), indent=2) + "\n", encoding="utf8")
    for name, text in ({} if plan.ranked is None else plan.ranked.texts).items():
        (folder / name).write_text(text, encoding="utf8")
