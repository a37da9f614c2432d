"""Integer weights against numbers worked out by hand, and packing as the inverse of unpacking."""

from __future__ import annotations

import pytest
import torch

from glmlike.integers import dequantize, pack_int4, unpack_int4


def test_every_byte_unpacks_to_its_two_signed_halves() -> None:
    packed = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).reshape(16, 16)
    high, low = unpack_int4(packed)[..., 0::2].int(), unpack_int4(packed)[..., 1::2].int()
    assert torch.equal(high * 16 + (low & 15), packed.int())
    assert (high.min(), high.max(), low.min(), low.max()) == (-8, 7, -8, 7)
    assert torch.equal(pack_int4(unpack_int4(packed)), packed)


def test_rows_are_scaled_exactly_and_rounded_once() -> None:
    packed = torch.tensor([[0x7F], [-0x80]], dtype=torch.int8)  # 7, -1; -8, 0
    scale = torch.tensor([0.5, 0.25], dtype=torch.float16)
    assert dequantize(packed, scale, 4, torch.float32).tolist() == [[3.5, -0.5], [-2.0, 0.0]]
    whole = torch.tensor([[3], [5]], dtype=torch.int8)
    third = torch.tensor([1 / 3, 1 / 3], dtype=torch.float16)
    assert dequantize(whole, third, 8, torch.float32)[0, 0] == 3 * third[0].item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_int8_times_a_scale_is_the_exact_product_in_the_target_dtype(dtype: torch.dtype) -> None:
    whole = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).repeat(64, 1)
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)).half()
    exact = whole.double() * scale.double()[:, None]
    assert torch.equal(dequantize(whole, scale, 8, dtype), exact.to(dtype))
