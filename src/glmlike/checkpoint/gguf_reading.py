"""What a GGUF file holds: its decoder, from its metadata, and its tensors as streams of rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from glmlike.checkpoint import gguf_vocabulary, provenance
from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.detection import Detection
from glmlike.checkpoint.formats import FormatTable
from glmlike.checkpoint.formats.llama_cpp import LLAMA3_FACTORS, Architecture, table
from glmlike.checkpoint.gguf_blocks import FLOATS, Exactly, Unpacked, block_types, bytes_of, gguf_package
from glmlike.checkpoint.gguf_fields import read_spec
from glmlike.checkpoint.gguf_file import RECORD
from glmlike.checkpoint.gguf_headers import read_gguf_header
from glmlike.checkpoint.headers import TensorInfo, require_shapes
from glmlike.checkpoint.rules import require_exact
from glmlike.checkpoint.shards import Checkpoint
from glmlike.checkpoint.streams import Cast, Stored, Stream, dtype_name, read_all, stretches
from glmlike.errors import CheckpointError, ConfigError, SpecError
from glmlike.hub_json import Format, write_config
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

_COMPARED = 2**20  # bytes of a norm that are looked at at a time


@dataclass
class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF file: each is read as ``dtype`` (safetensors' name), or as ``dtypes`` says of it."""

    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    dtype: str = "F32"
    dtypes: Mapping[str, str] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> Tensor:
        return read_all(self.stream(name))

    def stream(self, name: str) -> Stream:
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: holds no {name!r}.")
        info, dtype = self.tensors[name], self.dtypes.get(name, self.dtype)
        stored = self.stored(info.file, name)
        if info.dtype not in FLOATS:
            unpacked = Unpacked(stored, info.dtype, info.shape)
            return unpacked if dtype == "F32" else Cast(unpacked, dtype)
        if info.dtype == dtype:
            return stored
        exact = dtype == "F32" or name in self.dtypes or (info.dtype, len(info.shape)) == ("F32", 1)
        return Exactly(stored, dtype) if exact else Cast(stored, dtype)

    def stored(self, path: Path, name: str) -> Stream:
        """The bytes in the file; those of blocks as rows of bytes."""
        info = self.tensors[name]
        file = self._bytes.setdefault(path, ByteFile(path))
        if info.dtype in FLOATS:
            return Stored(file, info.start, info.dtype, info.shape)
        shape = (*info.shape[:-1], bytes_of(info.dtype, info.shape[-1:]))
        return Stored(file, info.start, "U8", shape)


@dataclass(frozen=True)
class GgufDetection(Detection):
    """What a GGUF file is: ``folder`` is the file, ``config`` is what our config.json would say."""

    architecture: Architecture = "llama"
    fused: tuple[str, ...] = ()

    @property
    def table(self) -> FormatTable:
        return gguf_table(self.architecture, self.spec, fused=self.fused)

    @property
    def fields(self) -> dict[str, Any]:
        """The metadata by key."""
        return cast(GgufCheckpoint, self.checkpoint).fields

    @property
    def notes(self) -> tuple[str, ...]:
        kinds = Counter(info.dtype for info in self.checkpoint.tensors.values() if info.dtype not in FLOATS)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        dequantized = (f"dequantized to {self.config['dtype']}: {said}",) if kinds else ()
        return (*dequantized, *gguf_vocabulary.lost(self.fields))

    @property
    def record(self) -> dict[str, Any] | None:
        text = self.fields.get(RECORD)
        return provenance.read_record(text, self.folder) if isinstance(text, str) else None

    @property
    def companions(self) -> tuple[list[str], tuple[str, ...]]:
        """The names of the files that :meth:`write_companions` writes, and what is lost of the tokenizer."""
        return gguf_vocabulary.names_of_files(self.fields), tuple(gguf_vocabulary.lost(self.fields))

    @property
    def memory_of_companions(self) -> int:
        """The most bytes that :meth:`write_companions` takes: what each string of the metadata becomes was measured."""
        return 240 * sum(len(value) for value in self.fields.values() if isinstance(value, list))

    def write_companions(self, folder: Path) -> None:
        """Write the tokenizer's files, the chat template and the generation config beside a folder's weights."""
        files = gguf_vocabulary.to_files(self.fields, str(self.folder))
        for name in list(files):
            content = files.pop(name)
            with (folder / name).open("w", encoding="utf8") as file:
                if isinstance(content, dict):  # the text of hundreds of thousands of merges is never in memory
                    json.dump(content, file, indent=2, ensure_ascii=False)
                    file.write("\n")
                else:
                    file.write(content)


def gguf_table(architecture: Architecture, spec: DecoderSpec, **how: Any) -> FormatTable:
    """llama.cpp's table; LLaMA 3.1's rope factors follow from the spec, so they are declared to be dropped."""
    rows = partial(table, architecture=architecture, **how)
    return FormatTable(cast(Format, "gguf"), rows, dropped=(LLAMA3_FACTORS,) if spec.rope_type == "llama3" else ())


def detect_gguf(
    file: str | Path, *, dtype: str | None = None, dtypes: Mapping[str, str] | None = None
) -> GgufDetection:
    """What a GGUF file holds, from its metadata, checked against every tensor's name and shape.

    ``dtype`` is what its tensors are read as, a name of torch's. Default: the type of the matrices where they are all
    one float type and every norm and bias (stored as float32) fits it exactly; else float32. ``dtypes``, by name and
    as safetensors names them, say it of single tensors that are known to fit.

    Raises:
        CheckpointError: damaged, not of an architecture this package has, split into parts, or of a block type that
            the package ``gguf`` does not decode.
    """
    path = Path(file)
    fields, tensors = read_gguf_header(path, block_types())
    if fields.get("split.count", 1) > 1:
        raise CheckpointError(f"{path}: one of {fields['split.count']} parts. Join them with llama-gguf-split --merge.")
    _require_decodable(tensors, path)
    checkpoint = GgufCheckpoint(path, (path,), tensors, fields=fields, dtypes=dtypes or {})
    shapes = {name: info.shape for name, info in tensors.items()}
    factors = checkpoint.read(LLAMA3_FACTORS).tolist() if LLAMA3_FACTORS in tensors else None
    try:
        architecture, spec = read_spec(fields, shapes, factors, str(path))
    except SpecError as error:
        raise type(error)(f"{path}: {error}") from None
    chosen = _dtype_of(checkpoint) if dtype is None else _require_dtype(dtype)
    checkpoint.dtype = dtype_name(chosen)
    config = {**write_config(spec, "glmlike"), **gguf_vocabulary.token_ids(fields), "dtype": chosen}
    fused = tuple(kind for kind in ("weight", "bias") if f"blk.0.attn_qkv.{kind}" in tensors)
    found = GgufDetection(
        path, cast(Format, "gguf"), spec, config, checkpoint, "its metadata", architecture=architecture, fused=fused
    )
    expected = found.table.foreign_shapes(spec)
    require_exact(expected, tensors.keys() - {LLAMA3_FACTORS}, str(path), "its metadata")
    require_shapes(expected, tensors, "its metadata")
    return found


def _require_decodable(tensors: Mapping[str, TensorInfo], path: Path) -> None:
    kinds = sorted({info.dtype for info in tensors.values()} - FLOATS.keys())
    if not kinds:
        return
    import numpy as np

    gguf = gguf_package()
    for kind in kinds:
        number = gguf.GGMLQuantizationType[kind]
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[number][1]), dtype=np.uint8), number)
        except NotImplementedError:
            raise CheckpointError(
                f"{path}: holds {kind} tensors, which the package gguf does not decode. Turn the file into F16 with "
                "llama.cpp's llama-quantize --allow-requantize first."
            ) from None


def _require_dtype(dtype: str) -> str:
    if dtype not in FLOATS.values():
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(FLOATS.values())}.")
    return dtype


def _dtype_of(checkpoint: GgufCheckpoint) -> str:
    kinds = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1}
    if kinds not in ({"F16"}, {"BF16"}):
        return "float32"
    kind = kinds.pop()
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 1 and name != LLAMA3_FACTORS and not _fits(checkpoint.stored(info.file, name), kind):
            return "float32"
    return FLOATS[kind]


def _fits(stored: Stream, kind: str) -> bool:
    """Whether every float32 number of a stream is one of a narrower type."""
    import numpy as np

    if stored.dtype != "F32":
        return stored.dtype == kind
    for start, stop in stretches(stored, _COMPARED):
        raw = memoryview(bytearray(stop - start))
        stored.read_into(raw, start)
        if kind == "BF16":
            same = not (np.frombuffer(raw, np.uint32) & 0xFFFF).any()
        else:
            numbers = np.frombuffer(raw, np.float32)
            with np.errstate(over="ignore"):
                same = np.array_equal(numbers.astype(np.float16).astype(np.float32), numbers)
        if not same:
            return False
    return True
