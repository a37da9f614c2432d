"""Folders that hold a P-tuning prefix: read and checked against a decoder, and written, whole or not at all.

The original scripts save such folders with nothing else in them (``transformer.prefix_encoder.*``, often without even a
config.json); ours have native names and the config.json of the whole decoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.native import PREFIX_ENCODER, prefix_shapes
from glmlike.checkpoint.shards import open_checkpoint, read_json, whole_folder, write_shards
from glmlike.errors import CheckpointError
from glmlike.hub_json import write_config
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding.weight"
_PREFIX = re.compile(r"(?:transformer\.|model\.)?prefix_encoder\.(.+)")


def read_prefix(folder: Path) -> dict[str, Tensor]:
    """The prefix tensors of a folder, by what follows ``prefix_encoder.``, checked against its own config.json.

    Raises:
        CheckpointError: no prefix, or part of one, or config.json says another.
    """
    checkpoint = open_checkpoint(folder)
    names = {match[1]: name for name in checkpoint.tensors if (match := _PREFIX.fullmatch(name))}
    projected = {f"trans.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    if names.keys() not in ({EMBEDDING}, {EMBEDDING} | projected):
        raise CheckpointError(
            f"{folder}: expected prefix_encoder.{EMBEDDING}, alone or with all of prefix_encoder.trans.0 and .2 "
            f"(weight and bias); found {', '.join(sorted(names)) or 'no prefix_encoder tensor'}. Pass the folder that "
            "the P-tuning run saved."
        )
    tensors = {name: checkpoint.read(full) for name, full in names.items()}
    if (folder / "config.json").exists():
        _agree_with_config(tensors, read_json(folder / "config.json"), folder)
    return tensors


def _agree_with_config(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path) -> None:
    said = config.get("pre_seq_len") or config.get("prefix_length")
    rows, projection = tensors[EMBEDDING].shape[0], len(tensors) > 1
    if said and said != rows:
        raise CheckpointError(
            f"{folder}: config.json has pre_seq_len={said}, but prefix_encoder.{EMBEDDING} has {rows} rows. Correct "
            "config.json, or use the one that was saved with these tensors."
        )
    if said and bool(config.get("prefix_projection")) != projection:
        raise CheckpointError(
            f"{folder}: config.json has prefix_projection={str(not projection).lower()}, but the files hold "
            f"{'also' if projection else 'no'} prefix_encoder.trans tensors. Correct config.json."
        )


def fit(tensors: dict[str, Tensor], spec: DecoderSpec, where: str) -> DecoderSpec:
    """``spec`` with the prefix that the tensors are.

    Raises:
        CheckpointError: the prefix is one of another decoder; the message names both shapes.
        SpecError: decoders of this kind have no prefixes.
    """
    spec = spec.replace(prefix_length=tensors[EMBEDDING].shape[0], prefix_projection=len(tensors) > 1)
    for name, shape in prefix_shapes(spec).items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{where}: prefix_encoder.{name} has shape {list(tensors[name].shape)}, but this decoder asks for "
                f"{list(shape)} ({width(spec)}). The prefix was trained with another base model; use that."
            )
    return spec


def width(spec: DecoderSpec) -> str:
    """How many numbers a prefix token has, and why, as words for an error."""
    layers, heads, size = spec.num_hidden_layers, spec.num_key_value_heads, spec.head_dim
    return f"2 x {layers} layers x {heads} key-value heads x {size} = {spec.prefix_size} numbers a prefix token"


def write_prefix(
    folder: Path, source: Path | None, spec: DecoderSpec, carried: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a folder of nothing but a prefix: tensors in native names, config.json of the whole decoder.

    ``carried`` are the config's fields that are not the decoder's shape; ``source`` is a folder that must not be hit.
    """
    config = {**carried, **write_config(spec, "glmlike")}
    named: Iterator[tuple[str, Tensor]] = ((PREFIX_ENCODER + name, tensor) for name, tensor in tensors.items())
    with whole_folder(folder, source) as partial:
        write_shards(partial, named, sum(tensor.nbytes for tensor in tensors.values()) + 1)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
