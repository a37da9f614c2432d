"""Folders that GPTQ, AWQ or compressed-tensors quantized, read as the floats that their integers stand for.

What config.json says is checked first, then which matrices are packed, by the tensors that are there, and the shape of
each of those, before one is read. From then on the folder is one of floats: :class:`PackedCheckpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmlike.checkpoint.headers import TensorInfo
from glmlike.checkpoint.packed_streams import PackedFloats, Packing
from glmlike.checkpoint.shards import Checkpoint
from glmlike.checkpoint.streams import Stream, dtype_name, read_all
from glmlike.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["gptq", "awq", "compressed-tensors"]
Shape = tuple[int, ...]
NAMES: dict[Any, str] = {"gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "compressed-tensors"}
"""The methods that are read, by ``quant_method``, and what people call them."""

_PACKED = {"gptq": "qweight", "awq": "qweight", "compressed-tensors": "weight_packed"}
_BESIDE = {
    "gptq": ("scales", "qzeros", "g_idx"),
    "awq": ("scales", "qzeros"),
    "compressed-tensors": ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
}
_FLOATS = ("F16", "BF16", "F32")
_MOST_ROWS = 2**20


@dataclass(frozen=True)
class PackedConfig:
    """What a ``quantization_config`` says of packed matrices: of any of these widths, in groups of these sizes.

    A size of None is one group for all columns.
    """

    method: Method
    packing: Packing
    bits: frozenset[int]
    sizes: frozenset[int | None]
    beside: frozenset[str] = frozenset()
    """What stands beside every packed matrix and its scales: zeros, and the groups of columns out of order."""
    activations: bool = False
    """Whether the library that wrote the files rounds activations to integers as well."""

    def __str__(self) -> str:
        groups = " or ".join("whole rows" if size is None else str(size) for size in sorted(self.sizes, key=str))
        bits = " and ".join(map(str, sorted(self.bits)))
        return f"{NAMES[self.method]}, {bits} bits, groups of {groups}"

    @property
    def packed(self) -> str:
        """The last part of the name of packed integers."""
        return "weight" if self.packing == "int8" else _PACKED[self.method]


def method_of(config: Mapping[str, Any]) -> Method | None:
    """Which of the methods that are read here a config.json says that its matrices are quantized by."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    return method if isinstance(method, str) and method in NAMES else None  # type: ignore[return-value]


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the matrices of a folder of compressed-tensors have no zeros, and groups of neighbours alone."""
    weights = _compressed_weights(config["quantization_config"])
    return not any(_has_zeros(weight) or _is_reordered(weight) for weight in weights)


def _compressed_weights(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a config of compressed-tensors says of the weights of each of its groups of modules."""
    groups = said.get("config_groups")
    schemes = groups.values() if isinstance(groups, Mapping) else ()
    weights = [scheme.get("weights") if isinstance(scheme, Mapping) else None for scheme in schemes]
    return [weight if isinstance(weight, Mapping) else {} for weight in weights]


def _has_zeros(weight: Mapping[str, Any]) -> bool:
    return not weight.get("symmetric", True)


def _is_reordered(weight: Mapping[str, Any]) -> bool:
    return weight.get("actorder") in ("group", "dynamic", True)  # "weight" and "static" leave columns where they are


def read_config(config: Mapping[str, Any], where: str) -> PackedConfig | None:
    """What config.json says of packed matrices; None: it speaks of no method that is read here.

    Raises:
        ConfigError: a kind of these methods that is not read; the message says what it is and what is.
    """
    method = method_of(config)
    if method is None:
        return None
    said = config["quantization_config"]
    return {"gptq": _read_gptq, "awq": _read_awq, "compressed-tensors": _read_compressed}[method](said, where)


def _read_gptq(said: Mapping[str, Any], where: str) -> PackedConfig:
    fmt = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    fmt = "marlin" if said.get("is_marlin_format") else fmt
    if fmt not in ("gptq", "gptq_v2"):
        raise _refusal(where, f"GPTQ with checkpoint_format={fmt!r}", "'gptq' and 'gptq_v2'")
    if str(said.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        raise _refusal(where, f"GPTQ with pack_dtype={said['pack_dtype']!r}", "'int32'")
    overrides = said.get("dynamic") or {}  # a pattern that begins with "-:" names modules that stay floats
    if not isinstance(overrides, Mapping) or any(
        value and not str(name).startswith("-:") for name, value in overrides.items()
    ):
        raise _refusal(where, "GPTQ with other bits or groups for some modules ('dynamic')", "one kind for all")
    bits, sizes = _bits(said, "GPTQ", (2, 4, 8), where), _sizes(said, where)
    beside = {"qzeros", "g_idx"} if said.get("desc_act") and None not in sizes else {"qzeros"}
    packing: Packing = "gptq" if fmt == "gptq" else "gptq_v2"
    return PackedConfig("gptq", packing, bits, sizes, frozenset(beside))


def _read_awq(said: Mapping[str, Any], where: str) -> PackedConfig:
    llm_awq = str(said.get("backend") or "").lower() == "llm-awq"
    version = "llm-awq" if llm_awq else str(said.get("version") or said.get("format") or "gemm").lower()
    if version not in ("gemm", "exllama", "ipex"):  # the latter two are ways to compute with files of "gemm"
        raise _refusal(where, f"AWQ with version={version!r}", "'gemm'")
    return PackedConfig("awq", "awq", _bits(said, "AWQ", (4,), where), _sizes(said, where), frozenset({"qzeros"}))


def _read_compressed(said: Mapping[str, Any], where: str) -> PackedConfig:
    fmt = said.get("format")
    if fmt not in ("pack-quantized", "int-quantized"):
        raise _refusal(where, f"compressed-tensors with format={fmt!r}", "'pack-quantized' and 'int-quantized'")
    sparsity = said.get("sparsity_config") or {}
    dense = isinstance(sparsity, Mapping) and sparsity.get("format", "dense") == "dense"
    for name, wrong in (("sparsity_config", not dense), ("transform_config", bool(said.get("transform_config")))):
        if wrong:
            raise _refusal(where, f"compressed-tensors with a {name}", "integers alone")
    weights = _compressed_weights(said) or [{}]
    known = (4, 8) if fmt == "pack-quantized" else (8,)
    bits: set[int] = set()
    sizes: set[int | None] = set()
    for weight in weights:
        strategy = weight.get("strategy") or ("group" if weight.get("group_size") else None)
        if weight.get("type", "int") != "int" or strategy not in ("group", "channel"):
            found = f"compressed-tensors with weights={dict(weight)!s:.120}"
            raise _refusal(where, found, "integers by 'group' or 'channel'")
        bits |= _bits({"bits": weight.get("num_bits")}, "compressed-tensors", known, where)
        sizes |= {None} if strategy == "channel" else _sizes(weight, where)
    beside = {"weight_zero_point"} if all(map(_has_zeros, weights)) else set()
    beside |= {"weight_g_idx"} if all(map(_is_reordered, weights)) else set()
    packing: Packing = "compressed" if fmt == "pack-quantized" else "int8"
    activations = any(scheme.get("input_activations") for scheme in said["config_groups"].values())
    return PackedConfig(
        "compressed-tensors", packing, frozenset(bits), frozenset(sizes), frozenset(beside), activations
    )


def _refusal(where: str, found: str, read: str) -> ConfigError:
    return ConfigError(
        f"{where}: {found}: its files are not read here (what is: {read}). Use the repository of the floats it was "
        "made of, or load it with the library that wrote it, call dequantize() where it has that, and save_pretrained."
    )


def _bits(said: Mapping[str, Any], method: str, known: tuple[int, ...], where: str) -> frozenset[int]:
    bits = said.get("bits", said.get("w_bit"))
    if type(bits) is not int or bits not in known:
        raise _refusal(where, f"{method} with bits={bits!r}", " or ".join(map(str, known)))
    return frozenset({bits})


def _sizes(said: Mapping[str, Any], where: str) -> frozenset[int | None]:
    size = said.get("group_size", said.get("q_group_size", 128))
    if type(size) is not int or (size < 1 and size != -1):
        raise ConfigError(
            f"{where}: group_size={size!r}: expected a number of columns, or -1 for whole rows. Correct config.json."
        )
    return frozenset({None if size == -1 else size})


@dataclass
class PackedCheckpoint(Checkpoint):
    """The tensors of a folder with packed matrices, each under the name of its floats, and read as those.

    ``inner`` has the tensors of the files, ``matrices`` the streams of those that are packed. ``empty_biases`` counts
    the biases of zeros beside them that the decoder has no place for: old AutoGPTQ wrote one for every matrix.
    """

    inner: Checkpoint = field(kw_only=True)
    config: PackedConfig = field(kw_only=True)
    matrices: dict[str, PackedFloats] = field(kw_only=True, repr=False)
    empty_biases: int = field(kw_only=True, default=0)

    def read(self, name: str) -> Tensor:
        return read_all(self.matrices[name]) if name in self.matrices else self.inner.read(name)

    def stream(self, name: str) -> Stream:
        return self.matrices[name] if name in self.matrices else self.inner.stream(name)

    def stored(self, path: Path, name: str) -> Stream:
        return self.inner.stored(path, name)

    def parts(self, name: str) -> list[tuple[Path, str]]:
        if name not in self.matrices:
            return self.inner.parts(name)
        base = name.removesuffix("weight")
        names = (base + part for part in (self.config.packed, *_BESIDE[self.config.method]))
        return [part for stored in names if stored in self.inner.tensors for part in self.inner.parts(stored)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the files is not carried over bit for bit."""
        dtypes = sorted({stream.dtype for stream in self.matrices.values()})
        read = f"read as (integer - zero) x scale in {', '.join(dtypes)}"
        found = [f"{len(self.matrices)} matrices of packed integers ({self.config}), {read}"]
        if self.config.activations:
            found.append(f"{NAMES[self.config.method]} also rounds what goes into these matrices: that is left out")
        if self.empty_biases:
            found.append(f"{self.empty_biases} biases of zeros, of matrices that have none, are left out")
        return tuple(found)


def unpacked(checkpoint: Checkpoint, config: PackedConfig, shapes: Mapping[str, Shape], dtype: str) -> Checkpoint:
    """``checkpoint`` as one of floats in ``dtype`` (torch's name); as it is, if it holds no packed matrix.

    ``shapes`` are those of the floats.

    Raises:
        CheckpointError: integers without scales or zeros, of another width or of other groups than config.json says,
            or a bias, of a matrix that has none, that is not of zeros.
    """
    names = [name for name, shape in shapes.items() if len(shape) == 2 and _is_packed(checkpoint, config, name)]
    if not names:
        return checkpoint
    matrices = {name: _matrix(checkpoint, config, name, shapes[name], dtype_name(dtype)) for name in names}
    bases = [name.removesuffix("weight") for name in names]
    used = {base + part for base in bases for part in (config.packed, *_BESIDE[config.method])}
    biases = {base + "bias" for base in bases} & (checkpoint.tensors.keys() - shapes.keys())
    for name in sorted(biases):
        _require_zeros(checkpoint, name)
    tensors = {name: info for name, info in checkpoint.tensors.items() if name not in used | biases}
    for name, stream in matrices.items():
        stored = checkpoint.tensors[name.removesuffix("weight") + config.packed]
        tensors[name] = TensorInfo(name, stream.dtype, stream.shape, stored.file, stored.start, stored.start)
    return PackedCheckpoint(
        checkpoint.folder,
        checkpoint.files,
        tensors,
        inner=checkpoint,
        config=config,
        matrices=matrices,
        empty_biases=len(biases),
    )


def first_packed(names: Iterable[str]) -> str | None:
    """The first name that is one of packed integers by any of the methods."""
    endings = tuple(f".{part}" for part in _PACKED.values())
    return min((name for name in names if name.endswith(endings)), default=None)


def _is_packed(checkpoint: Checkpoint, config: PackedConfig, name: str) -> bool:
    if not name.endswith(".weight"):
        return False
    info = checkpoint.tensors.get(name.removesuffix("weight") + config.packed)
    return info is not None and (config.packing != "int8" or dtype_name(info.dtype) == "I8")


def _matrix(checkpoint: Checkpoint, config: PackedConfig, name: str, shape: Shape, dtype: str) -> PackedFloats:
    base = name.removesuffix("weight")
    scale, zero, *index = _BESIDE[config.method]
    for part in (scale, *sorted(config.beside)):
        if base + part not in checkpoint.tensors:
            raise CheckpointError(
                f"{checkpoint.folder}: no file holds {base + part!r}, but there is {base + config.packed!r}. The "
                "download is incomplete; compare it with the original repository."
            )
    found = {
        part: checkpoint.tensors[base + part]
        for part in (config.packed, scale, zero, *index[:1])
        if base + part in checkpoint.tensors
    }
    bits, size = _fitting(config, shape, found, name)
    streams = {part: checkpoint.stream(base + part) for part in found}
    return PackedFloats(
        packing=config.packing,
        bits=bits,
        size=size,
        shape=shape,
        dtype=dtype,
        weight=streams[config.packed],
        scale=streams[scale],
        zero=streams.get(zero),
        index=streams.get(index[0]) if index else None,
    )


def _fitting(config: PackedConfig, shape: Shape, found: Mapping[str, TensorInfo], name: str) -> tuple[int, int]:
    """The width and the size of groups that config.json says and that fit the tensors of a matrix.

    Raises:
        CheckpointError: there are none; the message has the shapes that are there and those of the first that would be.
    """
    there = {part: (dtype_name(info.dtype), info.shape) for part, info in found.items()}
    tried = []
    for bits in sorted(config.bits):
        for size in sorted(config.sizes, key=str):
            columns = shape[1] if size is None else min(size, shape[1])
            expected = _stored_shapes(config, shape, bits, columns)
            if all(_fits(there[part], expected[part]) for part in there):
                return bits, columns
            tried.append({part: list(expected[part][1]) for part in there})
    shown = {part: f"{dtype} {list(found_shape)}" for part, (dtype, found_shape) in there.items()}
    raise CheckpointError(
        f"{next(iter(found.values())).file}: the tensors of {name!r}, {list(shape)}, are {shown}, but {config} makes "
        f"them {tried[0]}. config.json is of another checkpoint; use the one that belongs to the weights."
    )


def _fits(found: tuple[str, Shape], expected: tuple[tuple[str, ...], Shape]) -> bool:
    return found[0] in expected[0] and found[1] == expected[1]


def _stored_shapes(
    config: PackedConfig, shape: Shape, bits: int, size: int
) -> dict[str, tuple[tuple[str, ...], Shape]]:
    """The dtypes and the shape of each tensor of a matrix of ``shape``; see :data:`Packing`."""
    rows, columns = shape
    groups = -(-columns // size)
    words, row_words = -(-columns * bits // 32), -(-rows * bits // 32)
    word, index = ("I32",), ("I32", "I64")
    if config.packing == "int8":
        return {
            "weight": (("I8",), shape),
            "weight_scale": (_FLOATS, (rows, groups)),
            "weight_zero_point": (("I8",), (rows, groups)),
            "weight_g_idx": (index, (columns,)),
        }
    if config.packing == "compressed":
        return {
            "weight_packed": (word, (rows, words)),
            "weight_scale": (_FLOATS, (rows, groups)),
            "weight_zero_point": (word, (row_words, groups)),
            "weight_g_idx": (index, (columns,)),
        }
    weight = (columns, row_words) if config.packing == "awq" else (words, rows)
    return {
        "qweight": (word, weight),
        "scales": (_FLOATS, (groups, rows)),
        "qzeros": (word, (groups, row_words)),
        "g_idx": (index, (columns,)),
    }


def _require_zeros(checkpoint: Checkpoint, name: str) -> None:
    info = checkpoint.tensors[name]
    if len(info.shape) != 1 or info.shape[0] > _MOST_ROWS or bool(read_all(checkpoint.stream(name)).count_nonzero()):
        raise CheckpointError(
            f"{info.file}: {name!r} is a bias of a matrix that has none by config.json, and not of zeros. config.json "
            "is of another model; use the one that belongs to the weights."
        )
