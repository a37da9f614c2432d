"""Integer weights of the pre-quantized ChatGLM and GLM-130B releases: int8, or int4 two a byte, and a scale a row.

Source: quantization.py of the ChatGLM repositories; quantization/functional.py of THUDM/GLM-130B.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def unpack_int4(packed: Tensor) -> Tensor:
    """[O, I/2] int8, two numbers a byte, to [O, I] int8 in -8..7: the high half holds the even column."""
    import torch

    low = (packed << 4) >> 4  # the shift back is arithmetic: it brings the sign along
    return torch.stack((packed >> 4, low), dim=-1).flatten(-2)


def pack_int4(weight: Tensor) -> Tensor:
    """[O, I] int8 in -8..7 to [O, I/2] int8: the inverse of :func:`unpack_int4`."""
    return (weight[..., 0::2] << 4) | (weight[..., 1::2] & 0x0F)


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """[..., O, I] in ``dtype`` of int8 rows [..., O, I] (``bits=8``) or [..., O, I/2] (``bits=4``) and scales [..., O].

    The product is exact for half-precision scales (8 + 11 bits fit in float32) and rounded once, to ``dtype``. For a
    float16 scale and ``dtype`` that is what the originals' CUDA kernels compute, for float32 what their CPU kernels do.
    """
    import torch

    rows = unpack_int4(weight) if bits == 4 else weight
    wide = dtype if dtype == scale.dtype else torch.promote_types(scale.dtype, torch.float32)
    return (rows.to(wide) * scale.to(wide)[..., None]).to(dtype)


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A matrix [O, I] of floats as the releases' quantizer makes integers of it: int8 rows, and float16 scales [O].

    A row's scale is its largest absolute value over 127 (``bits=8``) or 7 (``bits=4``; rows are then [O, I/2]), rounded
    to float16; the integers are those nearest to number / scale. A row of zeros has a scale of zero.

    Raises:
        CheckpointError: a number that is not finite, a scale beyond float16, or an odd number of columns in 4 bits.
    """
    import torch

    most = 2 ** (bits - 1) - 1
    if bits == 4 and weight.shape[-1] % 2:
        raise CheckpointError(f"{weight.shape[-1]} columns: two 4-bit integers share a byte. Use 8 bits")
    wide = weight.float()
    scale = (wide.abs().amax(dim=-1) / most).to(torch.float16)
    if not torch.isfinite(scale).all():
        raise CheckpointError(f"its largest number is {wide.abs().max():g}: expected finite, at most {most} x 65504")
    divisor = torch.where(scale == 0, 1, scale).float()[..., None]
    rows = (wide / divisor).round_().clamp_(-most, most).to(torch.int8)
    return (pack_int4(rows) if bits == 4 else rows), scale
