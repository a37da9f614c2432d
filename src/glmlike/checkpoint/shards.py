"""Reading and writing checkpoint folders: one file or shards with an index, .safetensors or .bin, one tensor at a time.

Nothing here knows what a tensor means. A folder is written next to its place and renamed into it when it is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.headers import DTYPE_SIZES, TensorInfo, read_header, refuse_lfs_pointer
from glmlike.checkpoint.streams import TORCH_NAMES, Loaded, Stored, Stream, dtype_name
from glmlike.errors import CheckpointError, ConfigError, GlmLikeError

if TYPE_CHECKING:
    from torch import Tensor

_SINGLES = ("model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_KEPT_MAPPED = 2**28  # bytes of tensors read from mapped files before these are mapped anew
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass
class Checkpoint:
    """The tensors of one folder: names, dtypes and shapes known from the headers, contents read one at a time."""

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    _handles: dict[Path, Any] = field(default_factory=dict, repr=False)
    _bytes: dict[Path, ByteFile] = field(default_factory=dict, repr=False)
    _mapped: int = field(default=0, repr=False)

    def read(self, name: str) -> Tensor:
        """One tensor, as a lazy view of its file where the file allows it.

        Raises:
            CheckpointError: no file holds the name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        path, stored = self.tensors[name].file, self.tensors[name].name
        if path not in self._handles:
            self._handles[path] = _open(path)
        handle = self._handles[path]
        tensor: Tensor = handle[stored] if isinstance(handle, dict) else handle.get_tensor(stored)
        return tensor

    def stream(self, name: str) -> Stream:
        """The bytes of one tensor, to be read a stretch at a time: from the file where its header says where they are.

        Raises:
            CheckpointError: no file holds the name, or its dtype has no place in a safetensors file.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        info = self.tensors[name]
        dtype = require_dtype(info)
        if info.end - info.start == math.prod(info.shape) * DTYPE_SIZES[dtype] and info.end > 0:
            file = self._bytes.setdefault(info.file, ByteFile(info.file))
            return Stored(file, info.start, dtype, info.shape)
        return Loaded(partial(self._read_and_forget, name), dtype, info.shape)

    def _read_and_forget(self, name: str) -> Tensor:
        """One tensor; files are mapped anew now and then, since pages that were read count as memory until then."""
        tensor = self.read(name)
        self._mapped += tensor.nbytes
        if self._mapped > _KEPT_MAPPED:
            self._mapped = 0
            for path in [path for path in self._handles if path.suffix == ".safetensors" or _is_zip(path)]:
                self._handles.pop(path, None)
        return tensor

    def under(self, prefix: str) -> Checkpoint:
        """The same tensors, each by its name with ``prefix`` before it."""
        tensors = {prefix + name: info for name, info in self.tensors.items()}
        return Checkpoint(self.folder, self.files, tensors, self._handles, self._bytes)


def require_dtype(info: TensorInfo) -> str:
    """safetensors' name of a tensor's dtype. Raises CheckpointError if it has none."""
    name = dtype_name(info.dtype)
    if name not in TORCH_NAMES:
        raise CheckpointError(f"{info.file}: {info.name!r} is {info.dtype}: expected one of {', '.join(TORCH_NAMES)}.")
    return name


def open_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a folder, every file present and every header checked, before a tensor is read.

    Raises:
        CheckpointError: no weights, a missing or damaged file, or an index that names what is not there.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder. Pass the folder that holds config.json and the weights.")
    for single in _SINGLES:
        if (folder / single).exists():
            return Checkpoint(folder, (folder / single,), tensors_of(folder / single))
    for index in _INDICES:
        if (folder / index).exists():
            return _open_indexed(folder, folder / index)
    raise CheckpointError(f"{folder}: no weights found; expected one of {', '.join((*_SINGLES, *_INDICES))}.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that belongs to a checkpoint.

    Raises:
        ConfigError: no such file, no JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there. Pass a checkpoint's folder, with its {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}). Download it again.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, expected an object. Download it again.")
    return found


def open_file(path: Path) -> Checkpoint:
    """The tensors of one file of any name, its header checked.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not there. Download this file.")
    return Checkpoint(path.parent, (path,), tensors_of(path))


def _open_indexed(folder: Path, index: Path) -> Checkpoint:
    weight_map = _weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    files = []
    for name in sorted(set(weight_map.values())):
        path = folder / _safe_name(name, index)
        if not path.exists():
            raise CheckpointError(f"{path}: missing, but {index.name} names it. Download this file.")
        files.append(path)
        found = tensors_of(path)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{path}: holds {twice[0]!r}, which {tensors[twice[0]].file.name} holds as well.")
        tensors |= found
    for tensor, name in weight_map.items():
        if tensor not in tensors or tensors[tensor].file.name != name:
            raise CheckpointError(
                f"{index}: says that {name} holds {tensor!r}, but it does not. Index and files are of different "
                "versions; download both again."
            )
    return Checkpoint(folder, tuple(files), tensors)


def _weight_map(index: Path) -> dict[str, str]:
    refuse_lfs_pointer(index)
    try:
        found = json.loads(index.read_text(encoding="utf8"))["weight_map"]
        sound = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{index}: expected an object with a 'weight_map' of file names. Download it again.")
    return dict(found)


def _safe_name(name: str, index: Path) -> str:
    if name != PurePosixPath(name).name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{index}: names the file {name!r}, which is not a plain file name beside the index.")
    return name


def tensors_of(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one .safetensors or .bin file, by name, none of them read."""
    if path.suffix == ".safetensors":
        return read_header(path)
    refuse_lfs_pointer(path)
    return {
        name: TensorInfo(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), path)
        for name, tensor in _open(path).items()
    }


def _open(path: Path) -> Any:
    """A safetensors handle, or the dict of a .bin file read without running any code in it."""
    import torch
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".safetensors":
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot be read ({error}). Download it again.") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: not a pickle of plain tensors, or damaged ({first_line}); nothing in it was executed. Use a "
            ".safetensors copy, or download it again."
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(found).__name__}.")
    return found


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], max_shard_size: int) -> dict[str, Any]:
    """Write tensors to .safetensors files of at most ``max_shard_size`` bytes (one larger tensor has its own file).

    One file is ``model.safetensors``; several have an index, which is returned either way.
    """
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        nonlocal size
        if pending:
            # A tensor may be a view of another's file or storage: each is written as memory of its own.
            own = {name: tensor.contiguous().clone() for name, tensor in pending.items()}
            save_file(own, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
            shards.append(list(pending))
            pending.clear()
            size = 0

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > max_shard_size:
            flush()
        pending[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    return _name_shards(folder, shards, total)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> dict[str, Any]:
    count = len(shards)
    weight_map = {}
    for number, names in enumerate(shards):
        file = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    if count > 1:
        (folder / _INDICES[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
    return index


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``"5GB"``, ``"500 MiB"`` or a plain number.

    Raises:
        GlmLikeError: not such a size, or not positive.
    """
    digits = str(text).upper().replace(" ", "")
    unit = next((unit for unit in _UNITS if digits.endswith(unit)), "")
    try:
        size = int(float(digits.removesuffix(unit)) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise GlmLikeError(f"{text!r}: expected a size such as 5GB, 500MB or 500MiB.")
    return size


@contextmanager
def whole_folder(destination: Path, source: Path | None) -> Iterator[Path]:
    """A folder to write into that becomes ``destination`` when the block ends well, and vanishes when it does not.

    Raises:
        CheckpointError: ``destination`` holds something already, or is the source, inside it or around it.
    """
    target = destination.resolve()
    origin = None if source is None else source.resolve()
    if origin is not None and (target == origin or origin in target.parents or target in origin.parents):
        raise CheckpointError(f"{destination}: must not be {source}, inside it or around it. Choose another folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{destination}: exists already. Choose a new folder, or remove this one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        for path in filter(Path.is_file, partial.rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
