"""Quantize a folder: planned from headers, carried out a tensor at a time, read back, and moved into place whole."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch

from glmlike.checkpoint import provenance
from glmlike.checkpoint.companions import carried, copy_companions, undefaulted_tokens
from glmlike.checkpoint.destination import fresh_folder, require_apart, require_free
from glmlike.checkpoint.detection import Detection, detect, native_streams, require_equal_copies
from glmlike.checkpoint.memory import resident
from glmlike.checkpoint.packed import PackedCheckpoint
from glmlike.checkpoint.plan import file_names
from glmlike.checkpoint.shards import parse_size
from glmlike.checkpoint.spooled import require_written, spooled_shards
from glmlike.checkpoint.streams import FLOATS, Stream, read_all, size_of, torch_dtype
from glmlike.configuration import GlmLikeConfig
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import Generation, write_config
from glmlike.quantizing.matrices import Quantizer, quantizer_of
from glmlike.quantizing.methods import Method, method_of
from glmlike.spec import DecoderSpec

_SHARD_SIZE = "5GB"
_SLACK = 96 * 2**20  # the allocator's, and what the libraries import when they first work
_WORKING = 12
"""Bytes a number of the matrix at hand that quantizers compute with: at most three copies of it in float32."""
_DTYPES = ("float32", "float16", "bfloat16")

Watch = Callable[[int], AbstractContextManager["Callable[[int], None] | None"]]


@dataclass(frozen=True)
class QuantizationPlan:
    """What a quantization will do. ``kept`` are the matrices that stay floats; norms and biases do anyway.

    ``bytes_before`` and ``bytes_after`` are those of all tensors; ``memory`` the expected peak of the whole process:
    no more than one matrix is in memory, by any method.
    """

    source: Path
    destination: Path
    source_format: str
    method: str
    packages: dict[str, str]
    dtype: str
    quantized: int
    kept: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    memory: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        return {**asdict(self), "source": str(self.source), "destination": str(self.destination)}


@dataclass(frozen=True)
class QuantizationReport(QuantizationPlan):
    """What a quantization did: the plan, with ``bytes_after`` as written, the tensors of the files, and the seconds."""

    tensors: int = 0
    seconds: float = 0.0


@dataclass
class _Job:
    """What the plan was made of."""

    found: Detection
    method: Method
    streams: dict[str, Stream]
    dtype: torch.dtype
    config: dict[str, Any]
    quantizer: Quantizer
    plan: QuantizationPlan


@overload
def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    method: str,
    skip: Sequence[str] = ...,
    dtype: str | None = ...,
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    watch: Watch | None = ...,
    dry_run: Literal[False] = ...,
) -> QuantizationReport: ...


@overload
def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    method: str,
    skip: Sequence[str] = ...,
    dtype: str | None = ...,
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    watch: Watch | None = ...,
    dry_run: Literal[True],
) -> QuantizationPlan: ...


def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    method: str,
    skip: Sequence[str] = (),
    dtype: str | None = None,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    max_shard_size: str | int = _SHARD_SIZE,
    watch: Watch | None = None,
    dry_run: bool = False,
) -> QuantizationPlan | QuantizationReport:
    """Write the checkpoint ``src``, of any known format, quantized by ``method`` to the new folder ``dst``.

    ``method`` is a name of :data:`glmlike.quantizing.METHODS`. ``dst`` holds native names and a config.json with the
    ``quantization_config``, and loads by ``AutoModel.from_pretrained(dst)``; by the methods ``gguf-…`` it is one file
    for llama.cpp, whose name ends in .gguf. The numbers are those that ``from_pretrained(src, quantization_config=…)``
    and ``save_pretrained`` write, but no more than one matrix is in memory. Embeddings and the head stay floats, as do
    modules whose name has a part in ``skip``. ``dtype`` is that of all floats (default: that of most of ``src``).

    Tokenizer, generation config, chat template, licence and card travel; ``glmlike.json`` says of what, by which
    method and with which versions the files were made. ``dst`` appears whole or not at all. ``dry_run=True`` returns
    the plan, bytes before and after included, and writes nothing.

    Raises:
        ConfigError: no such method, ``src`` is quantized already, or an option that GGUF has not.
        CheckpointError: ``src`` is damaged, ``dst`` is taken, or its disk too small.
        GlmLikeError: a package that the method needs is missing.
    """
    started = time.perf_counter()
    chosen = method_of(method)
    limit = parse_size(max_shard_size)
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(_DTYPES)}.")
    if chosen.engine == "gguf":
        _refuse_for_gguf(skip=skip or None, dtype=dtype, max_shard_size=max_shard_size)
        return _to_gguf(Path(src), Path(dst), chosen, generation, spec, dry_run=dry_run)
    require_apart(Path(dst), Path(src))
    require_free(Path(dst))
    job = _prepare(detect(src, generation=generation, spec=spec), Path(dst), chosen, skip, dtype)
    if dry_run:
        return job.plan
    _require_space(job.plan, limit)
    require_equal_copies(job.found)
    tensors, size = _carry_out(job, limit, watch)
    return QuantizationReport(
        **{**vars(job.plan), "bytes_after": size}, tensors=tensors, seconds=time.perf_counter() - started
    )


def _refuse_for_gguf(**options: Any) -> None:
    usual = {"max_shard_size": _SHARD_SIZE}
    given = next((name for name, value in options.items() if value not in (None, usual.get(name))), None)
    if given is not None:
        raise ConfigError(
            f"{given}={options[given]!r}: a GGUF file has types by llama.cpp's own rule, and is one file. Drop it."
        )


def _require_floats(found: Detection) -> None:
    """Raise ConfigError if the matrices of the source are packed integers."""
    if isinstance(found.checkpoint, PackedCheckpoint):
        raise ConfigError(
            f"{found.folder}: its matrices are quantized already ({found.checkpoint.config}), and a second time would "
            f"add a second error. Quantize the floats it was made of; or, if they are not to be had, first run "
            f"`glmlike convert {found.folder} DST --to glmlike`, which makes floats of the integers, and quantize DST."
        )


def _prepare(found: Detection, target: Path, method: Method, skip: Sequence[str], dtype: str | None) -> _Job:
    _require_floats(found)
    streams = native_streams(found)
    kind = torch_dtype(_most_common(streams)) if dtype is None else cast(torch.dtype, getattr(torch, dtype))
    config = {**undefaulted_tokens("glmlike"), **carried(found), **write_config(found.spec, "glmlike")}
    config["dtype"] = str(kind).removeprefix("torch.")
    quantizer = quantizer_of(method, GlmLikeConfig.from_dict(dict(config)), kind, skip)
    taken = {name: quantizer.takes(name) for name in streams}
    plan = QuantizationPlan(
        source=found.folder,
        destination=target,
        source_format=found.format,
        method=method.name,
        packages=method.versions(),
        dtype=config["dtype"],
        quantized=sum(taken.values()),
        kept=tuple(name for name, stream in streams.items() if len(stream.shape) > 1 and not taken[name]),
        bytes_before=sum(map(size_of, streams.values())),
        bytes_after=sum(_size_after(method, stream, kind, taken[name]) for name, stream in streams.items()),
        memory=_peak(streams, taken, kind),
        notes=found.notes,
    )
    return _Job(found, method, streams, kind, config, quantizer, plan)


def _most_common(streams: dict[str, Stream]) -> str:
    """The dtype of most of the numbers."""
    sizes: dict[str, int] = {}
    for stream in streams.values():
        sizes[stream.dtype] = sizes.get(stream.dtype, 0) + size_of(stream)
    return max(sizes, key=lambda name: sizes[name])


def _count(stream: Stream) -> int:
    return torch.Size(stream.shape).numel()


def _size_after(method: Method, stream: Stream, dtype: torch.dtype, taken: bool) -> int:
    if taken:
        assert method.stored is not None
        return method.stored(stream.shape[0], stream.shape[1], dtype.itemsize)
    return _count(stream) * dtype.itemsize if stream.dtype in FLOATS else size_of(stream)


def _peak(streams: dict[str, Stream], taken: dict[str, bool], dtype: torch.dtype) -> int:
    working = (
        size_of(stream) + _count(stream) * (dtype.itemsize + (_WORKING if taken[name] else 0))
        for name, stream in streams.items()
    )
    return resident() + _SLACK + max(working)


def _require_space(plan: QuantizationPlan, limit: int) -> None:
    parent = plan.destination.resolve().parent
    there = next(path for path in (parent, *parent.parents) if path.exists())
    needed, free = plan.bytes_after + min(limit, plan.bytes_after), shutil.disk_usage(there).free
    if needed > free:
        raise CheckpointError(
            f"{plan.destination}: needs {needed / 1e9:.1f} GB (the file at hand is written twice), its disk has "
            f"{free / 1e9:.1f} GB free. Make room, pass a smaller max_shard_size, or choose another disk."
        )


def _carry_out(job: _Job, limit: int, watch: Watch | None) -> tuple[int, int]:
    """Write, read back and move into place; the number of tensors and of their bytes."""
    found, plan = job.found, job.plan
    before = provenance.earlier_record(found.folder)
    with fresh_folder(plan.destination, found.folder) as partial, (watch or _unwatched)(plan.bytes_before) as progress:
        with spooled_shards(partial, limit, job.quantizer.metadata) as shards:
            for name, stream in job.streams.items():
                tensor = read_all(stream)
                tensor = tensor.to(job.dtype) if tensor.is_floating_point() else tensor
                made = job.quantizer.made(name, tensor) if job.quantizer.takes(name) else {name: tensor}
                for key, value in made.items():
                    shards.add(key, value)
                if progress is not None:
                    progress(size_of(stream))
        written = require_written(partial, shards.sums)
        config = {**job.config, "quantization_config": job.quantizer.fields}
        (partial / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf8")
        (partial / provenance.RECORD).write_text(_record(job, config, limit, written, before), encoding="utf8")
        copy_companions(found.folder if found.folder.is_dir() else found.folder.parent, partial)
    return len(shards.sums), int(shards.index["metadata"]["total_size"])


def _unwatched(total: int) -> AbstractContextManager[None]:
    return nullcontext()


def _record(
    job: _Job, config: dict[str, Any], limit: int, written: dict[str, dict[str, str]], before: dict[str, Any] | None
) -> str:
    """``glmlike.json``: that of a conversion to the native format, and by what the numbers were quantized."""
    found = job.found
    folder = found.folder if found.folder.is_dir() else found.folder.parent
    facts = {
        "version": provenance.version(),
        "files": provenance.identity(list(found.checkpoint.files), folder),
        "config": json.loads(json.dumps(config, default=str)),
        "limit": limit,
    }
    names = file_names(found) if found.folder.is_dir() else ()
    hashes = provenance.computed(found.folder, names)
    origin, identity = provenance.origin_of(found.folder), provenance.sha256_of(facts)
    text = provenance.record(origin, found.format, "glmlike", identity, hashes, written, before)
    quantized = {"method": job.method.name, "by": job.plan.packages, "kept": list(job.plan.kept)}
    return json.dumps({**json.loads(text), "quantization": quantized}, indent=1, ensure_ascii=False) + "\n"


def _to_gguf(
    source: Path,
    target: Path,
    method: Method,
    generation: Generation | None,
    spec: str | DecoderSpec | None,
    *,
    dry_run: bool,
) -> QuantizationPlan | QuantizationReport:
    from glmlike.checkpoint import gguf

    gguf.require_file(target)
    kind = cast(gguf.GgufDtype, method.name.removeprefix("gguf-"))
    found = detect(source, generation=generation, spec=spec)
    _require_floats(found)
    streams = native_streams(found)
    size, kinds = gguf.planned_file(found, kind)
    plan = QuantizationPlan(
        source=found.folder,
        destination=target,
        source_format=found.format,
        method=method.name,
        packages=method.versions(),
        dtype=kind,
        quantized=sum(found_kind == kind.upper() for found_kind in kinds.values()),
        kept=tuple(f"{name} ({found_kind})" for name, found_kind in kinds.items() if found_kind != kind.upper()),
        bytes_before=sum(map(size_of, streams.values())),
        bytes_after=size,
        memory=_peak(streams, dict.fromkeys(streams, True), torch.float32),
        notes=found.notes,
    )
    if dry_run:
        return plan
    report = gguf.write_gguf(source, target, dtype=kind, generation=generation, spec=spec)
    done = {"bytes_after": report.bytes, "notes": report.notes}
    return QuantizationReport(**{**vars(plan), **done}, tensors=report.tensors, seconds=report.seconds)


__all__ = ["QuantizationPlan", "QuantizationReport", "quantize"]
