"""Matrices of GPTQ, AWQ and compressed-tensors: small unsigned integers packed in words, a zero and a scale a group.

The number of row o and column i is ``(integer[o, i] - zero[o, g]) * scale[o, g]``, where ``g`` is the group of column
i. Words are little-endian int32, the first integer in the lowest bits. Shapes: O rows, I columns, G groups of columns.
Sources of the packings: ``pack`` of GPTQModel's quantized linear layers; ``WQLinear_GEMM.from_linear`` of AutoAWQ;
``pack_to_int32`` and the compressors of compressed-tensors, whose floats of 4 and 8 bits are read here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ's the integers of eight neighbours are: it is packed in the order 0, 2, 4, 6, 1, 3, 5, 7."""


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """[..., W] int32 to [..., 32 W / bits] uint8, the lowest bits of a word first; ``bits`` divides 8."""
    import torch

    whole = words.contiguous().reshape(-1)  # a column of words keeps the stride of what it is a column of
    packed = whole.view(torch.uint8).view(*words.shape[:-1], 4 * words.shape[-1])
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    found: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return found.flatten(-2)


def unpack_awq_words(words: Tensor) -> Tensor:
    """[..., W] int32 of AWQ to [..., 8 W] uint8 in 0..15, in the order of the numbers that they stand for."""
    integers = unpack_words(words, 4)
    return integers.view(*words.shape, 8)[..., list(_AWQ_PLACES)].flatten(-2)


_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of 4-bit floats with two bits of exponent (E2M1), by their lower three bits."""


def unpack_fp4(packed: Tensor) -> Tensor:
    """[..., W] uint8 to [..., 2 W] float32: of a byte the lower four bits first, the highest of the four the sign."""
    import torch

    table = torch.tensor((*_FP4, *(-number for number in _FP4)))
    nibbles = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    return table[nibbles.int()]


def wide_scales(scales: Tensor) -> Tensor:
    """The scales as floats that can be computed with: float8 in float32, and bytes as the exponents that they are."""
    import torch

    if scales.dtype == torch.uint8:  # E8M0
        return torch.exp2(scales.float() - 127)
    return scales.float() if scales.dtype == torch.float8_e4m3fn else scales


def gptq_zeros(words: Tensor, bits: int) -> Tensor:
    """The words of ``qzeros`` of a ``checkpoint_format`` "gptq" as those of "gptq_v2", which are the zeros themselves.

    The first format holds each zero less one. One is added to all fields of a word at once, with carry: GPTQModel
    subtracts it so when it writes, and where a zero is 0 (asymmetric quantization only) the field before has lent it.
    """
    return words + sum(1 << shift for shift in range(0, 32, bits))


def dequantize_groups(
    integers: Tensor, zeros: Tensor | int, scales: Tensor, groups: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """[O, I] in ``dtype`` of integers [O, I] with zeros and scales [O, G]; ``groups`` [I] is each column's group.

    ``groups=None``: G groups of neighbours, all of one size. Products of half-precision scales are exact in float32
    (9 + 11 bits), so that each number is rounded once, to ``dtype``: that is what the libraries' own float16 gives.
    """
    import torch

    wide = torch.promote_types(scales.dtype, torch.float32)
    numbers = integers.contiguous().to(wide)
    scales = scales.to(wide)
    zeros = zeros if isinstance(zeros, int) else zeros.to(wide)
    if groups is None:
        by_group = numbers.view(len(numbers), scales.shape[1], -1)
        by_group.sub_(zeros if isinstance(zeros, int) else zeros[..., None]).mul_(scales[..., None])
    else:
        numbers.sub_(zeros if isinstance(zeros, int) else zeros[:, groups]).mul_(scales[:, groups])
    return numbers.to(dtype)
