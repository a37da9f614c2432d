"""Reading a result back: every tensor by its hash, or the source made again from it, byte for byte, in stretches.

Where bytes were only moved, the source made again is compared without being read again: the inverse says where each
stretch of a source tensor is in the result, the plan from where that place was written. If these agree for every
stretch, what is left to prove is that the result holds what was written, by the hash of each tensor. Of a tensor that
shares blocks with the source those were not written, and the rest is compared.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.detection import Detection, native_streams
from glmlike.checkpoint.execute import Crew, Written, outside, sums_of
from glmlike.checkpoint.plan import Plan, Step, moved_runs
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.shards import open_checkpoint
from glmlike.checkpoint.streams import Stored, Stream, first_difference, size_of, stored_runs
from glmlike.checkpoint.through_layouts import to_foreign_streams
from glmlike.errors import CheckpointError

_COMPARED = 2**20  # bytes of two copies in memory at a time


def verify_written(plan: Plan, folder: Path, written: Written, crew: Crew, result: Detection | None = None) -> None:
    """What stands in ``folder`` is what ``plan.verify`` asks for; its files are opened anew, as any reader opens them.

    "hash": every tensor of the result has the hash of what was to be written. "roundtrip": the inverse of the plan,
    applied to the result, gives every tensor of the source but the declared drops, bit for bit. ``result`` is what
    ``folder`` holds, where it is no folder of a format.

    Raises:
        CheckpointError: the first tensor that differs, or that the plan has forgotten.
    """
    _require_all_accounted_for(plan)
    if plan.verify == "none":
        return
    result = result or _open(plan, folder)
    if plan.verify == "hash":
        crew.run(partial(_require_hash, step, plan, folder, written, crew) for step in plan.steps)
        return
    crew.run(_inverse_tasks(plan, result, folder, written, crew))


def _open(plan: Plan, folder: Path) -> Detection:
    spec = plan.found.spec
    if plan.ranked is not None:
        checkpoint = RANKED[plan.target_format].open_folder(folder, spec)[3]
        checkpoint.require_equal_copies(_COMPARED)
        return Detection(folder, plan.target_format, spec, plan.config, checkpoint)
    return Detection(folder, plan.target_format, spec, plan.config, open_checkpoint(folder))


def _require_all_accounted_for(plan: Plan) -> None:
    used = {name for step in plan.steps for name in step.sources} | set(plan.dropped)
    copies = {name for rule in plan.found.table.steps(plan.found.spec) for name in rule.foreign}
    scales = {name + SCALE for name in plan.found.integers}
    forgotten = plan.found.checkpoint.tensors.keys() - used - copies - scales
    if forgotten:
        raise CheckpointError(f"{plan.source}: the plan has forgotten {min(forgotten)!r}. This is a bug of glmlike.")


def _at(plan: Plan, step: Step) -> int:
    return next(container.at[step.name] for container in plan.containers if container.path == step.file)


def _require_hash(step: Step, plan: Plan, folder: Path, written: Written, crew: Crew) -> None:
    """That a tensor of the result is what was written: by its hash, or by what of it are no blocks of the source."""
    stored = Stored(ByteFile(folder / step.file), _at(plan, step), step.dtype, step.shape)
    shared = written.shared.get((step.file, step.name))
    if shared:
        same = _rest_is_the_sources(step, stored, shared)
        crew.advance(step.bytes)
    else:
        same = sums_of(stored, plan, crew) == written.sums[step.file, step.name]
    if not same:
        raise CheckpointError(
            f"{folder / step.file}: {step.name!r} read back is not what was written: the disk or its file system fails."
        )


def _rest_is_the_sources(step: Step, stored: Stored, shared: Sequence[tuple[int, int]]) -> bool:
    """Whether all that a moved tensor does not share with the source is equal to it."""
    for place, (file, offset, count) in moved_runs(step):
        for start, stop in outside(shared, place, place + count):
            size = (stop - start,)
            there = Stored(file, offset + start - place, "U8", size)
            if first_difference([there, Stored(stored.file, stored.offset + start, "U8", size)], _COMPARED) is not None:
                return False
    return True


def _inverse_tasks(
    plan: Plan, result: Detection, folder: Path, written: Written, crew: Crew
) -> Iterator[Callable[[], None]]:
    """Every source tensor, by the places of its stretches or, where numbers were not only moved, byte by byte.

    Tensors that the places rest on, and those that were moved whole, are compared by their hashes.
    """
    places = _Places(plan, folder)
    hashed = {(step.file, step.name): step for step in plan.steps if isinstance(step.stream, Stored)}
    native = native_streams(result)
    for rule in plan.found.table.steps(plan.found.spec):
        remade = to_foreign_streams(rule.layout, [native[name] for name in rule.native])
        for name, stream in zip(rule.foreign, remade, strict=True):
            original = plan.found.stream(name)
            steps = places.proving(original, stream)
            if steps is None:
                yield partial(_require_same, name, original, stream, plan, crew)
            else:
                hashed |= {(step.file, step.name): step for step in steps}
    for step in hashed.values():
        yield partial(_require_hash, step, plan, folder, written, crew)


Run = tuple[Path, int, int]
"""A stretch of a file: where it begins and how many bytes it has."""


class _Places:
    """From which stretch of the source each stretch of the result was written."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        at = {container.path: container.at for container in plan.containers}
        self._steps: dict[Path, list[tuple[int, Step]]] = {folder / file: [] for file in plan.files}
        for step in plan.steps:
            self._steps[folder / step.file].append((at[step.file][step.name], step))
        for steps in self._steps.values():
            steps.sort(key=lambda found: found[0])

    def proving(self, original: Stream, remade: Stream) -> list[Step] | None:
        """The steps that wrote the bytes of ``original`` to where those of ``remade`` are read; None: not only they."""
        if (original.dtype, original.shape) != (remade.dtype, remade.shape):
            return None
        try:
            wanted = _joined(_runs(original, 0, size_of(original)))
            pieces = [
                piece
                for file, offset, count in _runs(remade, 0, size_of(remade))
                for piece in self._within(file, offset, offset + count)
            ]
            came_from = _joined(run for step, start, stop in pieces for run in _runs(step.stream, start, stop))
        except TypeError:
            return None
        return [step for step, _, _ in pieces] if wanted == came_from else None

    def _within(self, file: Path, start: int, stop: int) -> Iterator[tuple[Step, int, int]]:
        """The stretches of tensors that make up a stretch of a file; nothing where a part of it is no tensor's."""
        steps = self._steps[file]
        at = max(0, bisect_right(steps, start, key=lambda found: found[0]) - 1)
        while start < stop and at < len(steps):
            begin, step = steps[at]
            last = min(stop, begin + step.bytes)
            if begin <= start < last:
                yield step, start - begin, last - begin
                start = last
            at += 1


def _runs(stream: Stream, start: int, stop: int) -> Iterator[Run]:
    return ((file.path, offset, count) for file, offset, count in stored_runs(stream, start, stop))


def _joined(runs: Iterable[Run]) -> list[Run]:
    """The same stretches, those that follow one another as one."""
    found: list[Run] = []
    for path, offset, count in runs:
        if found and found[-1][0] == path and found[-1][1] + found[-1][2] == offset:
            path, offset, count = path, found[-1][1], found[-1][2] + count
            found.pop()
        if count:
            found.append((path, offset, count))
    return found


def _require_same(name: str, original: Stream, remade: Stream, plan: Plan, crew: Crew) -> None:
    alike = (original.dtype, original.shape) == (remade.dtype, remade.shape)
    size = min(plan.memory.chunk(original), plan.memory.chunk(remade)) // 2
    if not alike or first_difference([original, remade], size) is not None:
        raise CheckpointError(
            f"{plan.source}: {name!r} made again from the result differs from the original. This is a bug of glmlike, "
            "or the disk fails."
        )
    crew.advance(size_of(original))
