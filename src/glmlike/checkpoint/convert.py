"""Detect what a folder holds, convert it to another format, compare two folders: three readers of the same plan."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmlike.checkpoint import sat
from glmlike.checkpoint.formats import TABLES, FormatTable, table_of
from glmlike.checkpoint.headers import require_shapes
from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.quantized import SCALE, find_integers, with_integers
from glmlike.checkpoint.ranks import is_ranked, write_ranks
from glmlike.checkpoint.rules import Rule, by_native, require_exact
from glmlike.checkpoint.shards import (
    Checkpoint,
    open_checkpoint,
    parse_size,
    read_json,
    whole_folder,
    write_shards,
)
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import (
    FORMATS,
    INTEGER_METHOD,
    Format,
    Generation,
    carried_fields,
    dropped_rows,
    integer_bits,
    read_spec,
    write_config,
)
from glmlike.hub_json import detect as detect_config
from glmlike.integers import dequantize
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_SHARD_SIZE = "5GB"

# What belongs to a model besides config.json and weights, and travels with it. Never code.
_COMPANIONS = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("*.model", "vocab*", "merges.txt", "LICENSE*", "README*", "additional_chat_templates"),
)


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
            read = f"read as int x scale in {self._dtype_name}"
            found.append(f"{len(self.integers)} matrices of {self.bits}-bit integers, {read}")
        elif self.bits is not None:
            found.append(f"quantization_bit={self.bits}, but every matrix is of floats: read as they are")
        if rows := dropped_rows(self.config):
            found.append(f"v1.0: rows :{rows} of embedding and head (image tokens) are dropped, ids are v1.1's")
        return tuple(found)

    @property
    def _dtype_name(self) -> str:
        """What integers are read as: the dtype of config.json, else float16, which every pre-quantized release has."""
        name = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float16").removeprefix("torch.")
        if name not in ("float16", "bfloat16", "float32", "float64"):
            raise ConfigError(f"{self.folder / 'config.json'}: torch_dtype={name!r}: expected one such as 'float16'.")
        return name

    def read(self, name: str) -> Tensor:
        """One foreign tensor, dequantized where it is of integers."""
        tensor = self.checkpoint.read(name)
        if name not in self.integers or self.bits is None:
            return tensor
        import torch

        dtype = getattr(torch, self._dtype_name)
        return dequantize(tensor, self.checkpoint.read(name + SCALE), self.bits, dtype)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: both ends, the tensors and bytes written, the declared drops, and the seconds it took.

    ``notes`` say what was not carried over bit for bit: see :attr:`Detection.notes`.
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


def detect(
    folder: str | Path, *, generation: Generation | None = None, spec: str | DecoderSpec | None = None
) -> Detection:
    """What ``folder`` holds, from the fields of its config.json, checked against every tensor's name and shape.

    GLM-130B's folders (``latest`` and rank files) have no config.json: their ``model_config.json`` says the decoder, or
    ``spec``, a name of :mod:`glmlike.published` or a DecoderSpec, or else the shapes. Where a config.json is, ``spec``
    must agree with it. A ``folder`` that ends in .gguf is that file.

    Raises:
        ConfigError: config.json is absent, unreadable or of no known format, or contradicts ``spec``.
        CheckpointError: the weights are damaged, or are not what config.json describes.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf":
        from glmlike.checkpoint.gguf import detect_gguf

        return detect_gguf(folder)
    if not (folder / "config.json").exists() and is_ranked(folder):
        decoder, config, said_by, checkpoint = sat.open_folder(folder, spec)
        found = Detection(folder, "glm-130b", decoder, config, checkpoint, said_by)
    else:
        found = _detect_by_config(folder, generation)
        sat.require_agreement(found.spec, spec, folder / "config.json")
    expected = with_integers(found.table.foreign_shapes(found.spec), found.integers, found.bits or 8)
    tensors = found.checkpoint.tensors
    require_exact(expected, tensors.keys() - _set_aside(found), str(folder), found.said_by)
    require_shapes(expected, tensors, found.said_by)
    return found


def _detect_by_config(folder: Path, generation: Generation | None) -> Detection:
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{path}: not there. Pass a checkpoint's folder, with its config.json (GLM-130B's have 'latest' instead)."
        )
    config = read_json(path)
    fmt = detect_config(config, str(path))
    if TABLES[fmt].splits:
        raise ConfigError(
            f"{path}: holds the launch arguments of rank files. Name it {sat.ARGUMENTS}, beside 'latest' and the "
            "folder of the rank files."
        )
    spec = read_spec(config, str(path), generation=generation)
    checkpoint = _whole_names(open_checkpoint(folder), TABLES[fmt])
    if spec.prefix_length and not any("prefix_encoder." in name for name in checkpoint.tensors):
        logger.warning("%s: pre_seq_len=%d, but the files hold no prefix: read without one.", path, spec.prefix_length)
        spec = spec.replace(prefix_length=0, prefix_projection=False)
    bits = integer_bits(config, str(path))
    shapes = table_of(fmt, dropped_rows(config)).foreign_shapes(spec)
    integers = find_integers(checkpoint.tensors, shapes, bits, str(folder))
    return Detection(folder, fmt, spec, config, checkpoint, bits=bits, integers=integers)


def _whole_names(checkpoint: Checkpoint, table: FormatTable) -> Checkpoint:
    """The checkpoint under its format's full names: files of a bare decoder leave the prefix of all names out."""
    left_out = table.prefix and not any(name.startswith(table.prefix) for name in checkpoint.tensors)
    return checkpoint.under(table.prefix) if left_out else checkpoint


def _set_aside(found: Detection) -> set[str]:
    """The tensors of the folder that are not converted: declared drops, and copies of another tensor."""
    declared = found.table.dropped_names(found.spec) | found.table.copies(found.spec).keys()
    return declared & found.checkpoint.tensors.keys()


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
) -> ConversionReport:
    """Write the checkpoint in ``src`` to the new folder ``dst`` in the format ``to``, every number kept bit for bit.

    Integers of a pre-quantized ``src`` become floats, since no target format has them: each is int x scale, an exact
    product rounded once to the dtype of config.json. Of ChatGLM-6B v1.0, the rows of image tokens are left out. The
    report's ``notes`` say so.

    config.json is written for the target; tokenizer, generation config, chat template, licence and card are copied;
    code files are not. ``dst`` appears whole or not at all. ``generation`` and ``spec`` are those of :func:`detect`.
    ``to="glm-130b"`` writes ``model_config.json`` and ``tensor_parallel`` rank files (default 1), each of which is held
    in memory while it is written; integers (int8, int4) become floating point, as in every conversion.
    ``to="gguf"`` writes the file ``dst`` for llama.cpp, and a ``src`` that ends in .gguf is read; ``dtype`` is then
    that of :func:`glmlike.checkpoint.gguf.write_gguf` (default: the source's own) and ``read_gguf``.

    Raises:
        ConfigError, CheckpointError: ``src`` cannot be read as what it says it is.
        CannotExpressError: ``to`` has no way to say this decoder.
        GlmLikeError: ``to``, ``max_shard_size`` or ``tensor_parallel`` is not one, or is of the other kind of files.
    """
    started = time.perf_counter()
    if to == "gguf" or Path(src).suffix == ".gguf":
        from glmlike.checkpoint import gguf

        return gguf.convert_gguf(
            src, dst, to=to, generation=generation, spec=spec, max_shard_size=max_shard_size, dtype=dtype
        )
    if dtype is not None:
        raise ConfigError(f"dtype={dtype!r} with to={to!r}: only GGUF has one; other formats keep every bit. Drop it.")
    if to not in FORMATS:
        raise ConfigError(f"to={to!r}: expected one of {', '.join(FORMATS)}.")
    limit = parse_size(max_shard_size)
    _require_its_own_options(to, max_shard_size, tensor_parallel)
    source = detect(src, generation=generation, spec=spec)
    config = {**_undefaulted_tokens(to), **_carried(source), **write_config(source.spec, to)}
    ranks = 1 if tensor_parallel is None else tensor_parallel
    if TABLES[to].splits:
        sat.require_divisible(source.spec, ranks)
        config["model_parallel_size"] = ranks
    target = Path(dst)
    with whole_folder(target, source.folder) as partial:
        tensors, size = _write_weights(partial, source, TABLES[to], limit, ranks)
        name = sat.ARGUMENTS if TABLES[to].splits else "config.json"
        (partial / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
        _copy_companions(source.folder, partial)
    return ConversionReport(
        source=source.folder,
        destination=target,
        source_format=source.format,
        target_format=to,
        tensors=tensors,
        bytes=size,
        dropped=tuple(sorted(_set_aside(source))),
        notes=source.notes,
        seconds=time.perf_counter() - started,
    )


def _carried(source: Detection) -> dict[str, Any]:
    """The fields that travel; what says that matrices are integers does not, since they no longer are."""
    fields = carried_fields(source.config)
    if (fields.get("quantization_config") or {}).get("quant_method") == INTEGER_METHOD:
        del fields["quantization_config"]
    return fields


def _require_its_own_options(to: Format, max_shard_size: str | int, tensor_parallel: int | None) -> None:
    if not TABLES[to].splits and tensor_parallel is not None:
        raise ConfigError(
            f"tensor_parallel={tensor_parallel!r} with to={to!r}: only 'glm-130b' has rank files. Drop it."
        )
    if TABLES[to].splits and max_shard_size != _SHARD_SIZE:
        raise ConfigError(
            f"max_shard_size={max_shard_size!r} with to={to!r}: it has one file a rank. Pass tensor_parallel instead."
        )


def _write_weights(folder: Path, source: Detection, table: FormatTable, limit: int, ranks: int) -> tuple[int, int]:
    """Write every tensor of the target format; the number of tensors and bytes written."""
    if table.splits:
        return write_ranks(folder, lambda: _foreign_tensors(source, table), table.split_of, ranks)
    index = write_shards(folder, _foreign_tensors(source, table), limit)
    return len(index["weight_map"]), index["metadata"]["total_size"]


def _undefaulted_tokens(to: Format) -> dict[str, None]:
    """transformers' own classes have token ids of one model as defaults; absent here must mean none there."""
    return {} if to == "chatglm" else dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def native_tensors(found: Detection) -> Iterator[tuple[str, Tensor]]:
    """Every native tensor of a folder, one step of the plan at a time.

    Raises:
        CheckpointError: a layout or a copy contradicts itself; the message names the tensor.
    """
    _check_copies(found)
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


def _check_copies(found: Detection) -> None:
    for copy, original in found.table.copies(found.spec).items():
        read = found.checkpoint.read
        if copy in found.checkpoint.tensors and not same_bits(read(copy), read(original)):
            raise CheckpointError(
                f"{found.folder}: config.json ties {copy!r} to {original!r}, but the files hold two different "
                "tensors. Set tie_word_embeddings to false in config.json to keep both."
            )


def _foreign_tensors(source: Detection, target: FormatTable) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the target format, made from the source step by step; a native tensor is let go once used."""
    _check_copies(source)
    makers = by_native(source.table.steps(source.spec))
    ready: dict[str, Tensor] = {}
    for step in target.steps(source.spec):
        for name in step.native:
            if name not in ready:
                maker = makers[name]
                ready.update(zip(maker.native, to_native(source, maker), strict=True))
        yield from zip(step.foreign, step.layout.to_foreign([ready.pop(name) for name in step.native]), strict=True)


def _copy_companions(source: Path, target: Path) -> None:
    paths = {path for pattern in _COMPANIONS for path in source.glob(pattern) if path.suffix not in (".py", ".pyc")}
    for path in sorted(paths):
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("*.py", "*.pyc"))
        elif path.name == "tokenizer_config.json":
            fields = json.loads(path.read_text(encoding="utf8"))
            fields.pop("auto_map", None)  # names code files, which are not copied
            text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
            (target / path.name).write_text(text, encoding="utf8")
        else:
            shutil.copyfile(path, target / path.name)


def fingerprint(
    folder: str | Path, *, generation: Generation | None = None, spec: str | DecoderSpec | None = None
) -> dict[str, str]:
    """The sha256 of every native tensor of a folder of any format, with dtype and shape: equal means the same model."""
    found = detect(folder, generation=generation, spec=spec)
    return {name: _hash(tensor) for name, tensor in native_tensors(found)}


def _hash(tensor: Tensor) -> str:
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verify(
    left: str | Path,
    right: str | Path,
    *,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
) -> int:
    """Two folders, of the same or of different formats, hold the same decoder and the same numbers.

    Returns the number of native tensors compared.

    Raises:
        CheckpointError: the first difference, in the spec or in a tensor.
    """
    mine_is, theirs_is = (detect(folder, generation=generation, spec=spec) for folder in (left, right))
    specs = mine_is.spec.differences(theirs_is.spec)
    if specs:
        raise CheckpointError(f"{left} and {right} describe different decoders: {specs}.")
    mine, theirs = ({name: _hash(tensor) for name, tensor in native_tensors(is_)} for is_ in (mine_is, theirs_is))
    require_exact(mine, theirs, str(right))
    for name, digest in mine.items():
        if theirs[name] != digest:
            raise CheckpointError(f"{left} and {right} differ in {name!r} (sha256 of dtype, shape and bytes).")
    return len(mine)
