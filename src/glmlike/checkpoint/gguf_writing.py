"""Writing a GGUF file: planned from headers, carried out, resumed and read back as every conversion is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from glmlike.checkpoint import gguf_vocabulary, provenance
from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.checksums import TENSOR_HASH
from glmlike.checkpoint.containers import Sums
from glmlike.checkpoint.contents import Contents, contents_of_gguf
from glmlike.checkpoint.destination import partial_folder, require_apart, require_new
from glmlike.checkpoint.detection import Detection, missing_and_unknown, native_streams, require_equal_copies, set_aside
from glmlike.checkpoint.execute import Crew, Progress, Written, carry_out, source_bytes
from glmlike.checkpoint.formats.llama_cpp import LLAMA3_FACTORS, Architecture
from glmlike.checkpoint.gguf_blocks import (
    FLOATS,
    Exactly,
    Packed,
    Unpacked,
    block,
    bound_in_words,
    bytes_of,
    require_near,
    rows_of_floats,
)
from glmlike.checkpoint.gguf_fields import fields_of, llama3_factors
from glmlike.checkpoint.gguf_file import GgufFile
from glmlike.checkpoint.gguf_reading import detect_gguf, gguf_table
from glmlike.checkpoint.layouts import Cropped
from glmlike.checkpoint.memory import share_out
from glmlike.checkpoint.plan import Plan, Step, Verify, history, how, memory_held, needs_torch, source_files
from glmlike.checkpoint.rules import Rule, by_native
from glmlike.checkpoint.streams import Cast, Loaded, Stored, Stream, row_size, size_of
from glmlike.checkpoint.through_layouts import to_foreign_streams
from glmlike.checkpoint.verification import verify_written
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec

GgufDtype = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""What matrices can be written as: what the package ``gguf`` quantizes, which is not the K-quants."""

_STRING = 140
"""The bytes that a token or a merge takes once the file's metadata are read back, measured."""

Watch = Callable[[int], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class GgufStep(Step):
    """One tensor of the file: ``kind`` is its type there, ``numbers`` what it is made of.

    As a :class:`Step`, blocks of integers are rows of bytes.
    """

    kind: str = "F32"
    numbers: Stream | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        facts = super().to_dict()
        shape = self.numbers.shape if self.numbers is not None else self.shape
        return {name: value for name, value in facts.items() if name not in ("kind", "numbers")} | {
            "dtype": self.kind,
            "shape": shape,
        }


def plan_gguf(
    found: Detection,
    destination: Path,
    architecture: Architecture,
    dtype: GgufDtype,
    vocabulary: gguf_vocabulary.Vocabulary,
    *,
    max_memory: int | None,
    workers: int | None,
    verify: Verify | None,
    sha256: bool | None = None,
) -> Plan:
    """The plan of writing ``found`` to the file ``destination``; only headers have been read, and the tokenizer.

    Raises:
        ConfigError: ``verify="roundtrip"`` where numbers are rounded or rows dropped.
        GlmLikeError: ``max_memory`` is too little for one row.
    """
    steps = tuple(steps_of(found, architecture, dtype, destination.name))
    missing, unknown = missing_and_unknown(found)
    cropped = any(isinstance(rule.layout, Cropped) for rule in found.table.steps(found.spec))
    lossless = not missing and not cropped and all(step.stream.exact for step in steps)
    if verify == "roundtrip" and not lossless:
        raise ConfigError(
            f"verify='roundtrip': {found.folder} cannot be made again from the result, since numbers are rounded or "
            "rows dropped. Pass 'hash', which reads everything back."
        )
    chosen: Verify = verify or ("roundtrip" if lossless else "hash")
    sources = source_files(found, chosen, sha256)
    fields = {**_general(found, dtype), **fields_of(found.spec, architecture), **vocabulary.fields()}
    file = GgufFile(
        destination.name,
        architecture,
        fields,
        [(step.name, step.kind, tuple(step.to_dict()["shape"])) for step in steps],
        partial(_record, found, sources, chosen != "none"),
    )
    if needs_torch(steps):
        import torch  # noqa: F401  # what it takes counts as memory
    streams = [step.stream for step in steps]
    again = 0 if chosen == "none" else _STRING * sum(len(value) for value in fields.values() if isinstance(value, list))
    return Plan(
        source=found.folder,
        destination=destination,
        source_format=found.format,
        target_format=cast(Format, "gguf"),
        steps=steps,
        files=(file.path,),
        bytes=sum(step.bytes for step in steps),
        bytes_moved=sum(step.bytes for step in steps if step.how == "bytes"),
        disk=file.size,
        memory=share_out(max_memory, workers, streams, memory_held(streams), beside=again),
        verify=chosen,
        lossless=lossless,
        dropped=tuple(sorted(set_aside(found))),
        notes=(*found.notes, *history(found), *_notes(steps, dtype), *vocabulary.notes),
        missing=tuple(missing),
        unknown=tuple(unknown),
        identity=_identity(found, steps, fields, chosen, sources),
        config=fields,
        containers=(file,),
        found=found,
        source_files=sources,
        one_file=True,
        contents=_contents(found.folder, file, vocabulary),
    )


def _contents(source: Path, file: GgufFile, vocabulary: gguf_vocabulary.Vocabulary) -> Contents:
    words = f" with the words of {vocabulary.pre!r}" if vocabulary.pre else ""
    said = f"in the file's metadata, as llama.cpp's {vocabulary.model!r}{words}"
    if vocabulary.model == "none":
        said = "; ".join(vocabulary.notes)
    return contents_of_gguf(source, file.path, file.size, said, template=vocabulary.template is not None)


def steps_of(found: Detection, architecture: Architecture, dtype: GgufDtype, file: str) -> Iterator[GgufStep]:
    """Every tensor in llama.cpp's order, LLaMA 3.1's rope factors first, as its converter does."""
    spec = found.spec
    if spec.rope_type == "llama3":
        factors = Loaded(partial(_factors, spec), "F32", (spec.rotary_dim // 2,))
        yield GgufStep(
            LLAMA3_FACTORS, "F32", factors.shape, size_of(factors), (), "rope settings", "computed", file, factors
        )
    missing, _ = missing_and_unknown(found)
    native = native_streams(found, without=frozenset(missing))
    makers = by_native(found.table.steps(spec))
    for rule in gguf_table(architecture, spec).steps(spec):
        if all(name in native for name in rule.native):
            yield from _of_rule(rule, native, makers, dtype, spec, file)


def _of_rule(
    rule: Rule,
    native: Mapping[str, Stream],
    makers: Mapping[str, Rule],
    dtype: GgufDtype,
    spec: DecoderSpec,
    file: str,
) -> Iterator[GgufStep]:
    parts = [native[name] for name in rule.native]
    if len({part.dtype for part in parts}) > 1:  # rows of one tensor have one dtype
        parts = [_as("F32", part) for part in parts]
    sources = tuple(dict.fromkeys(name for key in rule.native for name in makers[key].foreign))
    layout = " > ".join(dict.fromkeys(str(made.layout) for made in (*(makers[n] for n in rule.native), rule)))
    for name, numbers in zip(rule.foreign, to_foreign_streams(rule.layout, parts), strict=True):
        kind = kind_of(name, numbers.shape, dtype, spec)
        stream = _as(kind, numbers)
        size = bytes_of(kind, numbers.shape)
        yield GgufStep(
            name, stream.dtype, stream.shape, size, sources, layout, how(stream), file, stream, kind, numbers
        )


def _as(kind: str, numbers: Stream) -> Stream:
    if kind not in FLOATS:
        return Packed(numbers, kind)
    if numbers.dtype == kind:
        return numbers
    return Exactly(numbers, kind) if kind == "F32" and numbers.dtype in ("F16", "BF16") else Cast(numbers, kind)


def _factors(spec: DecoderSpec) -> Any:
    import torch

    return torch.tensor(llama3_factors(spec), dtype=torch.float32)


def kind_of(name: str, shape: tuple[int, ...], dtype: GgufDtype, spec: DecoderSpec) -> str:
    """What llama.cpp's converter stores a tensor as (conversion/base.py, ``prepare_tensors``)."""
    kind = dtype.upper()
    if len(shape) == 1:
        return "F32"
    if kind.startswith(("Q4", "Q5")) and name == ("token_embd" if spec.tie_word_embeddings else "output") + ".weight":
        kind = "Q8_0"
    return "F16" if shape[-1] % block(kind)[0] else kind


def _general(found: Detection, dtype: GgufDtype) -> dict[str, Any]:
    from glmlike.checkpoint.gguf_blocks import gguf_package

    gguf = gguf_package()
    kind = gguf.LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"]
    origin = provenance.origin_of(found.folder)
    return {
        "general.type": "model",
        "general.name": origin.name.rsplit("/", 1)[-1],
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        "general.file_type": int(kind),
    }


def _record(found: Detection, sources: provenance.SourceFiles, hashed: bool, sums: Mapping[str, Sums]) -> str:
    origin = provenance.origin_of(found.folder)
    content = json.loads(provenance.metadata(origin, "gguf", sources, sums if hashed else None)["glmlike"])
    content["source"]["format"] = found.format
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _notes(steps: Sequence[GgufStep], dtype: GgufDtype) -> Iterator[str]:
    matrices = [step for step in steps if step.numbers is not None and len(step.numbers.shape) > 1]
    kinds, wanted = Counter(step.kind for step in matrices), dtype.upper()
    if fallen := [step.name for step in matrices if step.kind == "F16" and wanted.startswith("Q")]:
        numbers = block(wanted)[0]
        yield f"{len(fallen)} matrices are f16: {numbers} does not divide their rows (first: {fallen[0]})"
    if kinds["Q8_0"] and wanted != "Q8_0":
        yield f"the output matrix is q8_0, the rest {dtype}: llama-quantize keeps it above the rest, too"
    rounded = {step.numbers.dtype for step in matrices if step.numbers is not None and not step.stream.exact}
    if rounded:
        yield f"matrices of {', '.join(sorted(rounded))} are rounded to {dtype}"
    yield from (f"{kind.lower()}: {bound_in_words(kind)}" for kind in sorted(kinds) if kind not in FLOATS)


def _identity(
    found: Detection, steps: Sequence[Step], fields: Mapping[str, Any], verify: Verify, sources: provenance.SourceFiles
) -> str:
    return provenance.sha256_of(
        {
            "version": provenance.version(),
            "files": provenance.identity(list(found.checkpoint.files), found.folder),
            "origin": provenance.origin_of(found.folder).to_dict(),
            "fields": fields,
            "hashed": {"tensors": TENSOR_HASH if verify != "none" else None, "files": sources.computed},
            "steps": [step.to_dict() for step in steps],
        }
    )


def write_planned(plan: Plan, resume: bool, watch: Watch | None) -> int:
    """Write, read back and move into place; the number of tensors that an earlier run had written.

    Raises:
        CheckpointError: the source contradicts itself; a number that the file cannot hold; the disk fails.
    """
    require_apart(plan.destination, plan.source)
    require_new(plan)
    require_equal_copies(plan.found)
    packed = [step for step in plan.steps if isinstance(step.stream, Packed)]
    total = plan.bytes
    if plan.verify != "none":
        total += plan.bytes + source_bytes(plan) + sum(step.bytes for step in packed)
    with partial_folder(plan, resume=resume) as (folder, journal), (watch or _unwatched)(total) as progress:
        written = carry_out(plan, folder, journal, Crew(plan.memory.workers, progress))
        _read_back(plan, folder, written, Crew(plan.memory.workers, progress))
        if plan.verify != "none":
            near = [partial(_require_near, step, plan, folder, Crew(plan.memory.workers, progress)) for step in packed]
            Crew(plan.memory.workers, progress).run(near)
    return written.resumed


def _unwatched(total: int) -> AbstractContextManager[Progress | None]:
    return nullcontext()


def _read_back(plan: Plan, folder: Path, written: Written, crew: Crew) -> None:
    """The file is opened as any reader opens it, and every tensor read as what the source has it as."""
    steps = [cast(GgufStep, step) for step in plan.steps]
    dtypes = {step.name: step.numbers.dtype for step in steps if step.numbers is not None and step.stream.exact}
    result = replace(detect_gguf(folder / plan.files[0], dtypes=dtypes), folder=folder)
    if result.spec.differences(plan.found.spec):
        raise CheckpointError(
            f"{plan.source}: the file's metadata describe another decoder: {result.spec.differences(plan.found.spec)}. "
            "This is a bug of glmlike."
        )
    verify_written(plan, folder, written, crew, result)


def _require_near(step: Step, plan: Plan, folder: Path, crew: Crew) -> None:
    """Blocks read back from the file are within their bound of the source's numbers, a stretch of rows at a time."""
    packed = cast(Packed, step.stream)
    stored = Stored(ByteFile(folder / step.file), plan.containers[0].at[step.name], step.dtype, step.shape)
    back = Unpacked(stored, packed.kind, packed.inner.shape)
    count = max(1, plan.memory.chunk(packed) // 2 // row_size(packed))
    for first in range(0, packed.inner.shape[0], count):
        rows = min(count, packed.inner.shape[0] - first)
        try:
            require_near(rows_of_floats(packed.inner, first, rows), rows_of_floats(back, first, rows), packed.kind)
        except CheckpointError as error:
            raise CheckpointError(f"{plan.source}: {step.sources[0]!r}: {error}.") from None
        crew.advance(rows * row_size(packed))
