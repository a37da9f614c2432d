"""Reading the files of tensor-parallel ranks: torch zip files, each with a piece of every tensor.

A piece is read when it is asked for; the ranks' pieces are joined then. Nothing here knows what a tensor means, or how
the files are named: how the pieces of a tensor join is a :class:`~glmlike.checkpoint.splits.Split` by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from glmlike.checkpoint.headers import TensorInfo
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.layouts import Shape
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.shards import Checkpoint
from glmlike.checkpoint.splits import Cut, Replicated, Split
from glmlike.checkpoint.streams import Dequantized, Stream, first_difference
from glmlike.checkpoint.torch_zip import TorchZip, read_torch_zip
from glmlike.errors import CheckpointError
from glmlike.integers import dequantize

if TYPE_CHECKING:
    from torch import Tensor

SplitOf = Callable[[str], Split | None]
Shapes = Mapping[str, Shape]

_FLOATS = ("F16", "BF16", "F32", "F64")
_SMALL = 2**20


@dataclass(frozen=True)
class RankLayout:
    """How a folder of rank files is written: ``files`` in order of their ranks, and how each tensor is cut over them.

    ``under`` is the key of the tensors in each file (None: they are the file's dict); ``texts`` are small files beside
    them, by name.
    """

    files: tuple[str, ...]
    under: str | None
    split_of: SplitOf
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class RankedCheckpoint(Checkpoint):
    """The tensors of a tensor-parallel folder, joined and in floating point when they are read.

    ``tensors`` has their joined shapes; ``split_of`` how the pieces of each join (None: only rank 0's is of interest).
    ``bits`` is 4 or 8 where the files hold integers: each rank's rows have scales of their own, so each rank's piece
    is dequantized before they are joined.
    """

    ranks: dict[Path, TorchZip] = field(default_factory=dict, repr=False)
    split_of: SplitOf = field(default=lambda name: None, repr=False)
    bits: int | None = None

    def read(self, name: str) -> Tensor:
        """One whole tensor; see the class.

        Raises:
            CheckpointError: no file holds the name, or the ranks disagree on a tensor that each holds whole.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        stored = self.tensors[name].name
        split = self.split_of(stored)
        pieces = [self._piece(self.ranks[path], stored) for path in self._holders(stored)]
        try:
            return pieces[0] if split is None else split.join(pieces)
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder}: {name!r}: {error}. Download the rank files again.") from None

    def _piece(self, rank: TorchZip, name: str) -> Tensor:
        piece = rank.get_tensor(name)
        if name + SCALE not in rank.infos:
            return piece
        scale = rank.get_tensor(name + SCALE)
        return dequantize(piece, scale, self.bits or 8, scale.dtype)

    def stream(self, name: str) -> Stream:
        """The bytes of one whole tensor, joined from the ranks' pieces row by row; integers are dequantized first."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.folder}: no file holds {name!r}.")
        info = self.tensors[name]
        split, pieces = self.split_of(info.name), self._pieces(name)
        if split is None:
            return pieces[0]
        joined = split.join_streams(pieces)
        if joined.shape != info.shape:
            raise CheckpointError(f"{self.folder}: {name!r}: pieces of {joined.shape}, expected {info.shape}.")
        return joined

    def stored(self, path: Path, name: str) -> Stream:
        return self.ranks[path].stream(name)

    def parts(self, name: str) -> list[tuple[Path, str]]:
        stored = self.tensors[name].name
        scaled = stored + SCALE in self.ranks[self.files[0]].infos
        names = (stored, stored + SCALE) if scaled else (stored,)
        return [(path, part) for path in self._holders(stored) for part in names]

    def _holders(self, stored: str) -> Sequence[Path]:
        """The files a tensor is read from: all that hold a piece of it, or the first where each holds it whole."""
        return self.files if self.split_of(stored) is not None else self.files[:1]

    def _pieces(self, name: str) -> list[Stream]:
        stored = self.tensors[name].name
        return [self._piece_stream(self.ranks[path], stored) for path in self._holders(stored)]

    def _piece_stream(self, rank: TorchZip, name: str) -> Stream:
        piece = rank.stream(name)
        if name + SCALE not in rank.infos:
            return piece
        scale = rank.stream(name + SCALE)
        return Dequantized(piece, scale, self.bits or 8, scale.dtype)

    def require_equal_copies(self, at_most: int) -> None:
        """Pieces that several ranks hold are the same to the bit; ``at_most`` bytes of two are in memory at a time.

        Raises:
            CheckpointError: two differ.
        """
        for name, info in self.tensors.items():
            split = self.split_of(info.name)
            if isinstance(split, Cut) and split.copies > 1:
                self._require_equal(name, split.copies, at_most)

    def require_equal_replicas(self) -> None:
        """Raise CheckpointError if a tensor that every rank holds whole differs between ranks; these are small."""
        for name, info in self.tensors.items():
            if isinstance(self.split_of(info.name), Replicated):
                self._require_equal(name, len(self.files), _SMALL)

    def _require_equal(self, name: str, copies: int, at_most: int) -> None:
        pieces = self._pieces(name)
        for first in range(0, len(pieces), copies):
            if first_difference(pieces[first : first + copies], at_most) is not None:
                raise CheckpointError(
                    f"{self.folder}: {name!r}: the {copies} ranks hold different copies. Download the rank files again."
                )


def open_ranks(
    folder: Path,
    files: Sequence[Path],
    under: str | None,
    splits_of: Callable[[Shapes, int], SplitOf],
    bits_of: Callable[[Shapes], int | None] = lambda shapes: None,
) -> RankedCheckpoint:
    """The checkpoint of rank files: every file opened and compared with the first, no tensor read.

    ``under`` is the key that each file's tensors are under (None: they are the file's dict). ``splits_of`` says from
    the shapes of one rank's tensors and the number of ranks how each is cut; ``bits_of`` from the shapes how its
    integers are packed (None: it has none).

    Raises:
        CheckpointError: a file is missing, damaged or not a rank's, or two ranks do not hold pieces of one shape.
    """
    ranks = {path: read_torch_zip(require_inside(path, folder), under) for path in files}
    first, *others = files
    for other in others:
        _require_alike(ranks[first].infos, ranks[other].infos, first, other)
    shapes = {name: info.shape for name, info in ranks[first].infos.items()}
    bits, split_of = bits_of(shapes), splits_of(shapes, len(files))
    tensors = dict(_infos(ranks[first].infos, first, split_of, bits, len(files)))
    return RankedCheckpoint(folder, tuple(files), tensors, ranks=ranks, split_of=split_of, bits=bits)


def numbered(files: Mapping[int, Path], name: Callable[[int], str], where: Path) -> tuple[Path, ...]:
    """The rank files in order of their numbers.

    Raises:
        CheckpointError: a number below the highest is missing.
    """
    missing = sorted(set(range(max(files) + 1)) - files.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {name(missing[0])} is missing, though rank {max(files)} is there. Every rank holds a part of "
            "each matrix; download all."
        )
    return tuple(files[rank] for rank in sorted(files))


def _require_alike(
    first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], path: Path, other_path: Path
) -> None:
    unlike = sorted(first.keys() ^ other.keys())
    if unlike:
        lacking = other_path if unlike[0] in first else path
        raise CheckpointError(f"{lacking}: lacks {unlike[0]!r}, which another rank has. Download the rank files again.")
    for name, mine in first.items():
        theirs = other[name]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            raise CheckpointError(
                f"{other_path}: {name!r} is {theirs.dtype} {list(theirs.shape)}, but {mine.dtype} {list(mine.shape)} "
                f"in {path.name}: ranks of different tensor-parallel degrees or models. Use those of one checkpoint."
            )


def _infos(
    rank: Mapping[str, TensorInfo], path: Path, split_of: SplitOf, bits: int | None, ranks: int
) -> Iterator[tuple[str, TensorInfo]]:
    """Each whole tensor; where it is one stretch of the first file, as a copy or as the only piece, with its span."""
    for name, info in rank.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in rank:
            continue
        dtype, shape = info.dtype, info.shape
        if name + SCALE in rank:
            _require_rows_of_integers(info, rank[name + SCALE], path)
            dtype, shape = f"I{bits}", (shape[0], shape[1] * 8 // (bits or 8))
        elif dtype not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name!r} is {dtype} without {name + SCALE!r}; expected floating point, or I8 and its scales."
            )
        try:
            split = split_of(name)
            whole = split.whole_shape(shape, ranks) if split is not None else shape
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {name!r}: {error}.") from None
        here = (whole, dtype) == (info.shape, info.dtype) and name + SCALE not in rank
        yield name, info if here else TensorInfo(name, dtype, whole, path)


def _require_rows_of_integers(weight: TensorInfo, scale: TensorInfo, path: Path) -> None:
    is_rows = len(weight.shape) == 2 and scale.shape == weight.shape[:1]
    if not is_rows or weight.dtype != "I8" or scale.dtype not in _FLOATS:
        raise CheckpointError(
            f"{path}: {weight.name!r} is {weight.dtype} {list(weight.shape)} with scales {scale.dtype} "
            f"{list(scale.shape)}; expected I8 rows and one floating-point scale for each."
        )
