"""What a folder holds: its format, its decoder, and its tensors, as torch has them or as streams of bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint import provenance
from glmlike.checkpoint.formats import TABLES, FormatTable, table_of
from glmlike.checkpoint.given import require_agreement
from glmlike.checkpoint.headers import require_shapes
from glmlike.checkpoint.layouts import Repeated
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.packed import PackedCheckpoint, first_packed, unpacked
from glmlike.checkpoint.packed_configs import NAMES, read_config
from glmlike.checkpoint.quantized import SCALE, find_integers, with_integers
from glmlike.checkpoint.ranked import RANKED, ranked_format
from glmlike.checkpoint.ranks import RankedCheckpoint
from glmlike.checkpoint.rules import Rule, require_exact
from glmlike.checkpoint.shards import Checkpoint, open_checkpoint, read_json
from glmlike.checkpoint.streams import FLOATS, Dequantized, Stream, dtype_name, first_difference
from glmlike.checkpoint.through_layouts import to_native_streams
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import INTEGER_METHOD, Format, Generation, dropped_rows, integer_bits, read_spec
from glmlike.hub_json import detect as detect_config
from glmlike.integers import dequantize
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_COMPARED = 2**22  # bytes of two copies in memory at a time


@dataclass(frozen=True)
class Detection:
    """What a folder is: its format, its decoder, its config and its (unread) tensors; ``said_by`` says the decoder.

    ``integers`` are the matrices that its files hold as integers of ``bits`` bits with row scales.
    """

    folder: Path
    format: Format
    spec: DecoderSpec
    config: dict[str, Any]
    checkpoint: Checkpoint
    said_by: str = "config.json"
    bits: int | None = None
    integers: frozenset[str] = frozenset()

    @property
    def table(self) -> FormatTable:
        """The table of the folder's format."""
        return table_of(self.format, dropped_rows(self.config))

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the folder does not travel as it stands: integers, a wish to quantize, rows of image tokens."""
        found = []
        if self.integers:
            read = f"read as int x scale in {self.dtype_name}"
            found.append(f"{len(self.integers)} matrices of {self.bits}-bit integers, {read}")
        elif self.bits is not None:
            found.append(f"quantization_bit={self.bits}, but every matrix is of floats: read as they are")
        if isinstance(self.checkpoint, PackedCheckpoint):
            found += self.checkpoint.notes
        if rows := dropped_rows(self.config):
            found.append(f"v1.0: rows :{rows} of embedding and head (image tokens) are dropped, ids are v1.1's")
        return tuple(found)

    @property
    def companions(self) -> tuple[list[str], tuple[str, ...]] | None:
        """Of a single file whose metadata hold them: the names of a folder's other files, and what is lost of them."""
        return None

    @property
    def memory_of_companions(self) -> int:
        """The most bytes that writing :attr:`companions` takes."""
        return 0

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of the conversion that wrote this, or None. Raises CheckpointError if there is no sense in it."""
        return provenance.earlier_record(self.folder)

    @property
    def dtype_name(self) -> str:
        """What integers are read as: the dtype of config.json, else float16, which every pre-quantized release has."""
        return _dtype_of(self.config, self.folder / "config.json")

    def read(self, name: str) -> Tensor:
        """One foreign tensor, dequantized where it is of integers."""
        tensor = self.checkpoint.read(name)
        if name not in self.integers or self.bits is None:
            return tensor
        import torch

        dtype = getattr(torch, self.dtype_name)
        return dequantize(tensor, self.checkpoint.read(name + SCALE), self.bits, dtype)

    def stream(self, name: str) -> Stream:
        """The bytes of one foreign tensor, dequantized where it is of integers."""
        stream = self.checkpoint.stream(name)
        if name not in self.integers or self.bits is None:
            return stream
        return Dequantized(stream, self.checkpoint.stream(name + SCALE), self.bits, dtype_name(self.dtype_name))


def detect(
    folder: str | Path, *, generation: Generation | None = None, spec: str | DecoderSpec | None = None
) -> Detection:
    """What ``folder`` holds, from the fields of its config.json, checked against every tensor's name and shape.

    Folders of rank files have no config.json. GLM-130B's (``latest``): their ``model_config.json`` says the decoder, or
    ``spec``, a name of :mod:`glmlike.published` or a DecoderSpec, or else the shapes. Meta's LLaMA
    (``consolidated.NN.pth``): ``params.json`` or ``spec``. Where a config.json is, ``spec`` must agree with it.
    A ``folder`` that ends in .gguf is that file.

    Raises:
        ConfigError: config.json is absent, unreadable or of no known format, or contradicts ``spec``.
        CheckpointError: the weights are damaged, or are not what config.json describes.
    """
    found = look(folder, generation=generation, spec=spec)
    require_whole(found)
    return found


def require_whole(found: Detection) -> None:
    """Raise CheckpointError unless every tensor of the decoder, and no other, is there, in its shape."""
    expected = _expected(found)
    tensors = found.checkpoint.tensors
    _require_own_numbers(found.folder, found.config, expected.keys() ^ (tensors.keys() - set_aside(found)))
    require_exact(expected, tensors.keys() - set_aside(found), str(found.folder), found.said_by)
    require_shapes(expected, tensors, found.said_by)


def look(
    folder: str | Path, *, generation: Generation | None = None, spec: str | DecoderSpec | None = None
) -> Detection:
    """:func:`detect` without the check that every tensor of the decoder, and no other, is there."""
    folder = Path(folder)
    if folder.suffix == ".gguf":
        from glmlike.checkpoint.gguf_reading import detect_gguf

        return detect_gguf(folder)
    ranked = ranked_format(folder)
    if ranked is not None:
        decoder, config, said_by, checkpoint = RANKED[ranked].open_folder(folder, spec)
        return Detection(folder, ranked, decoder, config, checkpoint, said_by)
    found = _detect_by_config(folder, generation)
    require_agreement(found.spec, spec, folder / "config.json")
    return found


def _require_own_numbers(folder: Path, config: dict[str, Any], wrong: Set[str]) -> None:
    """Raise ConfigError if tensors are ``wrong`` because another library quantized them, as config.json says."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    if wrong and method not in (None, INTEGER_METHOD):
        raise ConfigError(
            f"{folder}: quantized by {method}: its files hold that library's tensors (first: {min(wrong)!r}), "
            "not the decoder's. Use the floats it was made of; or load it with AutoModelForCausalLM, call dequantize() "
            "where the library has it, and save_pretrained."
        )


def missing_and_unknown(found: Detection) -> tuple[list[str], list[str]]:
    """The tensors that the decoder needs and no file holds, and those that the files hold and nothing needs."""
    expected, there = _expected(found).keys(), found.checkpoint.tensors.keys()
    return sorted(expected - there), sorted(there - expected - set_aside(found))


def _expected(found: Detection) -> dict[str, tuple[int, ...]]:
    return with_integers(found.table.foreign_shapes(found.spec), found.integers, found.bits or 8)


def _detect_by_config(folder: Path, generation: Generation | None) -> Detection:
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{path}: not there. Pass a checkpoint's folder, with its config.json (rank files have none: GLM-130B's "
            "have 'latest' instead, Meta's LLaMA params.json and consolidated.NN.pth)."
        )
    config = read_json(path)
    fmt = detect_config(config, str(path))
    if fmt in RANKED:
        raise ConfigError(f"{path}: holds the launch arguments of rank files. Name it {RANKED[fmt].file}, beside them.")
    spec = read_spec(config, str(path), generation=generation)
    checkpoint = _whole_names(open_checkpoint(folder), TABLES[fmt])
    if spec.prefix_length and not any("prefix_encoder." in name for name in checkpoint.tensors):
        logger.warning("%s: pre_seq_len=%d, but the files hold no prefix: read without one.", path, spec.prefix_length)
        spec = spec.replace(prefix_length=0, prefix_projection=False)
    bits = integer_bits(config, str(path))
    shapes = table_of(fmt, dropped_rows(config)).foreign_shapes(spec)
    checkpoint = _floats_of(checkpoint, config, shapes, path)
    _require_own_numbers(folder, config, shapes.keys() - checkpoint.tensors.keys())
    integers = find_integers(checkpoint.tensors, shapes, bits, str(folder))
    return Detection(folder, fmt, spec, config, checkpoint, bits=bits, integers=integers)


def _floats_of(
    checkpoint: Checkpoint, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Checkpoint:
    """The checkpoint, with the floats in the place of matrices that GPTQ, AWQ or compressed-tensors packed."""
    first = first_packed(checkpoint.tensors)
    if first is not None and not config.get("quantization_config"):
        raise ConfigError(
            f"{path}: has no 'quantization_config', but the files hold {first!r}: integers of "
            f"{', '.join(NAMES.values())} or the like. Add the one of the original repository (AutoGPTQ's is in "
            'quantize_config.json, AutoAWQ\'s in quant_config.json; with "quant_method": "gptq" or "awq").'
        )
    floats = (dtype_name(checkpoint.tensors[name].dtype) in FLOATS for name in shapes if name in checkpoint.tensors)
    if shapes.keys() <= checkpoint.tensors.keys() and all(floats):
        return checkpoint
    said = read_config(config, str(path))
    return checkpoint if said is None else unpacked(checkpoint, said, shapes, _dtype_of(config, path))


def _dtype_of(config: Mapping[str, Any], path: Path) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float16").removeprefix("torch.")
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise ConfigError(f"{path}: torch_dtype={name!r}: expected one such as 'float16'.")
    return name


def _whole_names(checkpoint: Checkpoint, table: FormatTable) -> Checkpoint:
    """The checkpoint under its format's full names: files of a bare decoder leave the prefix of all names out."""
    left_out = table.prefix and not any(name.startswith(table.prefix) for name in checkpoint.tensors)
    return checkpoint.under(table.prefix) if left_out else checkpoint


def set_aside(found: Detection) -> set[str]:
    """The tensors of the folder that are not converted: declared drops, and copies of another tensor."""
    declared = found.table.dropped_names(found.spec) | found.table.copies(found.spec).keys()
    return declared & found.checkpoint.tensors.keys()


def native_tensors(found: Detection) -> Iterator[tuple[str, Tensor]]:
    """Every native tensor of a folder, one step of the plan at a time.

    Raises:
        CheckpointError: a layout or a copy contradicts itself; the message names the tensor.
    """
    require_equal_copies(found)
    for step in found.table.steps(found.spec):
        yield from zip(step.native, to_native(found, step), strict=True)


def to_native(found: Detection, step: Rule) -> list[Tensor]:
    """The native tensors of one step of a folder's plan.

    Raises:
        CheckpointError: the layout contradicts itself; the message names the tensor.
    """
    try:
        return step.layout.to_native([found.read(name) for name in step.foreign])
    except CheckpointError as error:
        raise CheckpointError(f"{found.folder}: {step.foreign[0]!r}: {error}.") from None


def native_streams(found: Detection, without: frozenset[str] = frozenset()) -> dict[str, Stream]:
    """Every native tensor of a folder of any format, as the bytes a safetensors file would hold; nothing is read.

    Those that need a foreign tensor of ``without`` are left out. Where a file holds copies of one tensor,
    the first is taken: see :func:`require_equal_copies`.
    """
    shapes = native_shapes(found.spec)
    streams: dict[str, Stream] = {}
    for step in found.table.steps(found.spec):
        if not without.isdisjoint(step.foreign):
            continue
        foreign = [found.stream(name) for name in step.foreign]
        made = to_native_streams(step.layout, foreign, [shapes[name] for name in step.native])
        streams.update(zip(step.native, made, strict=True))
    return streams


def require_equal_copies(found: Detection) -> None:
    """Tensors that the format, a tied model, or several ranks store more than once are the same to the bit.

    Raises:
        CheckpointError: two differ; both are named.
    """
    if isinstance(found.checkpoint, RankedCheckpoint):
        found.checkpoint.require_equal_copies(_COMPARED)
    for step in found.table.steps(found.spec):
        if isinstance(step.layout, Repeated) and len(step.foreign) > 1:
            streams = [found.stream(name) for name in step.foreign]
            if first_difference(streams, _COMPARED) is not None:
                raise CheckpointError(
                    f"{found.folder}: {step.foreign[0]!r}: found {len(streams)} different tensors, expected "
                    f"{len(streams)} copies of one."
                )
    for copy, original in found.table.copies(found.spec).items():
        if copy not in found.checkpoint.tensors:
            continue
        left, right = found.stream(copy), found.stream(original)
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        if not alike or first_difference([left, right], _COMPARED) is not None:
            raise CheckpointError(
                f"{found.folder}: config.json ties {copy!r} to {original!r}, but the files hold two different "
                "tensors. Set tie_word_embeddings to false in config.json to keep both."
            )
