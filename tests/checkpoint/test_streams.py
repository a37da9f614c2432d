"""Streams give the bytes that tensors would have, whatever stretch is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.layouts import Cropped, Fused, Layout, Neighbours, PerHead, Repeated, Same, same_bits
from glmlike.checkpoint.splits import Cut, Replicated, Split
from glmlike.checkpoint.streams import (
    Cast,
    Columns,
    Dequantized,
    Rows,
    SideBySide,
    Stored,
    Stream,
    first_difference,
    in_memory,
    read_all,
    size_of,
    stretches,
)
from glmlike.checkpoint.through_layouts import to_foreign_streams, to_native_streams
from glmlike.errors import CheckpointError
from glmlike.integers import dequantize, pack_int4


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(stream: Stream, at_most: int) -> bytes:
    """A stream read in stretches, each into a buffer of its own."""
    pieces = []
    for start, stop in stretches(stream, at_most):
        buffer = bytearray(stop - start)
        stream.read_into(memoryview(buffer), start)
        pieces.append(bytes(buffer))
    return b"".join(pieces)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_file(folder: Path, tensor: torch.Tensor, name: str = "file") -> Stored:
    """A tensor in the middle of a file."""
    path = folder / name
    path.write_bytes(b"before" + raw(tensor) + b"after")
    return Stored(ByteFile(path), 6, in_memory(tensor).dtype, tuple(tensor.shape))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[torch.Tensor]]:
    columns = draw(st.sampled_from([(), (3,), (5,)]))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layout = draw(
        st.sampled_from([Same(), Fused(tuple(sizes)), Repeated(2), PerHead(heads, head_dim), Neighbours(2 * head_dim)])
    )
    if isinstance(layout, PerHead):
        sizes = [heads * head_dim] * 3
    if isinstance(layout, Neighbours):
        sizes = [2 * heads * head_dim]
    native = [numbers(size, *columns, seed=at) for at, size in enumerate(sizes[: layout.natives])]
    return layout, native


@given(layouts(), st.integers(1, 40))
def test_layouts_of_streams_are_layouts_of_tensors(case: tuple[Layout, list[torch.Tensor]], at_most: int) -> None:
    layout, native = case
    foreign = layout.to_foreign(native)
    there = to_foreign_streams(layout, [in_memory(tensor) for tensor in native])
    assert [read(stream, at_most) for stream in there] == [raw(tensor) for tensor in foreign]
    assert [stream.shape for stream in there] == [tuple(tensor.shape) for tensor in foreign]
    back = to_native_streams(layout, there, [tuple(tensor.shape) for tensor in native])
    assert [read(stream, at_most) for stream in back] == [raw(tensor) for tensor in native]
    assert all(map(same_bits, map(read_all, back), native))


class Reversed:
    """A layout of one's own that does more than move rows: it has no row-wise form."""

    natives = foreigns = 1

    def to_native(self, foreign: list[torch.Tensor]) -> list[torch.Tensor]:
        return [foreign[0].flip(1)]

    to_foreign = to_native

    def foreign_shapes(self, native: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return list(native)


def test_a_layout_without_rows_goes_through_tensors() -> None:
    tensor = numbers(4, 3)
    (there,) = to_foreign_streams(Reversed(), [in_memory(tensor)])
    assert read(there, 7) == raw(tensor.flip(1))
    (back,) = to_native_streams(Reversed(), [there], [(4, 3)])
    assert read(back, 7) == raw(tensor)


def test_dropped_rows_are_not_read_and_have_no_way_back(tmp_path: Path) -> None:
    tensor = numbers(7, 3)
    layout = Cropped(dropped=2, rows=5)
    (kept,) = to_native_streams(layout, [in_file(tmp_path, tensor)], [(5, 3)])
    assert read(kept, 4) == raw(tensor[2:])
    with pytest.raises(CheckpointError, match="2 rows that stood before these 5 were dropped"):
        to_foreign_streams(layout, [kept])


@given(st.integers(0, 1), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(1, 50), st.integers(1, 2))
def test_splits_of_streams_are_splits_of_tensors(
    dim: int, parts: int, ranks: int, whole: bool, at_most: int, copies: int
) -> None:
    split: Split = Replicated() if whole else Cut(dim, parts, copies)
    shape = [2, 3]
    shape[dim] *= parts * ranks
    tensor = numbers(*shape)
    pieces = split.cut_streams(in_memory(tensor), ranks * copies)
    assert [read(piece, at_most) for piece in pieces] == [raw(piece) for piece in split.cut(tensor, ranks * copies)]
    assert read(split.join_streams(pieces), at_most) == raw(tensor)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 30))
def test_rows_and_columns_of_a_file(first: int, last: int, at_most: int) -> None:
    import tempfile

    first, last = sorted((first, last))
    tensor = numbers(6, 6, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        stored = in_file(Path(folder), tensor)
        parts = ((stored, first, last), (stored, 0, first), (stored, last, 6))
        expected = torch.cat([tensor[first:last], tensor[:first], tensor[last:]])
        assert read(Rows(parts), at_most) == raw(expected)
        if last > first:
            assert read(Columns(stored, first, last), at_most) == raw(tensor[:, first:last])
            joined = SideBySide((Columns(stored, first, last), stored))
            assert read(joined, at_most) == raw(torch.cat([tensor[:, first:last], tensor], 1))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_become_what_tensors_become(bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-7, 8, (5, 8), dtype=torch.int8, generator=generator)
    packed, scale = (pack_int4(weight) if bits == 4 else weight), numbers(5, dtype=torch.float16)
    stream = Dequantized(in_memory(packed), in_memory(scale), bits, "F16")
    assert stream.shape == (5, 8)
    assert read(stream, 20) == raw(dequantize(packed, scale, bits, torch.float16))


@pytest.mark.parametrize("there", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("here", ["F16", "BF16", "F32"])
def test_casts_round_as_torch_does(there: str, here: str) -> None:
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    tensor = numbers(5, 7, dtype=torch.float64).to(names[there])
    tensor[0, :3] = torch.tensor([float("inf"), -0.0, 1e-6])
    assert read(Cast(in_memory(tensor), here), 9) == raw(tensor.to(names[here]))


def test_a_cast_that_would_make_numbers_infinite_is_refused() -> None:
    tensor = torch.tensor([[1.0, 70_000.0, float("inf")]])
    with pytest.raises(CheckpointError, match=r"1 numbers .* up to 70000, do not fit in float16 .*Choose bfloat16"):
        read(Cast(in_memory(tensor), "F16"), 100)


def test_holes_are_known_and_differences_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**22)
        file.seek(2**21)
        file.write(b"x" * 4096)
    file_ = ByteFile(path)
    stream = Stored(file_, 0, "U8", (2**22,))
    if file_.is_hole(0, 2**20):  # the file system keeps holes
        assert not stream.is_hole(2**20, 2**22)
        assert stream.is_hole(2**22 - 4096, 2**22)
    zeros = in_memory(torch.zeros(2**22, dtype=torch.uint8))
    assert first_difference([stream, zeros], 2**16) == 1
    assert first_difference([stream, stream, stream], 2**16) is None
    assert size_of(stream) == 2**22


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    stored = in_file(tmp_path, numbers(8, 8))
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="ends at byte .*: it became shorter while it was read"):
        read(stored, 50)
