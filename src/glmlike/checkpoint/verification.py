"""Reading a result back: every tensor by its hash, or the source made again from it, byte for byte, in stretches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.detection import Detection, native_streams
from glmlike.checkpoint.execute import Crew, Written, sums_of
from glmlike.checkpoint.plan import Plan, Step
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.shards import open_checkpoint
from glmlike.checkpoint.streams import Stored, Stream, first_difference, size_of
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
    stored = Stored(ByteFile(folder / step.file), _at(plan, step), step.dtype, step.shape)
    if sums_of(stored, plan, crew) != written.sums[step.file, step.name]:
        raise CheckpointError(
            f"{folder / step.file}: {step.name!r} read back is not what was written: the disk or its file system fails."
        )


def _inverse_tasks(
    plan: Plan, result: Detection, folder: Path, written: Written, crew: Crew
) -> Iterator[Callable[[], None]]:
    """A tensor that was moved whole is compared by its hash, so the source is not read again; others byte by byte."""
    whole = {(folder / step.file, _at(plan, step)): step for step in plan.steps if isinstance(step.stream, Stored)}
    native = native_streams(result)
    for rule in plan.found.table.steps(plan.found.spec):
        remade = to_foreign_streams(rule.layout, [native[name] for name in rule.native])
        for name, stream in zip(rule.foreign, remade, strict=True):
            original = plan.found.stream(name)
            step = whole.get((stream.file.path, stream.offset)) if isinstance(stream, Stored) else None
            if step is None or step.stream != original:
                yield partial(_require_same, name, original, stream, plan, crew)
    for step in whole.values():
        yield partial(_require_hash, step, plan, folder, written, crew)


def _require_same(name: str, original: Stream, remade: Stream, plan: Plan, crew: Crew) -> None:
    alike = (original.dtype, original.shape) == (remade.dtype, remade.shape)
    size = min(plan.memory.chunk(original), plan.memory.chunk(remade)) // 2
    if not alike or first_difference([original, remade], size) is not None:
        raise CheckpointError(
            f"{plan.source}: {name!r} made again from the result differs from the original. This is a bug of glmlike, "
            "or the disk fails."
        )
    crew.advance(size_of(original))
