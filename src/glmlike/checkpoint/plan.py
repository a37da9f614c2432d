"""Plans: what a conversion will do, step by step, from headers alone; printed, checked, and then carried out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmlike.checkpoint import provenance
from glmlike.checkpoint.byte_files import ByteFile, stored_bytes
from glmlike.checkpoint.checksums import TENSOR_HASH
from glmlike.checkpoint.containers import Container, SafetensorsFile, Sums, TorchZipFile
from glmlike.checkpoint.contents import Contents, contents_from_gguf, contents_of
from glmlike.checkpoint.detection import Detection, missing_and_unknown, native_streams, set_aside
from glmlike.checkpoint.formats import FormatTable
from glmlike.checkpoint.layouts import Cropped
from glmlike.checkpoint.memory import Memory, share_out
from glmlike.checkpoint.packed_streams import PackedFloats
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.ranks import RankLayout
from glmlike.checkpoint.rules import by_native
from glmlike.checkpoint.streams import (
    FLOATS,
    Cast,
    Dequantized,
    LastMade,
    Loaded,
    Rows,
    Stream,
    size_of,
    stored_runs,
)
from glmlike.checkpoint.through_layouts import to_foreign_streams
from glmlike.checkpoint.tokenizers import files_of, is_rewritten, memory_of_rewriting
from glmlike.errors import ConfigError
from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec

Dtype = Literal["float32", "float16", "bfloat16"]
Verify = Literal["none", "hash", "roundtrip"]
INDEX = "model.safetensors.index.json"
DTYPES: dict[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Step:
    """One tensor that will be written: of which source tensors, by which layouts, into which file.

    ``how``: "bytes" are moved as they are; "cast", "dequantize", "quantize" and "merge" compute numbers; "tensor" moves
    what only torch reads.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sources: tuple[str, ...]
    layout: str
    how: str
    file: str
    stream: Stream = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """What a person or a script is shown."""
        return {name: value for name, value in vars(self).items() if name != "stream"}


@dataclass(frozen=True)
class Change:
    """What becomes of a source's native tensors before they are written: adapters ``merged`` into them, say.

    ``apply`` gives all native tensors of the decoder ``spec``; ``origins`` are the source's tensors that those are made
    of which the source's decoder has not. ``merged`` is what the record says of the adapters.
    """

    spec: DecoderSpec
    apply: Callable[[Mapping[str, Stream]], dict[str, Stream]]
    merged: tuple[Mapping[str, str], ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. ``steps`` are in the order of the files; ``missing`` and ``unknown`` are tensors.

    ``bytes`` are those of all tensors written, ``bytes_moved`` those of them that are moved without being decoded;
    ``disk`` the bytes that the destination's file system must have free; ``memory.peak`` the expected peak memory.
    ``lossless``: the source's tensors, but for the declared drops, follow from the target's bit for bit.
    ``one_file``: ``destination`` is no folder but the one file of ``files``. ``contents``: every file of the
    destination, not of weights alone, and where it comes from.
    """

    source: Path
    destination: Path
    source_format: Format
    target_format: Format
    steps: tuple[Step, ...]
    files: tuple[str, ...]
    bytes: int
    bytes_moved: int
    disk: int
    memory: Memory
    verify: Verify
    lossless: bool
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    identity: str
    config: dict[str, Any] = field(repr=False)
    containers: tuple[Container, ...] = field(repr=False, compare=False)
    found: Detection = field(repr=False, compare=False)
    ranked: RankLayout | None = field(default=None, repr=False)
    source_files: provenance.SourceFiles = field(default=provenance.SourceFiles({}, False), repr=False, compare=False)
    merged: tuple[Mapping[str, str], ...] = ()
    one_file: bool = False
    contents: Contents = field(default_factory=Contents, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        hidden = ("containers", "found", "config", "steps", "memory", "ranked", "source_files", "one_file", "contents")
        facts = {name: value for name, value in vars(self).items() if name not in hidden}
        facts |= {"source": str(self.source), "destination": str(self.destination), **self.contents.to_dict()}
        return {**facts, "memory": vars(self.memory), "steps": [step.to_dict() for step in self.steps]}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


def make_plan(
    found: Detection,
    destination: Path,
    table: FormatTable,
    config: dict[str, Any],
    *,
    limit: int,
    ranks: int,
    dtype: Dtype | None,
    max_memory: int | None,
    workers: int | None,
    verify: Verify | None,
    sha256: bool | None,
    change: Change | None = None,
) -> Plan:
    """The plan of writing ``found``, with a ``change`` of its numbers or none, in the format of ``table``.

    Only headers have been read.

    ``sha256``: whether the source's files are to be hashed, and :attr:`Plan.source_files` filled in meanwhile; None: if
    the Hub's client did not note what they are, and anything is hashed.

    Raises:
        ConfigError: ``verify="roundtrip"`` where numbers are rounded or rows dropped: there is no way back.
        GlmLikeError: ``max_memory`` is too little for one row.
    """
    missing, unknown = missing_and_unknown(found)
    ranked = RANKED[table.name].layout(found.spec, ranks) if table.name in RANKED else None
    made = list(_steps(found, table, dtype, ranked, limit, change))
    lossless = not missing and change is None and _is_lossless(found, made)
    if verify == "roundtrip" and not lossless:
        raise ConfigError(
            f"verify='roundtrip': {found.folder} cannot be made again from the result, since numbers are rounded or "
            "changed, or rows dropped. Pass 'hash', which reads everything back."
        )
    total = sum(step.bytes for step in made)
    files = source_files(found, verify, sha256)
    hashed = verify != "none"
    containers = tuple(_containers(found, made, table.name, ranked, files, hashed))
    streams = [step.stream for step in made]
    anew = is_rewritten(found.folder, found.format, table.name)
    rewritten = files_of(found.folder) if anew else []
    sums = {"tensors": TENSOR_HASH if hashed else None, "files": files.computed}
    key = _identity(found, made, config, sums, change, rewritten)
    return Plan(
        source=found.folder,
        destination=destination,
        source_format=found.format,
        target_format=table.name,
        steps=tuple(made),
        files=tuple(container.path for container in containers),
        bytes=total,
        bytes_moved=sum(step.bytes for step in made if step.how == "bytes"),
        disk=_disk(found, made, containers),
        memory=share_out(max_memory, workers, streams, memory_held(streams), **_for_tokenizer(found, anew)),
        verify=verify or ("roundtrip" if lossless else "hash"),
        lossless=lossless,
        dropped=tuple(sorted(set_aside(found))),
        notes=(*found.notes, *history(found), *(change.notes if change else ())),
        missing=tuple(missing),
        unknown=tuple(unknown),
        identity=key,
        config=config,
        containers=containers,
        found=found,
        ranked=ranked,
        source_files=files,
        merged=change.merged if change else (),
        contents=_contents(found, table.name, made, containers, ranked),
    )


def _for_tokenizer(found: Detection, anew: bool) -> dict[str, Any]:
    """What the tokenizer takes, as :func:`share_out` has it."""
    if found.companions is not None:
        return {"apart": found.memory_of_companions, "what": "writing the tokenizer's files"}
    return {"apart": memory_of_rewriting(found.folder)} if anew else {}


def _contents(
    found: Detection, to: Format, steps: Sequence[Step], containers: Sequence[Container], ranked: RankLayout | None
) -> Contents:
    """Every file of the folder that will be written."""
    written: dict[str, tuple[str, int | None]] = {}
    for container in containers:
        count = sum(step.file == container.path for step in steps)
        written[container.path] = (f"{count} tensors", container.size)
    if ranked is None and len(containers) > 1:
        written[INDEX] = ("written: which file has which tensor", None)
    written |= dict.fromkeys({} if ranked is None else ranked.texts, ("written", None))
    config = "config.json" if ranked is None else RANKED[to].file
    written[config] = (f"written: what the source's says, as {to!r} says it", None)
    written[provenance.RECORD] = ("written: where the numbers come from, and their hashes", None)
    inside = found.companions
    if inside is not None:
        return contents_from_gguf(written, *inside)
    return contents_of(found, to, written)


def file_names(found: Detection) -> dict[str, Path]:
    """The source's files of weights, by their names in its folder, in the order in which they are read."""
    files = found.checkpoint.files
    return {path.name if path == found.folder else path.relative_to(found.folder).as_posix(): path for path in files}


def source_files(found: Detection, verify: Verify | None, sha256: bool | None) -> provenance.SourceFiles:
    """What is known of the source's files, or zeros where they are to be hashed; ``sha256`` as for a plan."""
    names = file_names(found)
    known = provenance.published(found.folder if found.folder.is_dir() else found.folder.parent, names)
    if sha256 is None:
        sha256 = verify != "none" and len(known) < len(names)
    return provenance.SourceFiles(dict.fromkeys(names, "0" * 64) if sha256 else known, sha256)


def _steps(
    found: Detection,
    table: FormatTable,
    dtype: Dtype | None,
    ranked: RankLayout | None,
    limit: int,
    change: Change | None,
) -> Iterator[Step]:
    """Every tensor of the target format; those whose sources are missing are left out."""
    native = _native(found)
    if dtype is not None:
        native = {name: _cast(stream, DTYPES[dtype]) for name, stream in native.items()}
    makers = by_native(found.table.steps(found.spec))
    spec = found.spec
    if change is not None:
        native, spec = change.apply(native), change.spec
        makers |= {name: makers[origin] for name, origin in change.origins.items()}
    drafts = []
    for rule in table.steps(spec):
        if not all(name in native for name in rule.native):
            continue
        sources = tuple(dict.fromkeys(name for key in rule.native for name in makers[key].foreign))
        layouts = " > ".join(dict.fromkeys(str(made.layout) for made in (*(makers[n] for n in rule.native), rule)))
        streams = to_foreign_streams(rule.layout, [native[name] for name in rule.native])
        drafts += [(name, stream, sources, layouts) for name, stream in zip(rule.foreign, streams, strict=True)]
    drafts.sort(key=lambda draft: _place(found, draft[2][0]))
    if ranked is not None:
        yield from _by_rank(drafts, ranked)
        return
    files = _shards([size_of(stream) for _, stream, _, _ in drafts], limit)
    for (name, stream, sources, layouts), file in zip(drafts, files, strict=True):
        yield _step(name, stream, sources, layouts, file)


def _place(found: Detection, name: str) -> tuple[int, int]:
    """Where a source tensor lies: files are written in the order in which the source is read."""
    info = found.checkpoint.tensors[name]
    return found.checkpoint.files.index(info.file), info.start


def _native(found: Detection) -> dict[str, Stream]:
    missing, _ = missing_and_unknown(found)
    return native_streams(found, without=frozenset(missing))


def _by_rank(drafts: Sequence[Any], ranked: RankLayout) -> Iterator[Step]:
    ranks = len(ranked.files)
    splits = [ranked.split_of(name) for name, _, _, _ in drafts]
    pieces = [
        [stream] * ranks if split is None else split.cut_streams(stream, ranks)
        for split, (_, stream, _, _) in zip(splits, drafts, strict=True)
    ]
    for rank, file in enumerate(ranked.files):
        for split, mine, (name, _, sources, layouts) in zip(splits, pieces, drafts, strict=True):
            said = layouts if split is None or ranks == 1 else f"{layouts} > {split}"
            yield _step(name, mine[rank], sources, said, file)


def _step(name: str, stream: Stream, sources: tuple[str, ...], layout: str, file: str) -> Step:
    return Step(name, stream.dtype, stream.shape, size_of(stream), sources, layout, how(stream), file, stream)


def _cast(stream: Stream, dtype: str) -> Stream:
    return stream if stream.dtype not in FLOATS or stream.dtype == dtype else Cast(stream, dtype)


def how(stream: Stream) -> str:
    """What is done to the bytes of a stream: see :class:`Step`."""
    kinds = ((Cast, "cast"), (Dequantized, "dequantize"), (Loaded, "tensor"))
    parts = list(leaves(stream))
    found = [name for kind, name in kinds if any(isinstance(part, kind) for part in parts)]
    found += [part.verb for part in parts if hasattr(part, "verb")]
    return "+".join(dict.fromkeys(found)) or "bytes"


def leaves(stream: Stream) -> Iterator[Stream]:
    """A stream and every stream it is made of."""
    yield stream
    inner: list[Stream] = [
        getattr(stream, name) for name in ("inner", "whole", "weight", "scale") if hasattr(stream, name)
    ]
    inner += [part[0] if isinstance(stream, Rows) else part for part in getattr(stream, "parts", ())]
    for part in inner:
        yield from leaves(part)


def needs_torch(steps: Sequence[Step]) -> bool:
    """Whether carrying steps out imports torch."""
    parts = (part for step in steps for part in leaves(step.stream))
    kinds = (Cast, Dequantized, Loaded, PackedFloats)
    return any(isinstance(part, kinds) and not getattr(part, "without_torch", False) for part in parts)


def _shards(sizes: Sequence[int], limit: int) -> list[str]:
    """The file of each tensor, in order: at most ``limit`` bytes of tensors, but for one that is larger by itself."""
    numbers: list[int] = []
    number = filled = 0
    for size in sizes:
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        filled += size
        numbers.append(number)
    if number == 0:
        return ["model.safetensors"] * len(numbers)
    return [f"model-{at + 1:05d}-of-{number + 1:05d}.safetensors" for at in numbers]


def _containers(
    found: Detection,
    steps: Sequence[Step],
    to: Format,
    ranked: RankLayout | None,
    sources: provenance.SourceFiles,
    hashed: bool,
) -> Iterator[Container]:
    """The files; the hashes in ``sources`` may be filled in until the files' frames are asked for."""
    origin = provenance.origin_of(found.folder)

    def metadata(sums: Mapping[str, Sums]) -> dict[str, str]:
        return provenance.metadata(origin, to, sources, sums if hashed else None)

    for file in dict.fromkeys(step.file for step in steps):
        mine = [step for step in steps if step.file == file]
        tensors = [(step.name, step.dtype, step.shape) for step in mine]
        if ranked is not None:
            yield TorchZipFile(file, tensors, ranked.under)
            continue
        runs = ((step.name, place, *run[1:]) for step in mine for place, run in moved_runs(step))
        yield SafetensorsFile(file, tensors, metadata, runs)


def moved_runs(step: Step) -> list[tuple[int, tuple[ByteFile, int, int]]]:
    """Where the bytes of a step lie in the source, if they are only moved: the place in it, and (file, offset, bytes).

    None of a step whose bytes are gathered from columns, or computed.
    """
    if step.how != "bytes":
        return []
    found, place = [], 0
    try:
        for run in stored_runs(step.stream, 0, step.bytes):
            found.append((place, run))
            place += run[2]
    except TypeError:
        return []
    return found


def _is_lossless(found: Detection, steps: Sequence[Step]) -> bool:
    cropped = any(isinstance(rule.layout, Cropped) for rule in found.table.steps(found.spec))
    return not cropped and all(step.stream.exact for step in steps)


def _disk(found: Detection, steps: Sequence[Step], containers: Sequence[Container]) -> int:
    """The bytes of the files, less the holes of the source's, which are kept where bytes are moved."""
    size = sum(container.size for container in containers)
    if any(step.how != "bytes" for step in steps):
        return size
    holes = sum(path.stat().st_size - stored_bytes(path) for path in found.checkpoint.files)
    return max(size - holes, 0)


def memory_held(streams: Sequence[Stream]) -> int:
    """What a worker holds of tensors that are made or read whole: those it keeps, and what one is made of."""
    found = [leaf for stream in streams for leaf in leaves(stream)]
    largest = max((size_of(leaf) for leaf in found if isinstance(leaf, Loaded)), default=0)
    return (LastMade.KEPT + 1) * largest + max((getattr(leaf, "held", 0) for leaf in found), default=0)


def history(found: Detection) -> tuple[str, ...]:
    """What a report says of a source that was itself converted."""
    before = found.record
    if before is None:
        return ()
    source = before["source"]
    made_of = f"{source.get('name')} ({source.get('format')})"
    return (f"the source was itself converted, from {made_of}: see its {_where(found)}",)


def _where(found: Detection) -> str:
    return "metadata" if found.folder.suffix == ".gguf" else provenance.RECORD


def _identity(
    found: Detection,
    steps: Sequence[Step],
    config: dict[str, Any],
    hashed: dict[str, Any],
    change: Change | None,
    tokenizer: list[Path],
) -> str:
    """The sha256 of everything that decides the bytes of the result but the contents of the source's tensors."""
    return provenance.sha256_of(
        {
            **({"merged": [dict(entry) for entry in change.merged]} if change else {}),
            "version": provenance.version(),
            "files": provenance.identity(list(found.checkpoint.files), found.folder),
            "origin": provenance.origin_of(found.folder).to_dict(),
            "config": config,
            "hashed": hashed,
            "tokenizer": provenance.identity(tokenizer, found.folder),
            "steps": [step.to_dict() for step in steps],
        }
    )


def config_file(plan: Plan) -> str:
    """The name of the file with the decoder's sizes."""
    return RANKED[plan.target_format].file if plan.ranked is not None else "config.json"


def index_of(plan: Plan) -> dict[str, Any]:
    """The index of several safetensors files, as transformers writes it."""
    weight_map = {step.name: step.file for step in sorted(plan.steps, key=lambda step: step.name)}
    return {"metadata": {"total_size": plan.bytes}, "weight_map": weight_map}
