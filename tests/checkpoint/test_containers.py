"""The files we frame are those that the libraries write and read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from glmlike.checkpoint.containers import Container, SafetensorsFile, Sums, TorchZipFile
from glmlike.checkpoint.streams import in_memory

DTYPES = [
    *(torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.float16, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.bool),
]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def written(container: Container, tensors: dict[str, torch.Tensor]) -> bytes:
    content = bytearray(container.size)
    for name, tensor in tensors.items():
        content[container.at[name] : container.at[name] + tensor.nbytes] = raw(tensor)
    sums = {name: Sums("0" * 32, zlib.crc32(raw(tensor))) for name, tensor in tensors.items()}
    for offset, piece in container.frame(sums):
        content[offset : offset + len(piece)] = piece
    return bytes(content)


def described(tensors: dict[str, torch.Tensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, in_memory(tensor).dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


named = st.dictionaries(
    st.text('abcé."\\{', min_size=1, max_size=6),
    st.builds(
        lambda shape, dtype: torch.randint(0, 9, shape).to(dtype),
        st.lists(st.integers(1, 4), max_size=3),
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=6,
)


@given(named)
def test_safetensors_files_are_the_librarys(tensors: dict[str, torch.Tensor]) -> None:
    container = SafetensorsFile("x", described(tensors), lambda sums: {"format": "pt"})
    content = written(container, tensors)
    found = load(content)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert content == save(tensors, metadata={"format": "pt"})
    sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
    assert all((container.at[name] - min(container.at.values())) % size == 0 for name, size in sizes.items())
    assert min(container.at.values()) % 8 == 0


@given(named)
def test_torch_zip_files_are_torchs(tensors: dict[str, torch.Tensor]) -> None:
    """Read by torch, mapped or not, and by zipfile, which checks the checksums."""
    import tempfile

    content = written(TorchZipFile("x", described(tensors), "module"), tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt"
        path.write_bytes(content)
        for mapped in (False, True):
            found = torch.load(path, weights_only=True, mmap=mapped)["module"]
            assert list(found) == list(tensors)
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
            del found
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_metadata_of_any_hash_has_the_same_size(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int8)}
    container = SafetensorsFile("x", described(tensors), lambda sums: {n: found.hash for n, found in sums.items()})
    (tmp_path / "x").write_bytes(written(container, tensors))
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"a": "0" * 32, "b": "0" * 32}
