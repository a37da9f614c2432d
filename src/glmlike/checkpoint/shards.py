"""Reading and writing checkpoint folders: one file or shards with an index, .safetensors or .bin, one tensor at a time.

Nothing here knows what a tensor means. A folder is written next to its place and renamed into it when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.byte_files import ByteFile
from glmlike.checkpoint.headers import TensorInfo, read_header, refuse_lfs_pointer, unique
from glmlike.checkpoint.inside import require_inside, require_small
from glmlike.checkpoint.streams import Stored, Stream
from glmlike.checkpoint.torch_zip import read_torch_zip
from glmlike.errors import CheckpointError, ConfigError, GlmLikeError

if TYPE_CHECKING:
    from torch import Tensor

_SINGLES = ("model.safetensors", "pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass
class Checkpoint:
    """The tensors of one folder: names, dtypes and shapes known from the headers, contents read one at a time."""

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    _handles: dict[Path, Any] = field(default_factory=dict, repr=False)
    _bytes: dict[Path, ByteFile] = field(default_factory=dict, repr=False)

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
        tensor: Tensor = self._handles[path].get_tensor(stored)
        return tensor

    def stream(self, name: str) -> Stream:
        """The bytes of one tensor, to be read a stretch at a time: from the file where its header says where they are.

        Raises:
            CheckpointError: no file holds the name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        return self.stored(self.tensors[name].file, self.tensors[name].name)

    def parts(self, name: str) -> list[tuple[Path, str]]:
        """What of the files a tensor is made of: the file and the name there of each."""
        return [(self.tensors[name].file, self.tensors[name].name)]

    def stored(self, path: Path, name: str) -> Stream:
        """The bytes of what one file holds under a name."""
        if path.suffix != ".safetensors":
            if path not in self._handles:
                self._handles[path] = _open(path)
            found: Stream = self._handles[path].stream(name)
            return found
        info = self._stored_infos[path, name]
        return Stored(self._bytes.setdefault(path, ByteFile(path)), info.start, info.dtype, info.shape)

    @cached_property
    def _stored_infos(self) -> dict[tuple[Path, str], TensorInfo]:
        return {(info.file, info.name): info for info in self.tensors.values()}

    def under(self, prefix: str) -> Checkpoint:
        """The same tensors, each by its name with ``prefix`` before it."""
        tensors = {prefix + name: info for name, info in self.tensors.items()}
        return Checkpoint(self.folder, self.files, tensors, self._handles, self._bytes)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a folder, every file present and every header checked, before a tensor is read.

    Raises:
        CheckpointError: no weights, a missing or damaged file, or an index that names what is not there.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder. Pass the folder that holds config.json and the weights.")
    for single in _SINGLES:
        if (folder / single).exists():
            return Checkpoint(folder, (folder / single,), tensors_of(require_inside(folder / single, folder)))
    for index in _INDICES:
        if (folder / index).exists():
            return _open_indexed(folder, require_inside(folder / index, folder))
    raise CheckpointError(f"{folder}: no weights found; expected one of {', '.join((*_SINGLES, *_INDICES))}.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that belongs to a checkpoint.

    Raises:
        ConfigError: no such file, no JSON, or no object.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there. Pass a checkpoint's folder, with its {path.name}.")
    require_small(require_inside(path, path.parent))
    try:
        found = json.loads(path.read_text(encoding="utf8"))
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
        files.append(require_inside(path, folder))
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
    require_small(index)
    reason = ""
    try:
        found = json.loads(index.read_text(encoding="utf8"), object_pairs_hook=unique)["weight_map"]
        sound = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        sound, reason = False, f" ({error})" if isinstance(error, ValueError) else ""
    if not sound:
        raise CheckpointError(
            f"{index}: expected an object with a 'weight_map' of file names{reason}. Download it again."
        )
    return dict(found)


def _safe_name(name: str, index: Path) -> str:
    if name != PurePosixPath(name).name or "\\" in name or "\0" in name or name in ("", ".", "..") or len(name) > 255:
        raise CheckpointError(
            f"{index}: names the file {name!r:.120}, which is not a plain file name beside the index."
        )
    return name


def tensors_of(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one .safetensors or torch zip file, by name, none of them read."""
    return read_header(path) if path.suffix == ".safetensors" else dict(read_torch_zip(path).infos)


def _open(path: Path) -> Any:
    """What reads single tensors of a file: a safetensors handle, or our own reader of torch zip files."""
    if path.suffix != ".safetensors":
        return read_torch_zip(path)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Download it again.") from None


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
    return name_shards(folder, shards, total)


def name_shards(folder: Path, shards: list[list[str]], total: int) -> dict[str, Any]:
    """Give the files ``shard-0``, ``shard-1``… of the named tensors transformers' names, with an index for several."""
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
