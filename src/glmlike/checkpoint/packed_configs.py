"""What the ``quantization_config`` of GPTQ, AWQ and compressed-tensors says of packed matrices, read and checked.

A kind that is not read is refused here, by name, before a file is opened. Sources: the configs of GPTQModel and
AutoAWQ; ``CompressionFormat`` and ``QuantizationArgs`` of compressed-tensors, whose formats and strategies these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glmlike.checkpoint.packed_streams import Packing
from glmlike.errors import ConfigError

Method = Literal["gptq", "awq", "compressed-tensors"]
NAMES: dict[Any, str] = {"gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "compressed-tensors"}
"""The methods that are read, by ``quant_method``, and what people call them."""

FLOATS = ("F16", "BF16", "F32")
_EIGHT_BITS, _EXPONENTS = ("F8_E4M3",), ("U8",)
_PACKED_PARTS: dict[Packing, str] = {"plain": "weight", "compressed": "weight_packed", "fp4": "weight_packed"}


@dataclass(frozen=True)
class Scheme:
    """Numbers of ``bits`` bits, laid out by ``packing``, of which ``rows`` x ``columns`` share a scale.

    A count of None is that of all. ``kinds`` are the dtypes that the numbers may have, ``scales`` those of scales.
    ``beside`` is what stands beside every such matrix besides its scales: zeros, columns' groups, a scale of scales.
    """

    packing: Packing
    bits: int
    columns: int | None
    rows: int | None = 1
    kinds: tuple[str, ...] = ("I32",)
    scales: tuple[str, ...] = FLOATS
    beside: frozenset[str] = frozenset()

    @property
    def packed(self) -> str:
        """The last part of the name of the numbers."""
        return _PACKED_PARTS.get(self.packing, "qweight")

    def __str__(self) -> str:
        numbers = f"{self.bits}-bit floats" if self.packing == "fp4" or "F8_E4M3" in self.kinds else f"{self.bits} bits"
        if self.rows is None:
            return f"{numbers}, one scale for all"
        if self.rows > 1:
            return f"{numbers}, blocks of {self.rows} x {self.columns}"
        return f"{numbers}, groups of {self.columns or 'whole rows'}"


@dataclass(frozen=True)
class PackedConfig:
    """What a ``quantization_config`` says of packed matrices: each is of one of ``schemes``.

    ``activations``: the library that wrote the files rounds activations as well.
    """

    method: Method
    schemes: tuple[Scheme, ...]
    activations: bool = False

    def __str__(self) -> str:
        return f"{NAMES[self.method]}, {' or '.join(map(str, self.schemes))}"


def method_of(config: Mapping[str, Any]) -> Method | None:
    """Which of the methods that are read here a config.json says that its matrices are quantized by."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    return method if isinstance(method, str) and method in NAMES else None  # type: ignore[return-value]


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the matrices of a folder of compressed-tensors have no zeros, and groups of neighbours alone."""
    weights = [weight for _, weight in _compressed_groups(config["quantization_config"])]
    return not any(_has_zeros(weight) or _is_reordered(weight) for weight in weights)


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
    bits, size = _bits(said, "GPTQ", (2, 4, 8), where), _size(said, where)
    beside = {"qzeros", "g_idx"} if said.get("desc_act") and size is not None else {"qzeros"}
    packing: Packing = "gptq" if fmt == "gptq" else "gptq_v2"
    return PackedConfig("gptq", (Scheme(packing, bits, size, beside=frozenset(beside)),))


def _read_awq(said: Mapping[str, Any], where: str) -> PackedConfig:
    llm_awq = str(said.get("backend") or "").lower() == "llm-awq"
    version = "llm-awq" if llm_awq else str(said.get("version") or said.get("format") or "gemm").lower()
    if version not in ("gemm", "exllama", "ipex"):  # the latter two are ways to compute with files of "gemm"
        raise _refusal(where, f"AWQ with version={version!r}", "'gemm'")
    bits, size = _bits(said, "AWQ", (4,), where), _size(said, where)
    return PackedConfig("awq", (Scheme("awq", bits, size, beside=frozenset({"qzeros"})),))


@dataclass(frozen=True)
class _Format:
    """A format of compressed-tensors: its packing, and the widths of the integers and the floats that it may hold."""

    packing: Packing
    integers: tuple[int, ...] = ()
    floats: tuple[int, ...] = ()
    scales: tuple[str, ...] = FLOATS
    beside: frozenset[str] = frozenset()

    @property
    def holds(self) -> str:
        kinds = (("integers", self.integers), ("floats", self.floats))
        numbers = " or ".join(f"{name} of {', '.join(map(str, bits))} bits" for name, bits in kinds if bits)
        zeros = ", with zeros by 'channel' or 'group'" if self.packing == "compressed" else ""
        return f"{numbers} by 'tensor', 'channel', 'group' or 'block'{zeros}"


_FORMATS = {
    "pack-quantized": _Format("compressed", (2, 4, 8)),  # other widths were laid out in two ways, by version
    "int-quantized": _Format("plain", tuple(range(1, 9))),
    "float-quantized": _Format("plain", floats=(8,)),
    "naive-quantized": _Format("plain", tuple(range(1, 9)), (8,)),
    "nvfp4-pack-quantized": _Format("fp4", (), (4,), _EIGHT_BITS, frozenset({"weight_global_scale"})),
    "mxfp4-pack-quantized": _Format("fp4", (), (4,), _EXPONENTS),
    "mxfp8-quantized": _Format("plain", (), (8,), _EXPONENTS),
}


def _read_compressed(said: Mapping[str, Any], where: str) -> PackedConfig:
    sparsity = said.get("sparsity_config") or {}
    sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else sparsity
    if sparse != "dense":
        raise _refusal(where, f"compressed-tensors with a sparsity_config of format {sparse!r}", "dense matrices")
    if said.get("transform_config"):
        raise _refusal(where, "compressed-tensors with a transform_config", "matrices that nothing has rotated")
    groups = list(_compressed_groups(said)) or [({}, {})]
    schemes = [_read_scheme(group.get("format") or said.get("format"), weight, where) for group, weight in groups]
    activations = any(group.get("input_activations") for group, _ in groups)
    return PackedConfig("compressed-tensors", tuple(dict.fromkeys(schemes)), activations)


def _compressed_groups(said: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each group of modules of a config of compressed-tensors, and what it says of their weights."""
    groups = said.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        yield (group if isinstance(group, Mapping) else {}), (weights if isinstance(weights, Mapping) else {})


def _has_zeros(weight: Mapping[str, Any]) -> bool:
    return not weight.get("symmetric", True)


def _is_reordered(weight: Mapping[str, Any]) -> bool:
    return weight.get("actorder") in ("group", "dynamic", True)  # "weight" and "static" leave columns where they are


def _read_scheme(fmt: Any, weight: Mapping[str, Any], where: str) -> Scheme:
    found = _FORMATS.get(str(fmt))
    if found is None:
        raise _refusal(where, f"compressed-tensors with format={fmt!r}", ", ".join(map(repr, _FORMATS)))
    kind = weight.get("type", "int")
    widths = {"int": found.integers, "float": found.floats}.get(kind, ())
    strategy = weight.get("strategy") or ("group" if weight.get("group_size") else "tensor")
    shared = _shared(strategy, weight, where)
    zeros = _has_zeros(weight)
    if not weight or not widths or shared is None or (zeros and found.packing == "compressed" and shared[0] != 1):
        shown = f"compressed-tensors with weights={dict(weight)!s:.120} in format={fmt!r}"
        raise _refusal(where, shown, found.holds)
    bits = _bits({"bits": weight.get("num_bits")}, "compressed-tensors", widths, where)
    beside = found.beside | ({"weight_zero_point"} if zeros else set())
    beside |= {"weight_g_idx"} if _is_reordered(weight) else set()
    kinds = {"compressed": ("I32",), "fp4": ("U8",)}.get(found.packing, ("I8",) if kind == "int" else _EIGHT_BITS)
    return Scheme(found.packing, bits, shared[1], shared[0], kinds, found.scales, beside)


def _shared(strategy: str, weight: Mapping[str, Any], where: str) -> tuple[int | None, int | None] | None:
    """The rows and the columns that share a scale (None: all of them); None for a strategy that is not of weights."""
    if strategy == "tensor":
        return None, None
    if strategy == "channel":
        return 1, None
    if strategy in ("group", "tensor_group"):
        return 1, _size(weight, where)
    if strategy == "block":
        block = weight.get("block_structure")
        sides = block.split("x") if isinstance(block, str) else block if isinstance(block, list) else []
        if len(sides) == 2 and all(str(side).isdecimal() and int(side) > 0 for side in sides):
            return int(sides[0]), int(sides[1])
        raise ConfigError(f"{where}: block_structure={block!r}: expected rows and columns. Correct config.json.")
    return None


def _refusal(where: str, found: str, read: str) -> ConfigError:
    return ConfigError(
        f"{where}: {found}: its files are not read here (what is: {read}). Use the repository of the floats it was "
        "made of, or load it with the library that wrote it, call dequantize() where it has that, and save_pretrained."
    )


def _bits(said: Mapping[str, Any], method: str, known: tuple[int, ...], where: str) -> int:
    bits = said.get("bits", said.get("w_bit"))
    if type(bits) is not int or bits not in known:
        raise _refusal(where, f"{method} with bits={bits!r}", " or ".join(map(str, known)))
    return bits


def _size(said: Mapping[str, Any], where: str) -> int | None:
    size = said.get("group_size", said.get("q_group_size", 128))
    if type(size) is not int or (size < 1 and size != -1):
        raise ConfigError(
            f"{where}: group_size={size!r}: expected a number of columns, or -1 for whole rows. Correct config.json."
        )
    return None if size == -1 else size
