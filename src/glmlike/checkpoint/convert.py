"""Convert a folder to another format, and compare two folders: readers of the same plan."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, overload

from glmlike.checkpoint import provenance
from glmlike.checkpoint.checksums import tensor_hasher
from glmlike.checkpoint.companions import carried, copy_companions, undefaulted_tokens
from glmlike.checkpoint.containers import Sums
from glmlike.checkpoint.destination import partial_folder, require_apart, require_new
from glmlike.checkpoint.detection import (
    Detection,
    detect,
    look,
    native_streams,
    native_tensors,
    require_equal_copies,
    to_native,
)
from glmlike.checkpoint.execute import Crew, Progress, carry_out, source_bytes
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.gguf_reading import GgufDetection, detect_gguf
from glmlike.checkpoint.given import require_divisible
from glmlike.checkpoint.headers import TORCH_NAMES
from glmlike.checkpoint.plan import DTYPES, Dtype, Plan, Verify, config_file, make_plan, needs_torch
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.rules import require_exact
from glmlike.checkpoint.shards import parse_size
from glmlike.checkpoint.streams import Stream, digest
from glmlike.checkpoint.tokenizers import NewTokenizer, written_anew
from glmlike.checkpoint.verification import verify_written
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import FORMATS, Format, Generation, write_config
from glmlike.spec import DecoderSpec

__all__ = ["ConversionReport", "Detection", "convert", "detect", "fingerprint", "native_tensors", "to_native", "verify"]

_SHARD_SIZE = "5GB"
_READ = 2**20

Watch = Callable[[int], AbstractContextManager[Progress | None]]
"""Given the bytes that a run will deal with in all, a context in which it says how many it has."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: both ends, the tensors and bytes written, the declared drops, and the seconds it took.

    ``bytes_moved`` are those that were moved without being decoded; ``resumed`` the tensors that an interrupted run had
    written; ``verify`` how the result was read back. ``notes`` say what was not carried over bit for bit: see
    :attr:`~glmlike.checkpoint.detection.Detection.notes`.
    """

    source: Path
    destination: Path
    source_format: Format
    target_format: Format
    tensors: int
    bytes: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    bytes_moved: int = 0
    resumed: int = 0
    verify: Verify = "none"

    @classmethod
    def of(cls, plan: Plan, resumed: int, seconds: float) -> ConversionReport:
        """The report of a plan that was carried out."""
        return cls(
            source=plan.source,
            destination=plan.destination,
            source_format=plan.source_format,
            target_format=plan.target_format,
            tensors=len(plan.steps),
            bytes=plan.bytes,
            dropped=plan.dropped,
            notes=plan.notes,
            seconds=seconds,
            bytes_moved=plan.bytes_moved,
            resumed=resumed,
            verify=plan.verify,
        )


@overload
def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Format | Literal["gguf"],
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    tensor_parallel: int | None = ...,
    dtype: str | None = ...,
    max_memory: str | int | None = ...,
    workers: int | None = ...,
    verify: Verify | None = ...,
    sha256: bool | None = ...,
    resume: bool = ...,
    watch: Watch | None = ...,
    dry_run: Literal[False] = ...,
) -> ConversionReport: ...


@overload
def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Format | Literal["gguf"],
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    tensor_parallel: int | None = ...,
    dtype: str | None = ...,
    max_memory: str | int | None = ...,
    workers: int | None = ...,
    verify: Verify | None = ...,
    sha256: bool | None = ...,
    resume: bool = ...,
    watch: Watch | None = ...,
    dry_run: Literal[True],
) -> Plan: ...


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Format | Literal["gguf"],
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    max_shard_size: str | int = _SHARD_SIZE,
    tensor_parallel: int | None = None,
    dtype: str | None = None,
    max_memory: str | int | None = None,
    workers: int | None = None,
    verify: Verify | None = None,
    sha256: bool | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    dry_run: bool = False,
) -> ConversionReport | Plan:
    """Write the checkpoint in ``src`` to the new folder ``dst`` in the format ``to``, every number kept bit for bit.

    Integers of a pre-quantized ``src`` become floats, since no target format has them: each is int x scale, an exact
    product rounded once to the dtype of config.json; so do those of GPTQ, AWQ and compressed-tensors, (int - zero) x
    scale, in any format. Of ChatGLM-6B v1.0, the rows of image tokens are left out. The
    report's ``notes`` say so. ``dtype`` has every floating-point tensor rounded to it.

    config.json is written for the target; tokenizer, generation config, chat template, licence and card are copied;
    code files are not; ``glmlike.json`` and the files' metadata say where the numbers come from. A tokenizer that
    readers of ``to`` could not take (ChatGLM's vocabulary for ``to="glm"``) is written anew as tokenizer.json, by
    processes of their own, one after the other; its ids are compared with the source's, and the notes say so.
    ``generation`` and ``spec`` are those of :func:`detect`. ``to="glm-130b"`` and ``to="meta"`` write
    ``model_config.json`` or ``params.json``, and ``tensor_parallel`` rank files (default 1).

    ``to="gguf"`` writes the file ``dst`` for llama.cpp, and a ``src`` that ends in .gguf is read. ``dtype`` is then
    that of :func:`glmlike.checkpoint.gguf.write_gguf` (default: the source's own) or ``read_gguf``. Where matrices
    become blocks of integers, "hash" also compares what they decode to with the source, within each block's bound.

    ``max_memory`` ("2GB", or bytes) bounds the resident memory of the whole process, torch and what the caller holds
    included, and that of a tokenizer's process with it (by what the published vocabularies take: at most 450 MB); the
    default is 1 GB, or 256 MB beyond what the process held where that is more. ``workers`` threads share it (default:
    one a processor, at most 4).

    ``dst`` appears whole or not at all. An error leaves nothing; Ctrl-C and SIGTERM leave a hidden sibling of ``dst``
    from which ``resume=True`` goes on: tensors that the journal says are done are taken if their hashes agree.
    ``verify`` says what is proved before it appears. "roundtrip", the default where nothing is rounded or dropped:
    the files, opened anew, give every tensor of ``src`` again, bit for bit (tensors that were moved whole are compared
    by XXH3-128 hashes, others byte by byte). "hash", the default elsewhere: every tensor reads back as it was computed.
    Both put the hashes of tensors into the records. Bytes come back from where the system keeps them, mostly its
    memory: that the disk holds them is what the system says when everything is synced, last. "none" neither reads back
    nor hashes: the kernel moves the bytes, the records have no hashes, and an interrupted run leaves nothing to resume.

    The records have the sha256 of every file of weights of ``src``, as the Hub shows them. By default they are those
    that the Hub's client noted (``published_files``: files of a download are not read for it), and where one has no
    note, all are computed (``files``), unless ``verify="none"``. ``sha256=True`` always computes them, and they must be
    the noted ones; ``sha256=False`` never does, which is half the work on two cores. ``watch`` is told of progress.
    ``dry_run=True`` returns the plan, writes nothing, and puts what is missing or unknown into the plan instead of
    raising.

    Raises:
        ConfigError, CheckpointError: ``src`` cannot be read as what it says it is; ``dst`` is taken or its disk too
            small; a number does not fit ``dtype``; a file is not what it was on the Hub; what was interrupted was
            another conversion.
        CannotExpressError: ``to`` has no way to say this decoder.
        TokenizerError: transformers would read the tokenizer of a ``to`` folder otherwise than it is.
        GlmLikeError: ``to``, a size or ``tensor_parallel`` is not one, or is of the other kind of files; ``max_memory``
            is too little, and the message says what will do.
    """
    started = time.perf_counter()
    if to == "gguf":
        _require_no_others(
            tensor_parallel=tensor_parallel, max_shard_size=None if max_shard_size == _SHARD_SIZE else max_shard_size
        )
        from glmlike.checkpoint import gguf

        return gguf.convert_to_gguf(
            src,
            dst,
            dtype=dtype,
            generation=generation,
            spec=spec,
            max_memory=max_memory,
            workers=workers,
            verify=verify,
            sha256=sha256,
            resume=resume,
            watch=watch,
            dry_run=dry_run,
        )
    if to not in FORMATS:
        raise ConfigError(f"to={to!r}: expected one of {', '.join((*FORMATS, 'gguf'))}.")
    for name, value, known in (("dtype", dtype, tuple(DTYPES)), ("verify", verify, ("none", "hash", "roundtrip"))):
        if value is not None and value not in known:
            raise ConfigError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    limit = parse_size(max_shard_size)
    memory = None if max_memory is None else parse_size(max_memory)
    _require_its_own_options(to, max_shard_size, tensor_parallel)
    source = _detect(src, dtype, generation, spec, partly=dry_run)
    ranks = 1 if tensor_parallel is None else tensor_parallel
    config = _config(source, to, dtype, ranks)
    require_apart(Path(dst), source.folder)
    plan = _plan_with_torch(
        source,
        Path(dst),
        TABLES[to],
        config,
        limit=limit,
        ranks=ranks,
        dtype=cast("Dtype | None", dtype),
        max_memory=memory,
        workers=workers,
        verify=verify,
        sha256=sha256,
    )
    if dry_run:
        return plan
    require_new(plan)
    require_equal_copies(source)
    resumed, tokenizer = run_plan(plan, resume, watch)
    report = ConversionReport.of(plan, resumed, time.perf_counter() - started)
    return replace(report, notes=(*report.notes, *tokenizer))


def _detect(
    src: str | Path, dtype: str | None, generation: Generation | None, spec: str | DecoderSpec | None, *, partly: bool
) -> Detection:
    if Path(src).suffix == ".gguf":
        return detect_gguf(src, dtype=dtype)  # blocks are decoded to it, not by way of another
    return (look if partly else detect)(src, generation=generation, spec=spec)


def _config(source: Detection, to: Format, dtype: str | None, ranks: int) -> dict[str, Any]:
    """The target's config.json; for rank files, their arguments."""
    config = {**undefaulted_tokens(to), **carried(source), **write_config(source.spec, to)}
    if dtype is not None:
        config["dtype"] = dtype
    if to not in RANKED:
        return config
    require_divisible(source.spec, ranks)
    return RANKED[to].arguments(config, ranks)


def _plan_with_torch(*arguments: Any, **options: Any) -> Plan:
    """The plan, made again where it needs torch, once that is imported: what torch takes counts as memory."""
    plan = make_plan(*arguments, **options)
    if "torch" in sys.modules or (plan.ranked is None and not needs_torch(plan.steps)):
        return plan
    import torch  # noqa: F401

    return make_plan(*arguments, **options)


def run_plan(plan: Plan, resume: bool, watch: Watch | None) -> tuple[int, tuple[str, ...]]:
    """Write, verify and move into place; how many tensors an earlier run had written, and notes on the tokenizer.

    The tokenizer comes first: if it cannot be written, nobody has waited for the weights.
    """
    before = plan.found.record
    total = plan.bytes if plan.verify == "none" else 2 * plan.bytes + source_bytes(plan)
    with (
        partial_folder(plan, resume=resume) as (folder, journal),
        written_anew(plan.source, plan.source_format, plan.target_format, folder) as tokenizer,
        (watch or _unwatched)(total) as progress,
    ):
        written = carry_out(plan, folder, journal, Crew(plan.memory.workers, progress))
        text = json.dumps(plan.config, indent=2) + "\n"
        (folder / config_file(plan)).write_text(text, encoding="utf8")
        verify_written(plan, folder, written, Crew(plan.memory.workers, progress))
        (folder / provenance.RECORD).write_text(_record(plan, written.sums, before, tokenizer), encoding="utf8")
        if isinstance(plan.found, GgufDetection):
            plan.found.write_companions(folder)
        else:
            copy_companions(plan.source, folder, tokenizer=tokenizer.copied)
        tokenizer.move_into(folder)
    return written.resumed, () if tokenizer.note is None else (tokenizer.note,)


def _unwatched(total: int) -> AbstractContextManager[Progress | None]:
    return nullcontext()


def _record(
    plan: Plan, sums: Mapping[tuple[str, str], Sums], before: dict[str, Any] | None, tokenizer: NewTokenizer
) -> str:
    origin = provenance.origin_of(plan.source)
    tensors: dict[str, dict[str, str]] = {file: {} for file in plan.files}
    for (file, name), found in sums.items():
        tensors[file][name] = found.hash
    ends = (plan.source_format, plan.target_format)
    return provenance.record(
        origin, *ends, plan.identity, plan.source_files, tensors, before, plan.merged, others=tokenizer.record
    )


def _require_no_others(**options: Any) -> None:
    """Raise ConfigError if an option is given that a conversion to GGUF does not have."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ConfigError(f"{given}={options[given]!r}: not an option of GGUF, which is one file. Drop it.")


def _require_its_own_options(to: Format, max_shard_size: str | int, tensor_parallel: int | None) -> None:
    if to not in RANKED and tensor_parallel is not None:
        raise ConfigError(
            f"tensor_parallel={tensor_parallel!r} with to={to!r}: only {' and '.join(map(repr, RANKED))} have rank "
            "files. Drop it."
        )
    if to in RANKED and max_shard_size != _SHARD_SIZE:
        raise ConfigError(
            f"max_shard_size={max_shard_size!r} with to={to!r}: it has one file a rank. Pass tensor_parallel instead."
        )


def fingerprint(
    folder: str | Path, *, generation: Generation | None = None, spec: str | DecoderSpec | None = None
) -> dict[str, str]:
    """The sha256 of every native tensor of a folder of any format, with dtype and shape: equal means the same model."""
    return _hashes(detect(folder, generation=generation, spec=spec), hashlib.sha256)


def _hashes(found: Detection, hasher: Callable[[], Any]) -> dict[str, str]:
    require_equal_copies(found)
    buffer = memoryview(bytearray(_READ))
    return {name: _hash(stream, hasher(), buffer) for name, stream in native_streams(found).items()}


def _hash(stream: Stream, hasher: Any, buffer: memoryview) -> str:
    hasher.update(f"torch.{TORCH_NAMES[stream.dtype]} {tuple(stream.shape)}".encode())
    return digest(stream, hasher, buffer)


def verify(
    left: str | Path,
    right: str | Path,
    *,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
) -> int:
    """Two folders, of the same or of different formats, hold the same decoder and the same numbers.

    Returns the number of native tensors compared, by their XXH3-128 hashes.

    Raises:
        CheckpointError: the first difference, in the spec or in a tensor.
    """
    mine_is, theirs_is = (detect(folder, generation=generation, spec=spec) for folder in (left, right))
    specs = mine_is.spec.differences(theirs_is.spec)
    if specs:
        raise CheckpointError(f"{left} and {right} describe different decoders: {specs}.")
    mine, theirs = _hashes(mine_is, tensor_hasher), _hashes(theirs_is, tensor_hasher)
    require_exact(mine, theirs, str(right))
    for name, found in mine.items():
        if theirs[name] != found:
            raise CheckpointError(f"{left} and {right} differ in {name!r} (dtype, shape or bytes).")
    return len(mine)
