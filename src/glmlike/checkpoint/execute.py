"""Carrying a plan out: several threads read, hash and write stretches of tensors, each within its share of memory.

Every file has its final size before a byte of it is written, and every tensor its place, so tensors are written in any
order, by any thread, and a hole in a source stays one. A tensor that is done is noted in the journal with its hash.
If their sha256 are asked for, files of the source are read from end to end beside that, while the system still has
their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from glmlike.checkpoint import provenance
from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.checksums import tensor_hasher
from glmlike.checkpoint.containers import Container, Sums
from glmlike.checkpoint.journal import Journal
from glmlike.checkpoint.plan import INDEX, Plan, Step, file_names, index_of, moved_runs
from glmlike.checkpoint.streams import Stored, Stream, stretches
from glmlike.errors import CheckpointError

Progress = Callable[[int], None]
"""Called with the number of bytes that were dealt with since the last call; from any thread, one at a time."""

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
    """What a run left, by (file, name): the sums of every tensor, and which stretches share blocks with the source.

    ``resumed`` counts the tensors that an earlier run had written.
    """

    sums: dict[tuple[str, str], Sums]
    resumed: int
    shared: dict[tuple[str, str], list[tuple[int, int]]] = field(default_factory=dict)


def carry_out(plan: Plan, folder: Path, journal: Journal, crew: Crew) -> Written:
    """Write every file of weights of ``plan`` into ``folder``, but for what the journal and the files agree is done.

    Raises:
        CheckpointError: the source contradicts itself or changed while it was read; a cast overflows; a file has not
            the sha256 that the Hub said.
        OSError: the disk is full or fails.
    """
    targets = {container.path: _prepare(folder, container) for container in plan.containers}
    places = {container.path: container.at for container in plan.containers}
    checked = {container.path: container.checked for container in plan.containers}
    resumed: list[Step] = []
    shared: dict[tuple[str, str], list[tuple[int, int]]] = {}

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
        spans = shared[step.file, step.name] = _share(step, target, at)
        journal.tensor_done(step.file, step.name, _write(step, target, at, plan, crew, spans, fresh=known is None))

    def hash_source(file: str) -> None:
        if file not in journal.sources:
            found, expected = _sha256_of(sources[file], plan, crew), said.get(file)
            if expected not in (None, found):
                raise CheckpointError(
                    f"{sources[file]}: its sha256 is {found}, but was {expected} on the Hub. Download it again; or, if "
                    "you changed it yourself, copy the folder without the notes of the download (.cache)."
                )
            journal.source_done(file, found)

    sources = file_names(plan.found)
    said = provenance.published(plan.source, sources)
    crew.run(_tasks(plan, do, hash_source))
    if plan.source_files.computed:
        plan.source_files.hashes.update(journal.sources)
    _frame(plan, folder, targets, journal)
    return Written(dict(journal.tensors), len(resumed), shared)


def source_bytes(plan: Plan) -> int:
    """The size of the source's files of weights that are hashed."""
    return sum(path.stat().st_size for path in plan.found.checkpoint.files if plan.source_files.computed)


def _tasks(plan: Plan, do: Callable[[Step], None], hash_source: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Every step; a file of the source is hashed by one worker while others do the steps that read it."""
    checkpoint = plan.found.checkpoint
    left = {path: file for file, path in file_names(plan.found).items()} if plan.source_files.computed else {}
    for step in plan.steps:
        for path, _ in (part for name in step.sources for part in checkpoint.parts(name)):
            if path in left:
                yield partial(hash_source, left.pop(path))
        yield partial(do, step)
    for file in left.values():
        yield partial(hash_source, file)


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


def _write(
    step: Step,
    target: ByteFile,
    at: int,
    plan: Plan,
    crew: Crew,
    shared: Sequence[tuple[int, int]] = (),
    *,
    fresh: bool,
) -> Sums:
    """Write one tensor but for its ``shared`` stretches.

    A hole is left one where the file is ``fresh``, and holds no bytes of an earlier run.
    """

    def write(view: memoryview, start: int, hole: bool) -> None:
        if not (hole and fresh):
            for first, last in outside(shared, start, start + len(view)):
                target.write(view[first - start : last - start], at + first)

    try:
        sums = _read(step.stream, plan.memory.chunk(step.stream), crew, write, plan.ranked is not None)
        target.begin_to_store(at, step.bytes)
        return sums
    except CheckpointError as error:
        raise CheckpointError(f"{plan.source}: {step.sources[0]!r}: {str(error).rstrip('.')}.") from None


def _move(step: Step, target: ByteFile, at: int, plan: Plan, crew: Crew) -> None:
    """Write one tensor without hashing it: by the kernel, where only bytes are moved."""
    runs = moved_runs(step)
    if not runs:
        _write(step, target, at, plan, crew, fresh=True)
        return
    shared = _share(step, target, at)
    for place, (file, offset, count) in runs:
        for start, stop in outside(shared, place, place + count):
            for first in range(start, stop, _KERNEL_CHUNK):
                size = min(_KERNEL_CHUNK, stop - first)
                begin = offset + first - place
                if not file.is_hole(begin, begin + size) and not target.copy_from(file, begin, size, at + first):
                    _copy(Stored(file, begin, "U8", (size,)), target, at + first, plan)
                target.begin_to_store(at + first, size)
                crew.advance(size)
    crew.advance(sum(last - first for first, last in shared))


def _share(step: Step, target: ByteFile, at: int) -> list[tuple[int, int]]:
    """The stretches of a tensor whose blocks the target now shares with the source, where the file system can do so."""
    found = []
    for place, (file, offset, count) in moved_runs(step):
        first, last = target.share_from(file, offset, count, at + place)
        if last > first:
            found.append((place + first, place + last))
    return found


def outside(stretches: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What of ``[start, stop)`` is in none of the ``stretches``, which are in order."""
    for first, last in stretches:
        if first >= stop:
            break
        if start < first:
            yield start, first
        start = max(start, last)
    if start < stop:
        yield start, stop


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
    hasher, crc32 = tensor_hasher(), 0
    for view, start, hole in _views(stream, size):
        hasher.update(view)
        crc32 = zlib.crc32(view, crc32) if with_crc else 0
        use(view, start, hole)
        crew.advance(len(view))
    return Sums(hasher.hexdigest(), crc32)


def _sha256_of(path: Path, plan: Plan, crew: Crew) -> str:
    """The sha256 of a file of the source."""
    sha256 = hashlib.sha256()
    whole = Stored(ByteFile(path), 0, "U8", (path.stat().st_size,))
    for view, _, _ in _views(whole, plan.memory.chunk(whole)):
        sha256.update(view)
        crew.advance(len(view))
    return sha256.hexdigest()


def _views(stream: Stream, size: int) -> Iterator[tuple[memoryview, int, bool]]:
    """A stream in stretches of ``size`` bytes: the bytes, where they begin, and whether they are a hole's.

    All are in one buffer: a stretch is gone when the next is asked for.
    """
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
        yield view, start, hole


def _frame(plan: Plan, folder: Path, targets: dict[str, ByteFile], journal: Journal) -> None:
    """Headers, directories and the index: written last, since they hold the hashes of what is written."""
    for container in plan.containers:
        mine = [step.name for step in plan.steps if step.file == container.path]
        sums = {name: journal.tensors.get((container.path, name), Sums()) for name in mine}
        for offset, content in container.frame(sums):
            targets[container.path].write(memoryview(content), offset)
    if plan.ranked is None and len(plan.containers) > 1:
        (folder / INDEX).write_text(json.dumps(index_of(plan), indent=2) + "\n", encoding="utf8")
    for name, text in ({} if plan.ranked is None else plan.ranked.texts).items():
        (folder / name).write_text(text, encoding="utf8")
