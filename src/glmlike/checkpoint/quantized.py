"""Which matrices of a folder are integers: by the tensors that are there, checked before one is read.

The pre-quantized ChatGLM-6B and ChatGLM2-6B repositories store an int8 ``weight`` (int4: two numbers a byte, so half
the columns) and a ``weight_scale`` of its rows; everything else is as in the float repositories. Most quantize the
layers' matrices only; ChatGLM-6B int4-qe also its embedding and head.
"""

from __future__ import annotations

from collections.abc import Mapping

from glmlike.checkpoint.headers import TensorInfo, require_shapes
from glmlike.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

SCALE = "_scale"
"""What the name of a matrix's row scales adds to the matrix's own."""

_INTEGER = ("I8", "int8")  # as .safetensors and .bin files call it
_SCALES = ("F16", "BF16", "F32", "float16", "bfloat16", "float32")


def find_integers(tensors: Mapping[str, TensorInfo], shapes: Shapes, bits: int | None, where: str) -> frozenset[str]:
    """The names of ``shapes`` that ``tensors`` holds as integers with row scales.

    ``shapes`` are those of the floats; ``bits`` is what config.json says (None: floats).

    Raises:
        CheckpointError: integers that config.json does not speak of, integers without scales or the reverse, scales
            beside floats, or a shape that is not that of ``bits``.
    """
    for name in shapes.keys() - tensors.keys():
        if (scale := tensors.get(name + SCALE)) is not None:
            raise CheckpointError(
                f"{scale.file}: holds {scale.name!r}, but no file holds {name!r}, whose scales they are. The download "
                "is incomplete; compare it with the original repository."
            )
    found = frozenset(name for name in shapes if name in tensors and _is_integer(name, tensors, len(shapes[name])))
    if found and bits is None:
        name = min(found)
        raise CheckpointError(
            f"{where}: {name!r} is {tensors[name].dtype} with scales: pre-quantized weights, but config.json has no "
            "'quantization_bit'. Add the one of the original repository (4 or 8)."
        )
    if bits is not None:
        require_integer_shapes(tensors, shapes, found, bits)
    return found


def _is_integer(name: str, tensors: Mapping[str, TensorInfo], dimensions: int) -> bool:
    """Whether a tensor is an integer matrix; its scales are there exactly if it is."""
    info, scale = tensors[name], tensors.get(name + SCALE)
    integer = info.dtype in _INTEGER
    if integer and dimensions != 2:
        raise CheckpointError(
            f"{info.file}: {name!r} is {info.dtype}: only matrices are published as integers. Use the original files."
        )
    if integer and scale is None:
        raise CheckpointError(
            f"{info.file}: {name!r} is {info.dtype}, but no file holds {name + SCALE!r}, the scales of its rows. The "
            "download is incomplete; compare it with the original repository."
        )
    if scale is not None and (not integer or scale.dtype not in _SCALES):
        raise CheckpointError(
            f"{scale.file}: {scale.name!r} is {scale.dtype} beside {name!r}, which is {info.dtype}: expected scales of "
            "float16, bfloat16 or float32 beside int8. Download the original files again."
        )
    return integer


def require_integer_shapes(
    tensors: Mapping[str, TensorInfo], shapes: Shapes, integers: frozenset[str], bits: int
) -> None:
    """Integer matrices and their scales have the shapes that ``bits`` gives them.

    Raises:
        CheckpointError: the first that has not, with both shapes, and the width that would fit where one does.
    """
    for name in sorted(integers):
        info, other = tensors[name], 12 - bits
        if info.shape == integer_shape(shapes[name], other):
            raise CheckpointError(
                f"{info.file}: {name!r} has shape {list(info.shape)}, which is {list(shapes[name])} in {other} bits, "
                f'but config.json says {bits}. Correct it: "quantization_bit": {other}.'
            )
    require_shapes(with_integers({name: shapes[name] for name in integers}, integers, bits), tensors)


def integer_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The shape [O, I] of a matrix as int8: [O, I], or [O, I/2] for 4 bits."""
    return (*shape[:-1], shape[-1] * bits // 8)


def with_integers(shapes: Shapes, integers: frozenset[str], bits: int) -> dict[str, tuple[int, ...]]:
    """``shapes`` of a float checkpoint as they are with some matrices stored as integers, scales included."""
    found = {name: integer_shape(shape, bits) if name in integers else shape for name, shape in shapes.items()}
    return found | {name + SCALE: shapes[name][:1] for name in integers}
