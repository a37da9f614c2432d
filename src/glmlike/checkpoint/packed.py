"""Folders that GPTQ, AWQ or compressed-tensors quantized, read as the floats that their integers stand for.

What config.json says is checked first (:mod:`~glmlike.checkpoint.packed_configs`), then which matrices are packed, by
the tensors that are there, and the shape of each of those, before one is read. From then on the folder is one of
floats: :class:`PackedCheckpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from glmlike.checkpoint.headers import TensorInfo
from glmlike.checkpoint.packed_configs import FLOATS, NAMES, Method, PackedConfig, Scheme
from glmlike.checkpoint.packed_streams import PackedFloats
from glmlike.checkpoint.shards import Checkpoint
from glmlike.checkpoint.streams import Stream, dtype_name, read_all
from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Parts:
    """The last parts of the names of what stands beside packed numbers; ``unread`` stands there and is not needed."""

    scale: str
    zero: str
    index: str | None = None
    factor: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        return tuple(part for part in (self.scale, self.zero, self.index, self.factor) if part is not None)


_PARTS: dict[Method, _Parts] = {
    "gptq": _Parts("scales", "qzeros", "g_idx"),
    "awq": _Parts("scales", "qzeros"),
    "compressed-tensors": _Parts(
        *("weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale"),
        (
            "weight_shape",
            *("input_scale", "input_zero_point", "input_global_scale", "input_g_idx"),
            *("output_scale", "output_zero_point", "output_global_scale"),
        ),
    ),
}
_CACHE_SCALES = tuple(f".{which}_{what}" for which in "kvq" for what in ("scale", "zero_point", "global_scale"))
_MOST_ROWS = 2**20


@dataclass
class PackedCheckpoint(Checkpoint):
    """The tensors of a folder with packed matrices, each under the name of its floats, and read as those.

    ``inner`` has the tensors of the files, ``matrices`` the streams of those that are packed. ``empty_biases`` counts
    the biases of zeros beside them that the decoder has no place for: old AutoGPTQ wrote one for every matrix.
    ``cache_scales`` counts the scales that llm-compressor writes for keys and values.
    """

    inner: Checkpoint = field(kw_only=True)
    config: PackedConfig = field(kw_only=True)
    matrices: dict[str, PackedFloats] = field(kw_only=True, repr=False)
    empty_biases: int = field(kw_only=True, default=0)
    cache_scales: int = field(kw_only=True, default=0)

    def read(self, name: str) -> Tensor:
        return read_all(self.matrices[name]) if name in self.matrices else self.inner.read(name)

    def stream(self, name: str) -> Stream:
        return self.matrices[name] if name in self.matrices else self.inner.stream(name)

    def stored(self, path: Path, name: str) -> Stream:
        return self.inner.stored(path, name)

    def parts(self, name: str) -> list[tuple[Path, str]]:
        if name not in self.matrices:
            return self.inner.parts(name)
        base, parts = name.removesuffix("weight"), _PARTS[self.config.method]
        packed = dict.fromkeys(scheme.packed for scheme in self.config.schemes)
        names = (base + part for part in (*packed, *parts.read, *parts.unread))
        return [part for stored in names if stored in self.inner.tensors for part in self.inner.parts(stored)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the files is not carried over bit for bit."""
        dtypes = sorted({stream.dtype for stream in self.matrices.values()})
        read = f"read as (integer - zero) x scale in {', '.join(dtypes)}"
        found = [f"{len(self.matrices)} matrices of packed integers ({self.config}), {read}"]
        if self.config.activations:
            found.append(f"{NAMES[self.config.method]} also rounds what goes into these matrices: that is left out")
        if self.empty_biases:
            found.append(f"{self.empty_biases} biases of zeros, of matrices that have none, are left out")
        if self.cache_scales:
            found.append(f"{self.cache_scales} scales for a cache of 8 bits are left out")
        return tuple(found)


def unpacked(checkpoint: Checkpoint, config: PackedConfig, shapes: Mapping[str, Shape], dtype: str) -> Checkpoint:
    """``checkpoint`` as one of floats in ``dtype`` (torch's name); as it is, if it holds no packed matrix.

    ``shapes`` are those of the floats.

    Raises:
        CheckpointError: integers without scales or zeros, of another width or of other groups than config.json says,
            or a bias, of a matrix that has none, that is not of zeros.
    """
    names = [name for name, shape in shapes.items() if len(shape) == 2 and _is_packed(checkpoint, config, name)]
    if not names:
        return checkpoint
    matrices = {name: _matrix(checkpoint, config, name, shapes[name], dtype_name(dtype)) for name in names}
    bases, parts = [name.removesuffix("weight") for name in names], _PARTS[config.method]
    first = {base: base + _candidates(checkpoint, config, base)[0].packed for base in bases}
    used = {*first.values(), *(base + part for base in bases for part in (*parts.read, *parts.unread))}
    biases = {base + "bias" for base in bases} & (checkpoint.tensors.keys() - shapes.keys())
    for name in sorted(biases):
        _require_zeros(checkpoint, name)
    cache = {name for name in checkpoint.tensors.keys() - shapes.keys() if name.endswith(_CACHE_SCALES)}
    left_out = used | biases | (cache if config.method == "compressed-tensors" else set())
    tensors = {name: info for name, info in checkpoint.tensors.items() if name not in left_out}
    for name, stream in matrices.items():
        stored = checkpoint.tensors[first[name.removesuffix("weight")]]
        tensors[name] = TensorInfo(name, stream.dtype, stream.shape, stored.file, stored.start, stored.start)
    return PackedCheckpoint(
        checkpoint.folder,
        checkpoint.files,
        tensors,
        inner=checkpoint,
        config=config,
        matrices=matrices,
        empty_biases=len(biases),
        cache_scales=len(cache),
    )


def first_packed(names: Iterable[str]) -> str | None:
    """The first name that is one of packed integers by any of the methods."""
    return min((name for name in names if name.endswith((".qweight", ".weight_packed"))), default=None)


def _is_packed(checkpoint: Checkpoint, config: PackedConfig, name: str) -> bool:
    return name.endswith(".weight") and bool(_candidates(checkpoint, config, name.removesuffix("weight")))


def _candidates(checkpoint: Checkpoint, config: PackedConfig, base: str) -> list[Scheme]:
    """The schemes whose numbers stand under the names that begin with ``base``."""
    found = []
    for scheme in config.schemes:
        info = checkpoint.tensors.get(base + scheme.packed)
        if info is not None and (scheme.packing != "plain" or dtype_name(info.dtype) in scheme.kinds):
            found.append(scheme)
    return found


def _matrix(checkpoint: Checkpoint, config: PackedConfig, name: str, shape: Shape, dtype: str) -> PackedFloats:
    base, parts = name.removesuffix("weight"), _PARTS[config.method]
    schemes = _candidates(checkpoint, config, base)
    for part in (parts.scale, *sorted(frozenset.intersection(*(scheme.beside for scheme in schemes)))):
        if base + part not in checkpoint.tensors:
            raise CheckpointError(
                f"{checkpoint.folder}: no file holds {base + part!r}, but there is {base + schemes[0].packed!r}. The "
                "download is incomplete; compare it with the original repository."
            )
    found = {part: checkpoint.tensors[base + part] for part in parts.read if base + part in checkpoint.tensors}
    found = {schemes[0].packed: checkpoint.tensors[base + schemes[0].packed], **found}
    scheme = _fitting(config, schemes, shape, found, name)
    streams = {part: checkpoint.stream(base + part) for part in found}
    return PackedFloats(
        packing=scheme.packing,
        bits=scheme.bits,
        size=_columns(scheme, shape),
        rows=shape[0] if scheme.rows is None else scheme.rows,
        shape=shape,
        dtype=dtype,
        weight=streams[scheme.packed],
        scale=streams[parts.scale],
        zero=streams.get(parts.zero),
        index=streams.get(parts.index or ""),
        factor=streams.get(parts.factor or ""),
    )


def _fitting(
    config: PackedConfig, schemes: list[Scheme], shape: Shape, found: Mapping[str, TensorInfo], name: str
) -> Scheme:
    """The first of the schemes that fits the tensors of a matrix.

    Raises:
        CheckpointError: there is none; the message has the shapes that are there and those of the first that would be.
    """
    there = {part: (dtype_name(info.dtype), info.shape) for part, info in found.items()}
    for scheme in schemes:
        expected = _stored_shapes(scheme, shape)
        if scheme.beside <= there.keys() and all(_fits(there[part], expected.get(part)) for part in there):
            return scheme
    shown = {part: f"{dtype} {list(found_shape)}" for part, (dtype, found_shape) in there.items()}
    first = _stored_shapes(schemes[0], shape)
    wanted = {part: f"{' or '.join(first[part][0])} {list(first[part][1][0])}" for part in there if part in first}
    raise CheckpointError(
        f"{next(iter(found.values())).file}: the tensors of {name!r}, {list(shape)}, are {shown}, but {config} makes "
        f"them {wanted}. config.json is of another checkpoint; use the one that belongs to the weights."
    )


_Expected = tuple[tuple[str, ...], tuple[Shape, ...]]
"""The dtypes and the shapes that a tensor may have."""


def _fits(found: tuple[str, Shape], expected: _Expected | None) -> bool:
    return expected is not None and found[0] in expected[0] and found[1] in expected[1]


def _columns(scheme: Scheme, shape: Shape) -> int:
    return shape[1] if scheme.columns is None else min(scheme.columns, shape[1])


def _stored_shapes(scheme: Scheme, shape: Shape) -> dict[str, _Expected]:
    """The dtypes and the shape of each tensor of a matrix of ``shape``; see :data:`Packing`."""
    rows, columns = shape
    groups = -(-columns // _columns(scheme, shape))
    words, row_words = -(-columns * scheme.bits // 32), -(-rows * scheme.bits // 32)
    word, index = ("I32",), ("I32", "I64")
    if scheme.packed != "qweight":
        weight = {"plain": shape, "compressed": (rows, words), "fp4": (rows, columns // 2)}[scheme.packing]
        tall = (-(-rows // scheme.rows), groups) if scheme.rows else ()
        scales: tuple[Shape, ...] = (tall,) if scheme.rows else ((1,), (), (1, 1))
        zeros: _Expected = (word, ((row_words, groups),)) if scheme.packing == "compressed" else (scheme.kinds, scales)
        return {
            scheme.packed: (scheme.kinds, (weight,)),
            "weight_scale": (scheme.scales, scales),
            "weight_zero_point": zeros,
            "weight_g_idx": (index, ((columns,),)),
            "weight_global_scale": (FLOATS, ((1,), ())),
        }
    return {
        "qweight": (word, ((columns, row_words) if scheme.packing == "awq" else (words, rows),)),
        "scales": (FLOATS, ((groups, rows),)),
        "qzeros": (word, ((groups, row_words),)),
        "g_idx": (index, ((columns,),)),
    }


def _require_zeros(checkpoint: Checkpoint, name: str) -> None:
    info = checkpoint.tensors[name]
    if len(info.shape) != 1 or info.shape[0] > _MOST_ROWS or bool(read_all(checkpoint.stream(name)).count_nonzero()):
        raise CheckpointError(
            f"{info.file}: {name!r} is a bias of a matrix that has none by config.json, and not of zeros. config.json "
            "is of another model; use the one that belongs to the weights."
        )
