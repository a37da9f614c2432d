"""The header reader accepts what safetensors writes, and refuses everything else in our words."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from glmlike import CheckpointError
from glmlike.checkpoint.headers import read_header

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.bool: "BOOL"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
def test_what_the_library_writes_is_read(content: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file({name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in content.items()}, path)
        found = read_header(path)
    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == {
        name: (DTYPES[dtype], shape) for name, (dtype, shape) in content.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("headers") / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    return path.read_bytes()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_damaged_byte_or_cut_is_read_or_refused(written: bytes, data: st.DataObject) -> None:
    raw = bytearray(written)
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(raw[:cut])
        try:
            found = read_header(path)
        except CheckpointError as error:
            assert "x.safetensors" in str(error)
        else:
            assert all(info.end <= cut for info in found.values())
