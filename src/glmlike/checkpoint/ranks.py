"""Reading and writing tensor-parallel folders: ``latest``, ``<iteration>/mp_rank_XX_model_states.pt``.

Each rank file is a torch zip file with the weights under "module" (DeepSpeed's layout, which SwissArmyTransformer and
Megatron write). Files are mapped, so a tensor is read when it is asked for; the ranks' pieces are joined then.
Nothing here knows what a tensor means: how its pieces join is a :class:`~glmlike.checkpoint.splits.Split` by its name.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.headers import TensorInfo, refuse_lfs_pointer
from glmlike.checkpoint.layouts import Shape
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.shards import Checkpoint
from glmlike.checkpoint.splits import Replicated, Split
from glmlike.checkpoint.streams import Dequantized, Loaded, Stream, dtype_name
from glmlike.errors import CheckpointError
from glmlike.integers import dequantize

if TYPE_CHECKING:
    from torch import Tensor

SplitOf = Callable[[str], Split | None]

_LATEST = "latest"
_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_KEPT_MAPPED = 2**29  # bytes read before the files are mapped anew: pages that were read count as memory until then


def is_ranked(folder: Path) -> bool:
    """Whether a folder looks like this kind, whole or not."""
    return (folder / _LATEST).exists() or any(any(folder.glob(f"{depth}mp_rank_*.pt")) for depth in ("", "*/"))


def rank_files(folder: Path) -> tuple[Path, ...]:
    """The rank files that ``latest`` points to, in order of their ranks.

    Raises:
        CheckpointError: ``latest`` is absent, or names no folder here, or a rank below the highest is missing.
    """
    iteration = folder / _iteration(folder)
    if not iteration.is_dir():
        raise CheckpointError(f"{folder / _LATEST}: points to {iteration.name!r}, which is not a folder beside it.")
    matches = [(match, path) for path in iteration.iterdir() if (match := _RANK_FILE.fullmatch(path.name))]
    ranks = {int(match[1]): path for match, path in matches}
    if not ranks or len(ranks) != len(matches):
        raise CheckpointError(f"{iteration}: {len(matches)} files mp_rank_XX_model_states.pt, expected one a rank.")
    missing = sorted(set(range(max(ranks) + 1)) - ranks.keys())
    if missing:
        raise CheckpointError(
            f"{iteration}: mp_rank_{missing[0]:02d}_model_states.pt is missing, though rank {max(ranks)} is there. "
            "Every rank holds a part of each matrix; download all."
        )
    return tuple(ranks[rank] for rank in sorted(ranks))


def _iteration(folder: Path) -> str:
    path = folder / _LATEST
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not there, though rank files are. Pass the folder above the one with the rank files, and let "
            f"its file {_LATEST!r} hold that folder's name."
        )
    refuse_lfs_pointer(path)
    name = path.read_bytes()[:256].decode("utf8", "replace").strip()
    if name != PurePosixPath(name).name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{path}: holds {name!r}, expected the plain name of a folder beside it, such as 49300.")
    return name


@dataclass
class RankedCheckpoint(Checkpoint):
    """The tensors of a tensor-parallel folder, joined and in floating point when they are read.

    ``tensors`` has their joined shapes; ``split_of`` how the pieces of each join (None: only rank 0's is of interest).
    ``bits`` is 4 or 8 where the files hold integers: each rank's rows have scales of their own, so each rank's piece
    is dequantized before they are joined.
    """

    split_of: SplitOf = field(default=lambda name: None, repr=False)
    bits: int | None = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def read(self, name: str) -> Tensor:
        """One whole tensor; see the class.

        Raises:
            CheckpointError: no file holds the name, or the ranks disagree on a tensor that each holds whole.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        split = self.split_of(name)
        paths = self.files if split is not None else self.files[:1]
        pieces = [self._piece(path, name) for path in paths]
        try:
            return pieces[0] if split is None else split.join(pieces)
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder}: {name!r}: {error}. Download the rank files again.") from None

    def stream(self, name: str) -> Stream:
        """The bytes of one whole tensor, joined from the ranks' pieces row by row; integers are dequantized first."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        split, info = self.split_of(name), self.tensors[name]
        paths = self.files if split is not None else self.files[:1]
        pieces = [self._piece_stream(path, name) for path in paths]
        if split is None:
            return pieces[0]
        joined = split.join_streams(pieces)
        if joined.shape != info.shape:
            raise CheckpointError(f"{self.folder}: {name!r}: pieces of {joined.shape}, expected {info.shape}.")
        return joined

    def _piece_stream(self, path: Path, name: str) -> Stream:
        module = self._module(path, 0)
        stored, scale = module[name], module.get(name + SCALE)
        piece = self._stored(path, name, stored)
        if scale is None:
            return piece
        scales = self._stored(path, name + SCALE, scale)
        return Dequantized(piece, scales, self.bits or 8, scales.dtype)

    def _stored(self, path: Path, name: str, tensor: Tensor) -> Stream:
        dtype = dtype_name(str(tensor.dtype).removeprefix("torch."))
        size = tensor.nbytes

        def load() -> Tensor:
            return self._module(path, size)[name]

        return Loaded(load, dtype, tuple(tensor.shape))

    def _module(self, path: Path, size: int) -> dict[str, Tensor]:
        """The tensors of one rank's file, of which ``size`` bytes will be read."""
        with self._lock:
            if self._mapped > _KEPT_MAPPED:
                self._handles.clear()
                self._mapped = 0
            if path not in self._handles:
                self._handles[path] = load_rank(path)
            self._mapped += size
            module: dict[str, Tensor] = self._handles[path]
            return module

    def _piece(self, path: Path, name: str) -> Tensor:
        module = self._module(path, 0)
        piece = module[name]
        self._mapped += piece.nbytes
        if name + SCALE not in module:
            return piece
        scale = module[name + SCALE]
        return dequantize(piece, scale, self.bits or 8, scale.dtype)

    def require_equal_replicas(self) -> None:
        """Raise CheckpointError if a tensor that every rank holds whole differs between ranks; these are small."""
        for name in self.tensors:
            if isinstance(self.split_of(name), Replicated):
                self.read(name)


def open_ranks(
    folder: Path, split_of: SplitOf, bits_of: Callable[[Mapping[str, Shape]], int | None]
) -> RankedCheckpoint:
    """The checkpoint of a folder: every rank file opened and compared with the first, no tensor read.

    ``bits_of`` says from the shapes of one rank's tensors how its integers are packed (None: it has none).

    Raises:
        CheckpointError: a file is missing, damaged or not a rank's, or two ranks do not hold pieces of one shape.
    """
    files = rank_files(folder)
    modules = {path: load_rank(path) for path in files}
    first, *others = files
    for other in others:
        _require_alike(modules[first], modules[other], first, other)
    bits = bits_of({name: tuple(tensor.shape) for name, tensor in modules[first].items()})
    tensors = dict(_infos(modules[first], first, split_of, bits, len(files)))
    return RankedCheckpoint(folder, files, tensors, dict(modules), split_of=split_of, bits=bits)


def load_rank(path: Path) -> dict[str, Tensor]:
    """The weights of one rank file, mapped; no code in it is run.

    Raises:
        CheckpointError: a Git LFS pointer, not a torch zip file of plain tensors, or without "module".
    """
    import torch

    refuse_lfs_pointer(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise CheckpointError(
                f"{path}: not a zip file, as torch.save writes since version 1.6: damaged, or of an older torch. "
                "Download it again, or save it anew."
            )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: damaged, or not plain tensors ({first_line}); nothing in it was executed. Download it again."
        ) from None
    module = found.get("module") if isinstance(found, dict) else None
    if not isinstance(module, dict) or not all(isinstance(value, torch.Tensor) for value in module.values()):
        what = f"a dict of {sorted(map(str, found))[:4]}" if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(f"{path}: holds {what}, expected a dict with the tensors of one rank under 'module'.")
    return module


def _require_alike(first: Mapping[str, Tensor], other: Mapping[str, Tensor], path: Path, other_path: Path) -> None:
    unlike = sorted(first.keys() ^ other.keys())
    if unlike:
        lacking = other_path if unlike[0] in first else path
        raise CheckpointError(f"{lacking}: lacks {unlike[0]!r}, which another rank has. Download the rank files again.")
    for name, tensor in first.items():
        mine, theirs = ((str(found.dtype), list(found.shape)) for found in (tensor, other[name]))
        if mine != theirs:
            raise CheckpointError(
                f"{other_path}: {name!r} is {theirs[0]} {theirs[1]}, but {mine[0]} {mine[1]} in {path.name}: ranks of "
                "different tensor-parallel degrees or models. Use the files of one checkpoint."
            )


def _infos(
    module: Mapping[str, Tensor], path: Path, split_of: SplitOf, bits: int | None, ranks: int
) -> Iterator[tuple[str, TensorInfo]]:
    for name, tensor in module.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in module:
            continue
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if name + SCALE in module:
            _require_rows_of_integers(name, module, path)
            dtype, shape = f"int{bits}", (shape[0], shape[1] * 8 // (bits or 8))
        elif dtype not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name!r} is {dtype} without {name + SCALE!r}; expected floating point, or int8 and "
                "its scales."
            )
        try:
            split = split_of(name)
            whole = split.whole_shape(shape, ranks) if split is not None else shape
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {name!r}: {error}.") from None
        yield name, TensorInfo(name, dtype, whole, path)


def _require_rows_of_integers(name: str, module: Mapping[str, Tensor], path: Path) -> None:
    weight, scale = module[name], module[name + SCALE]
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in (weight, scale)]
    if weight.ndim != 2 or scale.shape != weight.shape[:1] or dtypes[0] != "int8" or dtypes[1] not in _FLOATS:
        raise CheckpointError(
            f"{path}: {name!r} is {dtypes[0]} {list(weight.shape)} with scales {dtypes[1]} {list(scale.shape)}; "
            "expected int8 rows and one floating-point scale for each."
        )
