"""torch zip files: what torch.save writes is read, bit for bit and without torch; everything else is refused unread."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.pickles import PickleError, run
from glmlike.checkpoint.shards import open_checkpoint
from glmlike.checkpoint.torch_zip import read_torch_zip
from glmlike.errors import CheckpointError

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32),
    *(torch.int64, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn),
    torch.float8_e5m2,
]


def contents(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors that are whole, strided, parts of one storage, parameters, scalars and empty."""
    base = torch.randint(0, 2, (12,)).float().to(dtype).view(3, 4)
    return {
        "whole": base,
        "transposed": base.t(),
        "part": base[1:, ::2],
        "row": base[2],
        "scalar": torch.tensor(1.0).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_writes_is_read(dtype: torch.dtype, protocol: int, tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.bin", contents(dtype)
    torch.save({"module": tensors, "step": 3, "more": [1, (2, 3.5), None]}, path, pickle_protocol=protocol)
    found = read_torch_zip(path, "module")
    raw = path.read_bytes()
    assert found.infos.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = found.get_tensor(name)
        assert same_bits(read.reshape(-1), tensor.detach().reshape(-1)), name
        assert read.shape == tensor.shape == found.infos[name].shape
        span = found.infos[name].span
        assert (span is None) == (name in ("transposed", "part", "empty"))
        if span is not None:
            bytes_ = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw[span[0] : sum(span)] == bytes_
    assert found.infos["whole"].span == (found.infos["row"].start - 8 * dtype.itemsize, 12 * dtype.itemsize)


def test_a_state_dict_and_hashes_left_out(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(module.state_dict(), tmp_path / "x.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    found = read_torch_zip(tmp_path / "x.bin")
    assert {info.crc32 for info in found.infos.values()} == {None}
    assert same_bits(found.get_tensor("weight"), module.weight.detach())


def rezip(path: Path, change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED) -> None:
    """The file with other entries, whole as a zip."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for values in (torch.arange(6.0), torch.randn(4, dtype=torch.complex64), torch.arange(5, dtype=torch.int16)):
        torch.save({"a": values}, path)
        width = values.element_size() // (2 if values.is_complex() else 1)

        def swap(entries: dict[str, bytes], width: int = width) -> None:
            raw = entries["x/data/0"]
            swapped = b"".join(raw[at : at + width][::-1] for at in range(0, len(raw), width))
            entries.update({"x/data/0": swapped, "x/byteorder": b"big"})

        rezip(path, swap)
        found = read_torch_zip(path)
        assert same_bits(found.get_tensor("a"), values)
        assert found.infos["a"].span is None


def test_a_changed_byte_is_noticed_in_a_whole_tensor_and_in_a_part(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    base = torch.arange(600_000.0)
    torch.save({"whole": base, "first": base[:3], "last": base[-3:]}, path)
    raw = bytearray(path.read_bytes())
    raw[read_torch_zip(path).infos["whole"].start + 1_200_000] ^= 1
    path.write_bytes(raw)
    for name in ("whole", "first", "last"):
        with pytest.raises(CheckpointError, match=rf"x.bin: the bytes of '{name}' are damaged \(their CRC-32"):
            read_torch_zip(path).get_tensor(name)


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


REFUSED: dict[str, tuple[Any, str]] = {
    "a call of the system": (Call(os.system, "true"), "it names 'posix.system'"),
    "a builtin": (Call(eval, "1"), r"it names '\w*builtin\w*.eval'"),
    "a class": (collections.Counter("a"), "it names 'collections.Counter'"),
    "bytes": (b"x", "_codecs.encode"),
    "a set": ({1}, "it names '\\w+.set'"),
    "a tuple as a name": ({(1, 2): 3}, "a key of a dict is of type tuple"),
    "a number of many bits": (2**70, "a number of 71 bits"),
    "numbers that are repeated": ({"a": torch.ones(1).expand(2**40)}, "reaches out of its storage"),
    "an unknown dtype": (
        {"a": torch.zeros(2, dtype=torch.complex128)},
        "it names 'torch.ComplexDoubleStorage",
    ),
    "a conjugate": ({"a": torch.zeros(2, dtype=torch.complex64).conj()}, "not of one plain storage"),
    "no tensors": ({"a": 1}, r"holds a dict of \['a'\], expected a dict of tensors"),
    "a list": ([torch.ones(1)], "holds list, expected a dict"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_contents_are_refused(what: str, tmp_path: Path) -> None:
    thing, message = REFUSED[what]
    torch.save(thing, tmp_path / "x.bin", pickle_protocol=2)
    with pytest.raises(CheckpointError, match=f"{message}.*nothing in it was executed"):
        read_torch_zip(tmp_path / "x.bin")


ZIPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed": (lambda path: rezip(path, lambda e: None, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "no pickle": (lambda path: rezip(path, lambda e: e.pop("x/data.pkl")), "no data.pkl"),
    "two pickles": (lambda path: rezip(path, lambda e: e.update({"y/data.pkl": b"."})), "no data.pkl"),
    "no storage": (lambda path: rezip(path, lambda e: e.pop("x/data/0")), "has no bytes, not those of 6 numbers"),
    "a short storage": (
        lambda path: rezip(path, lambda e: e.update({"x/data/0": b"1"})),
        "has 1 bytes, not those",
    ),
    "a byte order": (lambda path: rezip(path, lambda e: e.update({"x/byteorder": b"odd"})), "a byte order b'odd'"),
    "an entry twice": (lambda path: zipfile.ZipFile(path, "a").writestr("x/data/0", b"1"), "'x/data/0' stands twice"),
    "a bomb of opcodes": (
        lambda path: rezip(path, lambda e: e.update({"x/data.pkl": b"]" * 2**26})),
        "67108864 bytes",
    ),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a zip file.*weights_only=True"),
    "nothing": (lambda path: path.write_bytes(b""), "not a zip file"),
    "an end of nothing": (lambda path: path.write_bytes(b"PK\5\6" + bytes(18)), "no data.pkl"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how", ZIPS)
def test_other_zips_are_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(6.0)}, path)
    damage, message = ZIPS[how]
    archive = damage(path)
    del archive
    with pytest.raises(CheckpointError, match=message):
        read_torch_zip(path)


PROGRAMS = {
    b"\x80\x02.": "ends in the middle",
    b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x02s.": "the name 'a' stands twice",
    b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.": "the name 'a' stands twice",
    b"r\xff\xff\xff\xff.": "damaged",
    b"Nr\xff\xff\xff\xff.": "",
    b"t.": "no mark",
    b"Q.": "nothing on the stack",
    b"NN.": "ends in the middle",
    b"N.N": "bytes after the end",
    b"K\x01K\x02R.": "calls what is no function",
    b"cos\nsystem\n.": "it names 'os.system'",
    b"]K\x01K\x02\x81.": "opcode NEWOBJ",
    b"\x82\x01.": "opcode EXT1",
    b"\xff": "damaged",
    b"": "damaged|ends",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_by_hand(program: bytes) -> None:
    """Memo indices of any size cost nothing; marks and stacks that do not fit are errors."""
    if PROGRAMS[program] == "":
        assert run(program, {}, lambda identity: None) is None
        return
    with pytest.raises(PickleError, match=PROGRAMS[program]):
        run(program, {}, lambda identity: None)


def test_nested_and_shared_containers_cost_nothing() -> None:
    """A tuple of two times itself, fifty deep; and a hundred thousand tuples in one another."""
    doubled = b"K\x01" + b"q\x00h\x00\x86" * 50
    for program in (doubled + b".", b"K\x01" + b"\x85" * 100_000 + b"."):
        assert isinstance(run(program, {}, lambda identity: None), tuple)
    with pytest.raises(PickleError, match="a key of a dict is of type tuple"):
        run(b"}K\x01" + b"\x85" * 100_000 + b"K\x01s.", {}, lambda identity: None)


@pytest.mark.parametrize("offset", [2**64 - 2, 2**63 - 6, 2**40, 2**31])
def test_entries_that_begin_outside_the_file_are_refused(offset: int, tmp_path: Path) -> None:
    """A zip64 directory may say offsets that no file has; seeking there is an error of the system's on some."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(3.0)}, path)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")  # the first entry of the directory
    name = int.from_bytes(data[at + 28 : at + 30], "little")
    extra = b"\x01\x00\x08\x00" + offset.to_bytes(8, "little")
    entry = bytearray(data[at : at + 46])
    entry[30:32], entry[42:46] = len(extra).to_bytes(2, "little"), b"\xff" * 4
    end = at + 46 + name
    before = int.from_bytes(data[at + 30 : at + 32], "little")
    rest = bytearray(data[end + before :])
    for mark, where, size in ((b"PK\x06\x06", 40, 8), (b"PK\x05\x06", 12, 4)):  # the directory's size, said twice
        if (found := rest.find(mark)) >= 0:
            place = slice(found + where, found + where + size)
            said = int.from_bytes(rest[place], "little")
            if said < 2**32 - 1:
                rest[place] = (said + len(extra) - before).to_bytes(size, "little")
    if (found := rest.find(b"PK\x06\x07")) >= 0:  # where the larger end of the directory begins
        said = int.from_bytes(rest[found + 8 : found + 16], "little")
        rest[found + 8 : found + 16] = (said + len(extra) - before).to_bytes(8, "little")
    path.write_bytes(data[:at] + bytes(entry) + data[at + 46 : end] + extra + rest)
    with pytest.raises(CheckpointError):
        read_torch_zip(path)


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    code = (
        "import sys, pathlib; from glmlike.checkpoint.shards import open_checkpoint; "
        f"open_checkpoint(pathlib.Path({str(tmp_path)!r})); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_links_stay_inside_of_the_folder_or_of_a_hub_cache(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    torch.save({"a": torch.ones(2)}, outside)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "pytorch_model.bin").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: a link to .*outside.bin, which is outside of"):
        open_checkpoint(tmp_path / "folder")
    cached = tmp_path / "models--a--b" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    outside.rename(tmp_path / "models--a--b" / "blobs" / "f00")
    (cached / "pytorch_model.bin").symlink_to("../../blobs/f00")
    assert open_checkpoint(cached).tensors.keys() == {"a"}
    shared = tmp_path / "blobs" / "f0"  # huggingface_hub 2.4: what came over Xet is kept for all repositories
    shared.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs" / "f00").rename(shared / "f00")
    (tmp_path / "models--a--b" / "blobs" / "f00").symlink_to("../../blobs/f0/f00")
    assert open_checkpoint(cached).tensors.keys() == {"a"}
    (cached / "other").symlink_to("../../../folder/pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        require_inside(cached / "other", cached)
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(CheckpointError, match="pipe: not a regular file"):
        require_inside(tmp_path / "folder" / "pipe", tmp_path / "folder")
