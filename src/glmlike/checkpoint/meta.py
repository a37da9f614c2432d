"""Meta's original LLaMA folders: which decoder ``params.json`` and ``consolidated.NN.pth`` are, and their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.formats import meta as table
from glmlike.checkpoint.given import by_name, label
from glmlike.checkpoint.headers import TORCH_NAMES
from glmlike.checkpoint.ranks import RankedCheckpoint, RankLayout, Shapes, SplitOf, numbered, open_ranks
from glmlike.checkpoint.shards import read_json
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import cannot_express, meta, read_spec
from glmlike.spec import DecoderSpec

ARGUMENTS = "params.json"
_FILE = re.compile(r"consolidated\.(\d{1,4})\.pth?")
_QUERY, _NORM = "layers.0.attention.wq.weight", "norm.weight"
_EARLY_VOCABULARIES = (32_000, 32_016)  # LLaMA 1 and 2, Code Llama: the embedding is cut by columns


def is_here(folder: Path) -> bool:
    """Whether a folder looks like this kind, whole or not."""
    return any(folder.glob("consolidated.*.pt*"))


def rank_files(folder: Path) -> tuple[Path, ...]:
    """The rank files, in order of their ranks.

    Raises:
        CheckpointError: two files of one rank, or a rank below the highest is missing.
    """
    matches = [(match, path) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))]
    ranks = {int(match[1]): path for match, path in matches}
    if not ranks or len(ranks) != len(matches):
        raise CheckpointError(f"{folder}: {len(matches)} files consolidated.NN.pth, expected one a rank.")
    return numbered(ranks, "consolidated.{:02d}.pth".format, folder)


def open_folder(
    folder: Path, given: str | DecoderSpec | None
) -> tuple[DecoderSpec, dict[str, Any], str, RankedCheckpoint]:
    """The decoder of a folder, its config, who says it, and its tensors, of which only the norms are read.

    Raises:
        ConfigError: params.json is absent and no spec is ``given``, or the two contradict each other or the files.
        CheckpointError: the rank files are damaged, incomplete, or of different checkpoints.
    """
    files = rank_files(folder)
    path = folder / ARGUMENTS
    if given is None and not path.exists():
        raise ConfigError(f"{path}: not there, and the files do not say the heads. Add it, or pass spec=.")
    params = read_json(path) if path.exists() else None
    heads = _key_value_heads(params, given)
    checkpoint = open_ranks(folder, files, None, lambda shapes, ranks: _splits(shapes, ranks, heads, folder))
    embedding = checkpoint.tensors.get(table.EMBEDDING)
    if embedding is None:
        raise CheckpointError(f"{folder}: no {table.EMBEDDING!r} in its files: not Meta's LLaMA, or incomplete.")
    tied = _is_tied(checkpoint)
    checkpoint.tensors.setdefault(table.HEAD, embedding)
    vocab = embedding.shape[0]
    config = {"vocab_size": vocab, "dtype": TORCH_NAMES[embedding.dtype]}
    said = None if params is None else _said(path, params, vocab, tied)
    spec, said_by = _settle(path, params, said, given)
    checkpoint.require_equal_replicas()
    return spec, {**config, **meta.token_ids(config)}, said_by, checkpoint


def layout(spec: DecoderSpec, ranks: int) -> RankLayout:
    """How ``ranks`` rank files are written.

    Raises:
        ConfigError: the embedding is cut by columns, which the ranks do not divide.
    """
    by_columns = spec.vocab_size in _EARLY_VOCABULARIES
    if by_columns and spec.hidden_size % ranks:
        raise ConfigError(f"tensor_parallel={ranks}: does not divide hidden_size={spec.hidden_size}.")
    splits = table.splits(ranks=ranks, key_value_heads=spec.num_key_value_heads, by_columns=by_columns)
    files = tuple(f"consolidated.{rank:02d}.pth" for rank in range(ranks))
    return RankLayout(files, None, replace(TABLES["meta"], splits=splits).split_of)


def arguments(config: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """What ``params.json`` says of ``config``: Meta's own fields, since its code takes no others."""
    return {name: config[name] for name in meta.ARGUMENTS if name in config}


def _key_value_heads(params: Mapping[str, Any] | None, given: str | DecoderSpec | None) -> int:
    """How many there are, to tell copies from pieces; 2^62 where nothing sensible is said, which has no copies."""
    if params is None:
        assert given is not None
        return by_name(given).num_key_value_heads
    said = params.get("n_kv_heads") or params.get("n_heads")
    return said if type(said) is int and said > 0 else 2**62


def _splits(shapes: Shapes, ranks: int, heads: int, folder: Path) -> SplitOf:
    """How the tensors are cut: the width of an embedding's piece is that of the norm, or its part of it."""
    for name, dimensions in ((_NORM, 1), (table.EMBEDDING, 2), (_QUERY, 2)):
        if len(shapes.get(name, ())) != dimensions:
            raise CheckpointError(
                f"{folder}: no {name!r} of {dimensions} dimensions in its files: not Meta's LLaMA, or incomplete."
            )
    (hidden,), columns, rows = shapes[_NORM], shapes[table.EMBEDDING][1], shapes[_QUERY][0]
    if rows * ranks != hidden or columns not in (hidden, hidden / ranks):
        raise CheckpointError(
            f"{folder}: {ranks} rank files hold {rows * ranks} of the {hidden} rows of q, and {columns} columns of the "
            "embedding in each: they were cut for another number of ranks. Download every consolidated.NN.pth."
        )
    splits = table.splits(ranks=ranks, key_value_heads=heads, by_columns=columns != hidden)
    return replace(TABLES["meta"], splits=splits).split_of


def _is_tied(checkpoint: RankedCheckpoint) -> bool:
    """Whether the head is the embedding: absent, the same bytes of the file, or of the same CRC-32, in every rank.

    What a CRC-32 says is checked when the two are read.
    """
    for rank in checkpoint.ranks.values():
        embedding, head = rank.infos[table.EMBEDDING], rank.infos.get(table.HEAD)
        if head is None:
            continue
        if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
            return False
        same_bytes = head.span is not None and head.span == embedding.span
        if not same_bytes and (head.crc32 is None or head.crc32 != embedding.crc32):
            return False
    return True


def _said(path: Path, params: dict[str, Any], vocab: int, tied: bool) -> DecoderSpec:
    if not meta.is_meta(params):
        raise ConfigError(f"{path}: no 'dim', 'n_layers' and 'n_heads': not the params.json of Meta's LLaMA.")
    size = vocab if params.get("vocab_size", -1) == -1 else params["vocab_size"]
    return read_spec({**params, "vocab_size": size, "tie_word_embeddings": tied}, str(path))


def _settle(
    path: Path, params: dict[str, Any] | None, said: DecoderSpec | None, given: str | DecoderSpec | None
) -> tuple[DecoderSpec, str]:
    """The decoder, and who says it; a spec that is passed says what params.json has no field for."""
    if given is None:
        assert said is not None
        return said, ARGUMENTS
    spec = by_name(given)
    obstacles = cannot_express(spec, "meta")
    if obstacles:
        raise CannotExpressError(f"spec=: {path.parent} holds a LLaMA of Meta's, not {', '.join(obstacles)}.")
    unsaid = {"max_position_embeddings": "max_seq_len", "rope_scaling": "rope_scaling_factor"}
    differences = {
        name: pair
        for name, pair in (said.differences(spec) if said and params is not None else {}).items()
        if unsaid.get(name, name) in (params or {}) or name not in unsaid
    }
    if not spec.tie_word_embeddings:  # a head of its own may happen to equal the embedding
        differences.pop("tie_word_embeddings", None)
    if differences:
        raise ConfigError(
            f"{path} and {label(given)} contradict each other: {differences}. Correct one, or leave spec= out."
        )
    return spec, label(given)
