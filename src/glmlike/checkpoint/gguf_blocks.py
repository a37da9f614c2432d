"""GGUF's blocks of integers as streams of rows: packed from floats, and unpacked to floats, a stretch at a time.

The package ``gguf`` (llama.cpp's own) packs and unpacks; it is imported where used. Shapes: rows of ``width`` numbers,
each row whole blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.headers import DTYPE_SIZES
from glmlike.checkpoint.streams import Cast, Stream, row_size
from glmlike.errors import CheckpointError, GlmLikeError

if TYPE_CHECKING:
    import numpy as np

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""GGUF's types of plain floats, and what torch calls each."""

_SCRATCH = 24  # bytes for each number while it is packed or unpacked: float32, and the library's own copies

# The largest error of a number, as a share of one step of its block, and the step: of its largest number (by
# magnitude), or of the span from its smallest to its largest. The rest is the scale's own rounding to float16.
_STEPS: dict[str, tuple[float, float, bool]] = {
    "Q8_0": (0.5, 1 / 127, False),
    "Q5_0": (1.0, 1 / 16, False),
    "Q4_0": (1.0, 1 / 8, False),
    "Q5_1": (0.5, 1 / 31, True),
    "Q4_1": (0.5, 1 / 15, True),
}
_HALF = 2**-10  # of float16: twice its relative rounding
_TINY = 2**-18  # 127 steps of scales below float16's normal numbers


def gguf_package() -> Any:
    """The package ``gguf``. Raises GlmLikeError where it is missing."""
    try:
        import gguf
    except ImportError:
        raise GlmLikeError("GGUF files need the package gguf: pip install 'glmlike[gguf]'.") from None
    return gguf


@cache
def block_types() -> dict[int, tuple[str, int, int]]:
    """Every type that the package knows, by number: name, and numbers and bytes of one block."""
    sizes = gguf_package().GGML_QUANT_SIZES
    return {int(kind): (str(kind.name), int(numbers), int(size)) for kind, (numbers, size) in sizes.items()}


@cache
def block(kind: str) -> tuple[int, int]:
    """Numbers and bytes of one block of a type."""
    return next((numbers, size) for name, numbers, size in block_types().values() if name == kind)


def bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor of a type."""
    numbers, size = block(kind)
    return math.prod(shape) // numbers * size


def _floats(raw: memoryview, dtype: str) -> np.ndarray[Any, Any]:
    """float32 of the bytes of floats."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    found = np.frombuffer(raw, {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])
    return found.astype(np.float32, copy=False)


def rows_of_floats(stream: Stream, first: int, count: int) -> np.ndarray[Any, Any]:
    """[count, width] float32 of the rows of a matrix."""
    size = row_size(stream)
    raw = memoryview(bytearray(count * size))
    stream.read_into(raw, first * size)
    return _floats(raw, stream.dtype).reshape(count, -1)


@dataclass(frozen=True)
class Packed:
    """The bytes of a matrix of floats as blocks of ``kind``: rows of bytes."""

    inner: Stream
    kind: str
    dtype = "U8"
    exact = False
    verb = "quantize"

    @property
    def shape(self) -> tuple[int, ...]:
        rows, width = self.inner.shape
        return (rows, bytes_of(self.kind, (width,)))

    @property
    def grain(self) -> int:
        return self.shape[1]

    @property
    def overhead(self) -> float:
        numbers, size = block(self.kind)
        return numbers / size * (DTYPE_SIZES[self.inner.dtype] * (1 + self.inner.overhead) + _SCRATCH)

    def read_into(self, view: memoryview, start: int) -> None:
        import numpy as np

        gguf = gguf_package()
        numbers = rows_of_floats(self.inner, start // self.grain, len(view) // self.grain)
        with np.errstate(all="ignore"):  # what does not fit is seen when it is read back
            found = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[self.kind])
        np.frombuffer(view, np.uint8)[:] = found.reshape(-1)

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Unpacked:
    """The float32 numbers of a tensor whose bytes ``inner`` are blocks of ``kind``."""

    inner: Stream
    kind: str
    shape: tuple[int, ...]
    dtype = "F32"
    exact = False
    verb = "dequantize"

    @property
    def grain(self) -> int:
        return max(1, row_size(self))

    @property
    def overhead(self) -> float:
        return (1 + self.inner.overhead) * row_size(self.inner) / self.grain + _SCRATCH / 4

    def read_into(self, view: memoryview, start: int) -> None:
        import numpy as np

        gguf = gguf_package()
        first, count = start // self.grain, len(view) // self.grain
        size = row_size(self.inner)
        raw = memoryview(bytearray(count * size))
        self.inner.read_into(raw, first * size)
        rows = np.frombuffer(raw, np.uint8).reshape(count, size)
        with np.errstate(all="ignore"):
            found = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[self.kind])
        np.frombuffer(view, np.float32)[:] = found.reshape(-1)

    def is_hole(self, start: int, stop: int) -> bool:
        return False


@dataclass(frozen=True)
class Exactly(Cast):
    """A cast of numbers that the other dtype is known to hold; of F32, F16 and BF16, and without torch."""

    exact = True
    without_torch = True

    def read_into(self, view: memoryview, start: int) -> None:
        import numpy as np

        here, there = DTYPE_SIZES[self.dtype], DTYPE_SIZES[self.inner.dtype]
        raw = memoryview(bytearray(len(view) // here * there))
        self.inner.read_into(raw, start // here * there)
        numbers = _floats(raw, self.inner.dtype)
        if self.dtype == "BF16":
            np.frombuffer(view, np.uint16)[:] = numbers.view(np.uint32) >> 16
        else:
            np.frombuffer(view, {"F16": np.float16, "F32": np.float32}[self.dtype])[:] = numbers


def require_near(numbers: np.ndarray[Any, Any], found: np.ndarray[Any, Any], kind: str) -> None:
    """Every number of rows [R, width] that were packed and unpacked is within its block's bound: see ``_STEPS``.

    Raises:
        CheckpointError: a number that is not, or is none.
    """
    import numpy as np

    share, step, by_span = _STEPS[kind]
    width = block(kind)[0]
    blocks, errors = numbers.reshape(-1, width), np.abs(found - numbers).reshape(-1, width)
    largest = np.abs(blocks).max(1)
    span = (blocks.max(1) - blocks.min(1)) if by_span else largest
    bound = span * (share * step + _HALF) + largest * _HALF + _TINY
    wrong = ~(errors.max(1) <= bound)
    if wrong.any():
        at = int(wrong.argmax())
        raise CheckpointError(
            f"a block of {width} numbers up to {largest[at]:g} comes back from {kind.lower()} with an error of "
            f"{errors[at].max():g}; at most {bound[at]:g} was expected. Write dtype 'bf16' or 'f32' instead"
        )


def bound_in_words(kind: str) -> str:
    """:func:`require_near`'s bound, for a report."""
    share, step, by_span = _STEPS[kind]
    of = "the span" if by_span else "the largest"
    return f"each number within 1/{round(1 / (share * step))} of {of} of its 32, and float16's rounding of the scale"
