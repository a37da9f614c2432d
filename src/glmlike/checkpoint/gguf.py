"""GGUF files of llama.cpp, out and in: a checkpoint folder to one file, and one file to a checkpoint folder.

Tensors stream: one is read, put in its layout and written at a time, and encoded and decoded a block of rows at a time.
The package ``gguf`` (llama.cpp's own) reads and writes the file and its blocks; it is imported where used.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from glmlike.checkpoint import gguf_vocabulary
from glmlike.checkpoint.convert import ConversionReport
from glmlike.checkpoint.detection import Detection, detect, to_native
from glmlike.checkpoint.formats import TABLES, FormatTable
from glmlike.checkpoint.formats.llama_cpp import LLAMA3_FACTORS, Architecture, table
from glmlike.checkpoint.gguf_fields import architecture_of, fields_of, llama3_factors, read_spec
from glmlike.checkpoint.headers import TensorInfo, refuse_lfs_pointer, require_shapes
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import Rule, by_native, require_exact
from glmlike.checkpoint.shards import Checkpoint, parse_size, whole_folder, write_shards
from glmlike.checkpoint.streams import LastMade, Loaded, Stream, dtype_name
from glmlike.errors import CheckpointError, ConfigError, GlmLikeError, SpecError
from glmlike.hub_json import Format, Generation, carried_fields, write_config
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

logger = logging.getLogger(__name__)

GgufDtype = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""What matrices can be written as: what the package ``gguf`` quantizes, which is not the K-quants."""

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCK_BYTES = 64 * 2**20  # of float32 in memory at a time while rows are encoded or decoded


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` names a GGUF file, by the end of its name."""
    return Path(path).suffix == ".gguf"


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise GlmLikeError("GGUF files need the package gguf: pip install 'glmlike[gguf]'.") from None
    return gguf


# --- out -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    """One tensor of a file to be written: its type by name, and its size there."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


def write_gguf(
    source: str | Path,
    file: str | Path,
    *,
    dtype: GgufDtype = "f16",
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    pre_tokenizer: str | None = None,
    with_tokenizer: bool = True,
) -> ConversionReport:
    """Write the checkpoint folder ``source`` to the new file ``file`` for llama.cpp, with its tokenizer and template.

    ``dtype`` is that of the matrices; norms and biases are float32, as llama.cpp's converter keeps them. Rows that a
    block size does not divide fall back to float16, and below 8 bits the output matrix (a tied embedding) is ``q8_0``,
    since llama-quantize keeps it above the rest. The report's notes say both, and what llama.cpp does otherwise than
    the source's tokenizer. ``pre_tokenizer`` is llama.cpp's name of how text is cut into words, where tokenizer.json
    has a way of its own that llama.cpp knows under a name; ``with_tokenizer=False`` writes a file that takes token ids
    only. ``generation`` and ``spec`` are those of :func:`glmlike.detect`. ``file`` appears whole or not at all.

    Raises:
        CannotExpressError: llama.cpp has no architecture that computes this decoder.
        CheckpointError: ``source`` is damaged, its tokenizer is none llama.cpp has, or ``file`` exists.
        GlmLikeError: the package ``gguf`` is missing, or ``dtype`` is none of its.
    """
    started = time.perf_counter()
    target = require_file(file)
    if dtype not in get_args(GgufDtype):
        raise ConfigError(
            f"dtype={dtype!r}: expected one of {', '.join(get_args(GgufDtype))}. For others, such as q4_k, write f16 "
            "and run llama.cpp's llama-quantize on the file."
        )
    gguf = _gguf()
    found = detect(source, generation=generation, spec=spec)
    architecture = architecture_of(found.spec)
    steps = _table(architecture, found.spec).steps(found.spec)
    planned = _planned(steps, dtype, found.spec)
    vocabulary = (
        gguf_vocabulary.read(found.folder, found.config, found.spec, architecture, generation, pre_tokenizer)
        if with_tokenizer
        else gguf_vocabulary.no_tokenizer(found.folder, found.config)
    )
    with whole_file(target) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            _write_fields(writer, found, architecture, dtype, vocabulary)
            size = _write_tensors(writer, planned, chain(_derived(found.spec), _converted(found, steps)))
        finally:
            writer.close()
    return ConversionReport(
        source=found.folder,
        destination=target,
        source_format=found.format,
        target_format=cast(Format, "gguf"),
        tensors=len(planned),
        bytes=size,
        dropped=tuple(sorted(found.table.dropped_names(found.spec) & found.checkpoint.tensors.keys())),
        notes=(*found.notes, *_notes_on(planned, dtype, found), *vocabulary.notes),
        seconds=time.perf_counter() - started,
    )


def planned_file(found: Detection, dtype: GgufDtype) -> tuple[int, dict[str, str]]:
    """What :func:`write_gguf` would write: the bytes of its tensors, and the type of each matrix, by GGUF's names.

    Raises:
        CannotExpressError, GlmLikeError: those of :func:`write_gguf`.
    """
    steps = _table(architecture_of(found.spec), found.spec).steps(found.spec)
    planned = _planned(steps, dtype, found.spec)
    return sum(item.size for item in planned), {item.name: item.kind for item in planned if len(item.shape) > 1}


def _planned(steps: list[Rule], dtype: GgufDtype, spec: DecoderSpec) -> list[_Planned]:
    return [_plan(name, shape, dtype, spec) for name, shape in _shapes(steps, spec).items()]


def require_file(file: str | Path) -> Path:
    """The new file to write. Raises CheckpointError: it is there, or its name does not end in .gguf."""
    target = Path(file)
    if not is_gguf(target):
        raise CheckpointError(f"{file}: GGUF is one file. Pass a new file name that ends in .gguf.")
    if target.exists():
        raise CheckpointError(f"{file}: exists already. Choose a new file, or remove this one.")
    return target


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file to write beside ``target`` that becomes it when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _table(architecture: Architecture, spec: DecoderSpec, **how: Any) -> FormatTable:
    rows = partial(table, architecture=architecture, **how)
    return FormatTable(cast(Format, "gguf"), rows, dropped=(LLAMA3_FACTORS,) if spec.rope_type == "llama3" else ())


def _shapes(steps: list[Rule], spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the file in its order, with its shape; LLaMA 3.1's rope factors first, as the converter does."""
    native = native_shapes(spec)
    found: dict[str, tuple[int, ...]] = {}
    if spec.rope_type == "llama3":
        found[LLAMA3_FACTORS] = (spec.rotary_dim // 2,)
    for step in steps:
        shapes = step.layout.foreign_shapes([native[name] for name in step.native])
        found |= dict(zip(step.foreign, shapes, strict=True))
    return found


def _plan(name: str, shape: tuple[int, ...], dtype: GgufDtype, spec: DecoderSpec) -> _Planned:
    """What llama.cpp's converter stores a tensor as (conversion/base.py, ``prepare_tensors``)."""
    kind = dtype.upper()
    if len(shape) == 1:
        kind = "F32"
    elif kind.startswith(("Q4", "Q5")) and name == ("token_embd" if spec.tie_word_embeddings else "output") + ".weight":
        kind = "Q8_0"
    block, size = _block(kind)
    if shape[-1] % block:
        kind, block, size = "F16", 1, 2
    return _Planned(name, shape, kind, math.prod(shape) // block * size)


def _block(kind: str) -> tuple[int, int]:
    """Numbers and bytes of one block of a type."""
    gguf = _gguf()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(block), int(size)


def _notes_on(planned: list[_Planned], dtype: GgufDtype, found: Detection) -> list[str]:
    kinds = Counter(item.kind for item in planned if len(item.shape) > 1)
    wanted = dtype.upper()
    notes = []
    if fallen := [item.name for item in planned if item.kind == "F16" and wanted.startswith("Q")]:
        block = _block(wanted)[0]
        notes.append(f"{len(fallen)} matrices are f16: {block} does not divide their rows (first: {fallen[0]})")
    if kinds["Q8_0"] and wanted not in ("Q8_0",):
        notes.append(f"the output matrix is q8_0, the rest {dtype}: llama-quantize keeps it above the rest, too")
    stored = {info.dtype for info in found.checkpoint.tensors.values() if len(info.shape) > 1}
    exact = {"F32": {"F32", "F16", "BF16"}, "F16": {"F16"}, "BF16": {"BF16"}}.get(wanted, set())
    if narrowed := stored & {*_FLOATS, "F64"} - exact:
        notes.append(f"matrices of {', '.join(sorted(narrowed))} are rounded to {dtype}")
    return notes


def _derived(spec: DecoderSpec) -> Iterator[tuple[str, Tensor]]:
    """The tensors that hold no weights."""
    import torch

    if spec.rope_type == "llama3":
        yield LLAMA3_FACTORS, torch.tensor(llama3_factors(spec), dtype=torch.float32)


def _converted(source: Detection, steps: list[Rule]) -> Iterator[tuple[str, Tensor]]:
    """Every foreign tensor of ``steps``, made from the source step by step; a native tensor is let go once used."""
    makers = by_native(source.table.steps(source.spec))
    ready: dict[str, Tensor] = {}
    for step in steps:
        for name in step.native:
            if name not in ready:
                maker = makers[name]
                ready.update(zip(maker.native, to_native(source, maker), strict=True))
        yield from zip(step.foreign, step.layout.to_foreign([ready.pop(name) for name in step.native]), strict=True)


def _write_fields(
    writer: Any,
    found: Detection,
    architecture: Architecture,
    dtype: GgufDtype,
    vocabulary: gguf_vocabulary.Vocabulary,
) -> None:
    gguf = _gguf()
    writer.add_type("model")
    writer.add_name(found.folder.resolve().name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])
    fields = {**fields_of(found.spec, architecture), **vocabulary.fields()}
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _write_tensors(writer: Any, planned: list[_Planned], tensors: Iterator[tuple[str, Tensor]]) -> int:
    """Write header, metadata, the list of tensors, then each tensor as it comes; the number of bytes of tensors."""
    import numpy as np

    types = _gguf().GGMLQuantizationType
    for item in planned:
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.size, raw_dtype=types[item.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for item, (name, tensor) in zip(planned, tensors, strict=True):
        if (item.name, item.shape) != (name, tuple(tensor.shape)):
            raise CheckpointError(f"planned {item.name!r} {item.shape}, but got {name!r} {tuple(tensor.shape)}.")
        for rows in tensor.split(_rows_at_a_time(item.shape)):  # type: ignore[no-untyped-call]
            out.write(encode(rows, item.kind, name).tobytes())
        writer.write_padding(out, item.size)
    return sum(item.size for item in planned)


def _rows_at_a_time(shape: tuple[int, ...]) -> int:
    return max(1, _BLOCK_BYTES // (4 * math.prod(shape[1:])))


def encode(rows: Tensor, kind: str, name: str = "tensor") -> np.ndarray[Any, Any]:
    """Rows of floats as a GGUF type: the bytes themselves where the type is theirs, else rounded from float32.

    Raises:
        CheckpointError: a number that float16 cannot hold.
    """
    import numpy as np
    import torch

    gguf = _gguf()
    rows = rows.detach().contiguous()
    if str(rows.dtype) == f"torch.{_FLOATS.get(kind)}":
        return cast("np.ndarray[Any, Any]", rows.view(torch.uint8).numpy())
    numbers = rows.to(torch.float32).numpy()
    with np.errstate(over="ignore"):
        found = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    if kind == "F16" and np.isinf(found).sum() > np.isinf(numbers).sum():
        raise CheckpointError(f"{name!r} holds numbers beyond float16's 65504. Write dtype 'bf16' or 'f32' instead.")
    return cast("np.ndarray[Any, Any]", found)


# --- in --------------------------------------------------------------------------------------------------------------


@dataclass
class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF file: each is decoded when it is read, to ``dtype`` (a name of torch's)."""

    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    blocks: dict[str, Any] = field(default_factory=dict, repr=False)
    dtype: str = "float32"

    def read(self, name: str) -> Tensor:
        if name not in self.blocks:
            raise CheckpointError(f"{self.folder}: holds no {name!r}.")
        return decode(self.blocks[name], self.tensors[name].shape, self.dtype)

    def stream(self, name: str) -> Stream:
        made = LastMade(lambda: [self.read(name)])
        return Loaded(made.get, dtype_name(self.dtype), self.tensors[name].shape)

    def stored(self, path: Path, name: str) -> Stream:
        return self.stream(name)


@dataclass(frozen=True)
class GgufDetection(Detection):
    """What a GGUF file is: ``folder`` is the file, ``config`` is what our config.json would say."""

    architecture: Architecture = "llama"
    fused: tuple[str, ...] = ()

    @property
    def table(self) -> FormatTable:
        return _table(self.architecture, self.spec, fused=self.fused)

    @property
    def notes(self) -> tuple[str, ...]:
        kinds = Counter(info.dtype for info in self.checkpoint.tensors.values())
        blocks = {kind: count for kind, count in kinds.items() if kind not in _FLOATS}
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(blocks.items()))
        return (f"dequantized to {cast(GgufCheckpoint, self.checkpoint).dtype}: {said}",) if blocks else ()


def decode(stored: Any, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor of a GGUF file as ``dtype``: the bytes themselves where they are that, else by way of float32."""
    import numpy as np
    import torch

    gguf = _gguf()
    target = getattr(torch, dtype)
    kind = stored.tensor_type
    if _FLOATS.get(kind.name) == dtype:
        raw = torch.from_numpy(np.array(stored.data).reshape(-1).view(np.uint8))
        return raw.view(target).reshape(shape)
    whole = torch.empty(shape, dtype=target)
    step = _rows_at_a_time(shape)
    for start in range(0, shape[0], step):
        rows = np.array(stored.data[start : start + step])
        numbers = gguf.quants.dequantize(rows, kind)
        whole[start : start + step] = torch.from_numpy(np.ascontiguousarray(numbers)).reshape(-1, *shape[1:])
    return whole


def detect_gguf(file: str | Path, *, dtype: str | None = None) -> GgufDetection:
    """What a GGUF file holds, from its metadata, checked against every tensor's name and shape.

    ``dtype`` is what its tensors are read as, a name of torch's. Default: the type of the matrices where they are all
    one float type and every norm and bias (stored as float32) fits it exactly; else float32.

    Raises:
        CheckpointError: damaged, not of an architecture this package has, split into parts, or of a block type that
            the package ``gguf`` does not decode.
    """
    path = Path(file)
    reader = _open(path)
    try:
        fields = {name: entry.contents() for name, entry in reader.fields.items()}
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error}). Download it again.") from None
    if fields.get("split.count", 1) > 1:
        raise CheckpointError(f"{path}: one of {fields['split.count']} parts. Join them with llama-gguf-split --merge.")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors = {name: _info(name, tensor, path) for name, tensor in stored.items()}
    _require_decodable(stored, path)
    shapes = {name: info.shape for name, info in tensors.items()}
    factors = stored[LLAMA3_FACTORS].data.tolist() if LLAMA3_FACTORS in stored else None
    try:
        architecture, spec = read_spec(fields, shapes, factors, str(path))
    except SpecError as error:
        raise type(error)(f"{path}: {error}") from None
    chosen = _dtype_of(stored) if dtype is None else _require_dtype(dtype)
    checkpoint = GgufCheckpoint(path, (path,), tensors, fields=fields, blocks=stored, dtype=chosen)
    config = {**write_config(spec, "glmlike"), **gguf_vocabulary.token_ids(fields), "dtype": chosen}
    fused = tuple(kind for kind in ("weight", "bias") if f"blk.0.attn_qkv.{kind}" in stored)
    found = GgufDetection(
        path, cast(Format, "gguf"), spec, config, checkpoint, "its metadata", architecture=architecture, fused=fused
    )
    expected = found.table.foreign_shapes(spec)
    require_exact(expected, tensors.keys() - {LLAMA3_FACTORS}, str(path), "its metadata")
    require_shapes(expected, tensors, "its metadata")
    return found


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: not there. Pass a GGUF file.")
    refuse_lfs_pointer(path)
    try:
        return _gguf().GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError, TypeError) as error:
        raise CheckpointError(f"{path}: not a GGUF file, or damaged ({error}). Download it again.") from None


def _info(name: str, tensor: Any, path: Path) -> TensorInfo:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    start = int(tensor.data_offset)
    return TensorInfo(name, tensor.tensor_type.name, shape, path, start, start + int(tensor.n_bytes))


def _require_decodable(stored: Mapping[str, Any], path: Path) -> None:
    import numpy as np

    gguf = _gguf()
    for kind in {tensor.tensor_type for tensor in stored.values()}:
        size = gguf.GGML_QUANT_SIZES[kind][1]
        try:
            gguf.quants.dequantize(np.zeros((1, size), dtype=np.uint8), kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{path}: holds {kind.name} tensors, which the package gguf does not decode. Turn the file into F16 "
                "with llama.cpp's llama-quantize --allow-requantize first."
            ) from None


def _require_dtype(dtype: str) -> str:
    if dtype not in _FLOATS.values():
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(_FLOATS.values())}.")
    return dtype


def _dtype_of(stored: Mapping[str, Any]) -> str:
    import torch

    kinds = {tensor.tensor_type.name for tensor in stored.values() if len(tensor.shape) > 1}
    if kinds not in ({"F16"}, {"BF16"}):
        return "float32"
    dtype = _FLOATS[kinds.pop()]
    for name, tensor in stored.items():
        if len(tensor.shape) == 1 and name != LLAMA3_FACTORS:
            numbers = decode(tensor, (tensor.n_elements,), "float32")
            if not torch.equal(numbers.to(getattr(torch, dtype)).to(torch.float32), numbers):
                return "float32"
    return dtype


def read_gguf(
    file: str | Path,
    folder: str | Path,
    *,
    to: Format = "glmlike",
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
) -> ConversionReport:
    """Write the model in a GGUF file to the new ``folder`` in the format ``to``, with tokenizer and chat template.

    ``dtype`` is that of :func:`detect_gguf`; blocks of integers are dequantized to it. The tokenizer becomes
    tokenizer.json where it can be rebuilt exactly; the report's notes say where it cannot.

    Raises:
        CheckpointError: ``file`` cannot be read, or ``folder`` holds something already.
        CannotExpressError: ``to`` has no way to say this decoder.
    """
    started = time.perf_counter()
    found = detect_gguf(file, dtype=dtype)
    if to not in TABLES or TABLES[to].splits:
        able = ", ".join(name for name, format_table in TABLES.items() if not format_table.splits)
        raise ConfigError(f"to={to!r}: expected one of {able}. Rank files are written from a folder of these.")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = {**ids, **carried_fields(found.config), **write_config(found.spec, to)}
    limit = parse_size(max_shard_size)
    checkpoint = cast(GgufCheckpoint, found.checkpoint)
    files, notes = gguf_vocabulary.to_files(checkpoint.fields, str(file))
    target = Path(folder)
    with whole_folder(target, None) as place:
        index = write_shards(place, _converted(found, TABLES[to].steps(found.spec)), limit)
        for name, content in {"config.json": config, **files}.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n" if isinstance(content, dict) else content
            (place / name).write_text(text, encoding="utf8")
    return ConversionReport(
        source=Path(file),
        destination=target,
        source_format=cast(Format, "gguf"),
        target_format=to,
        tensors=len(index["weight_map"]),
        bytes=index["metadata"]["total_size"],
        dropped=tuple(sorted({LLAMA3_FACTORS} & checkpoint.tensors.keys())),
        notes=(*found.notes, *notes),
        seconds=time.perf_counter() - started,
    )


# --- either way ------------------------------------------------------------------------------------------------------


def exact_dtype(found: Detection) -> GgufDtype:
    """The float type of a folder's matrices; float32 where they differ, or are of none that GGUF has."""
    kinds = {info.dtype for info in found.checkpoint.tensors.values() if len(info.shape) > 1}
    exact: dict[str, GgufDtype] = {"F16": "f16", "BF16": "bf16"}
    return exact.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32"


def convert_gguf(
    source: str | Path,
    destination: str | Path,
    *,
    to: Format | Literal["gguf"],
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    max_shard_size: str | int = "5GB",
    dtype: str | None = None,
) -> ConversionReport:
    """What :func:`glmlike.convert` does where one end is a GGUF file: :func:`read_gguf`, or :func:`write_gguf` exactly.

    Raises:
        ConfigError: both ends are GGUF.
    """
    if not is_gguf(source):
        if dtype is None:
            dtype = exact_dtype(detect(source, generation=generation, spec=spec))
        dtype = {name: kind.lower() for kind, name in _FLOATS.items()}.get(dtype, dtype)
        return write_gguf(source, destination, dtype=cast(GgufDtype, dtype), generation=generation, spec=spec)
    if to == "gguf":
        raise ConfigError(f"{source}: is GGUF already. Change its type with llama.cpp's llama-quantize.")
    return read_gguf(source, destination, to=to, dtype=dtype, max_shard_size=max_shard_size)
