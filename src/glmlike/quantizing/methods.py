"""The ways to quantize a checkpoint, as a table: what each is called, who does it, and what a matrix takes on the disk.

Every method but those of GGUF writes a folder that ``AutoModel.from_pretrained`` opens. Group sizes are the libraries'
own, or the common ones: 64 for bitsandbytes, 32 for torchao's int4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from glmlike.errors import ConfigError, GlmLikeError

Engine = Literal["bitsandbytes", "torchao", "gguf", "glmlike"]

_GROUP = 32
_BLOCK = 64


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    ``config`` makes transformers' quantization config (None: GGUF). ``stored`` says the bytes that a matrix of so many
    rows and columns takes, in a model whose other tensors take so many bytes a number.
    """

    name: str
    engine: Engine
    says: str
    stored: Callable[[int, int, int], int] | None = None
    config: Callable[[], Any] | None = None
    bits: int = 8

    def require(self) -> None:
        """Raise GlmLikeError if a package that the method needs is missing."""
        for package in ENGINES[self.engine]:
            if find_spec(package) is None:
                raise GlmLikeError(
                    f"method {self.name!r} needs the package {package}: pip install 'glmlike[{EXTRAS[self.engine]}]'."
                )

    def versions(self) -> dict[str, str]:
        """The versions of the packages that do it."""
        return {package: version(package) for package in ENGINES[self.engine]}


ENGINES: dict[Engine, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "torchao": ("torchao",),
    "gguf": ("gguf",),
    "glmlike": (),
}
EXTRAS: dict[Engine, str] = {"bitsandbytes": "quant", "torchao": "torchao", "gguf": "gguf", "glmlike": ""}


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)

    return make


def _four_bits(kind: str, *, double: bool = False) -> Callable[[], Any]:
    return _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)


def _torchao(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import torch
        from torchao import quantization
        from transformers import TorchAoConfig

        given = dict(options)
        for key in {"granularity", "weight_granularity"} & given.keys():
            given[key] = quantization.PerGroup(given[key])
        if "weight_dtype" in given:
            given["weight_dtype"] = getattr(torch, given["weight_dtype"])
        return TorchAoConfig(getattr(quantization, name)(**given))

    return make


def _integers(bits: int) -> Callable[[], Any]:
    def make() -> Any:
        from glmlike.quantization import GlmIntConfig

        return GlmIntConfig(bits=bits, dequantize=False)

    return make


_STATE = 96
"""About what the JSON of a 4-bit matrix takes beside its numbers: its shape, dtype and block size."""


def _plain_4bit(rows: int, columns: int, size: int) -> int:
    blocks = -(-rows * columns // _BLOCK)
    return -(-rows * columns // 2) + 4 * blocks + 16 * 4 + _STATE


def _double_4bit(rows: int, columns: int, size: int) -> int:
    blocks = -(-rows * columns // _BLOCK)
    return -(-rows * columns // 2) + blocks + 4 * -(-blocks // 256) + 256 * 4 + 16 * 4 + 2 * _STATE


_ROWS = [
    Method("nf4", "bitsandbytes", "4-bit NormalFloat, QLoRA's", _plain_4bit, _four_bits("nf4"), 4),
    Method(
        *("nf4-double", "bitsandbytes", "nf4 with its scales quantized, too", _double_4bit),
        *(_four_bits("nf4", double=True), 4),
    ),
    Method("fp4", "bitsandbytes", "4-bit floating point", _plain_4bit, _four_bits("fp4"), 4),
    Method(
        *("int8", "bitsandbytes", "LLM.int8(), outliers in float16", lambda rows, columns, size: rows * (columns + 4)),
        _bitsandbytes(load_in_8bit=True),
    ),
    Method(
        *("torchao-int8-wo", "torchao", "int8 weights, a scale a row"),
        *(lambda rows, columns, size: rows * (columns + size + 1), _torchao("Int8WeightOnlyConfig", version=2)),
    ),
    Method(
        *("torchao-int8-dyn", "torchao", "int8 weights and int8 activations, scaled as they come"),
        lambda rows, columns, size: rows * (columns + size + 1),
        _torchao("Int8DynamicActivationInt8WeightConfig", version=2),
    ),
    Method(
        *("torchao-int4", "torchao", "4-bit integers in groups of 32; torchao keeps a byte each on a CPU"),
        lambda rows, columns, size: rows * columns + rows * columns // _GROUP * (size + 1),
        _torchao("IntxWeightOnlyConfig", weight_dtype="int4", granularity=_GROUP),
        4,
    ),
    Method(
        *("float8", "torchao", "float8 (e4m3) weights, a scale a row"),
        *(lambda rows, columns, size: rows * (columns + 4), _torchao("Float8WeightOnlyConfig")),
    ),
    *(
        Method(f"gguf-{kind}", "gguf", f"one file for llama.cpp, its {kind} blocks", bits=int(kind[1]))
        for kind in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
    ),
    *(
        Method(
            *(f"glm-int{bits}", "glmlike", f"int{bits} and a scale a row, as ChatGLM's releases have"),
            *(lambda rows, columns, size, bits=bits: rows * (columns * bits // 8 + 2), _integers(bits), bits),
        )
        for bits in (8, 4)
    ),
]
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}
"""Every method by its name."""


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: no such method.
        GlmLikeError: a package that it needs is missing.
    """
    if name not in METHODS:
        raise ConfigError(f"method={name!r}: expected one of {', '.join(METHODS)}.")
    METHODS[name].require()
    return METHODS[name]
