"""Contract 1, layout by layout: to_foreign and to_native undo each other bit for bit, and shapes say the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glmlike.checkpoint.layouts import Cropped, Fused, Layout, Neighbours, PerHead, Repeated, Same, same_bits
from glmlike.errors import CheckpointError

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bits, so that NaN payloads and negative zeros are among the values."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, list[torch.Tensor]]:
    dtype, columns, seed = draw(DTYPES), draw(st.integers(1, 5)), draw(st.integers(0, 99))
    rows = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    simple = [Same(), Fused(tuple(rows)), Repeated(2), Repeated(3)]
    layout = draw(st.sampled_from([*simple, PerHead(heads, head_dim), Neighbours(2 * head_dim)]))
    sizes = rows if isinstance(layout, Fused) else rows[:1]
    if isinstance(layout, Neighbours):
        sizes = [heads * 2 * head_dim]
    if isinstance(layout, PerHead):
        sizes = [heads * head_dim] * 3
    return layout, [random_tensor((size, columns), dtype, seed + i) for i, size in enumerate(sizes)]


@given(cases())
def test_native_to_foreign_and_back_is_the_identity(case: tuple[Layout, list[torch.Tensor]]) -> None:
    layout, native = case
    foreign = layout.to_foreign(native)
    assert len(native) == layout.natives
    assert len(foreign) == layout.foreigns
    assert all(map(same_bits, layout.to_native(foreign), native))
    assert [tuple(tensor.shape) for tensor in foreign] == layout.foreign_shapes([tuple(t.shape) for t in native])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), DTYPES)
def test_fused_to_native_and_back_is_the_identity(sizes: list[int], dtype: torch.dtype) -> None:
    whole = random_tensor((sum(sizes), 3), dtype, 1)
    layout = Fused(tuple(sizes))
    assert same_bits(layout.to_foreign(layout.to_native([whole]))[0], whole)


def test_halves_become_neighbours() -> None:
    """Rows [0 1 | 2 3] of one head rotate as (0, 2) and (1, 3): those stand side by side."""
    (found,) = Neighbours(head_dim=4).to_foreign([torch.arange(8.0).reshape(8, 1)])
    assert found.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(CheckpointError, match="found 6 rows, expected heads of 4, in pairs"):
        Neighbours(head_dim=4).to_native([found[:6]])


def test_heads_are_taken_apart() -> None:
    """Rows [q of head 0, k of head 0, v of head 0, q of head 1, …]."""
    whole = torch.arange(12.0).reshape(12, 1)
    q, k, v = PerHead(heads=2, head_dim=2).to_native([whole])
    assert [part.flatten().tolist() for part in (q, k, v)] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    with pytest.raises(CheckpointError, match="found 11 rows, expected 2 x 3 x 2 = 12"):
        PerHead(heads=2, head_dim=2).to_native([whole[:11]])


def test_splitting_rows_copies_nothing() -> None:
    whole = torch.randn(6, 4)
    parts = Fused((3, 2, 1)).to_native([whole])
    assert {part.untyped_storage().data_ptr() for part in parts} == {whole.untyped_storage().data_ptr()}


def test_a_fused_tensor_of_other_rows_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"found 5 rows, expected 3 \+ 1 = 4"):
        Fused((3, 1)).to_native([torch.zeros(5, 2)])


def test_copies_that_differ_are_refused() -> None:
    with pytest.raises(CheckpointError, match="2 different tensors"):
        Repeated(2).to_native([torch.zeros(2), torch.ones(2)])


def test_cropping_keeps_the_last_rows_and_has_no_way_back() -> None:
    whole = torch.arange(10.0).reshape(5, 2)
    layout = Cropped(dropped=2, rows=3)
    (kept,) = layout.to_native([whole])
    assert torch.equal(kept, whole[2:])
    assert kept.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert layout.foreign_shapes([(3, 2)]) == [(5, 2)]
    assert torch.equal(layout.to_native([whole[:, 0]])[0], whole[2:, 0])  # the scales of integer rows
    with pytest.raises(CheckpointError, match=r"found 3 rows, expected 2 to drop \+ 3 = 5"):
        layout.to_native([kept])
    with pytest.raises(CheckpointError, match="2 rows that stood before these 3 were dropped .* 5 rows cannot be"):
        layout.to_foreign([kept])
