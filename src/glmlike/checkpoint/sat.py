"""GLM-130B's SwissArmyTransformer folders: which decoder the rank files are, and their tensors.

``latest`` names a folder of ``mp_rank_XX_model_states.pt`` files with the weights under "module" (DeepSpeed's layout,
which SwissArmyTransformer and Megatron write). There is no config.json: ``model_config.json`` says the decoder, or a
spec that is passed, or the shapes of its tensors do; each is checked against the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.given import by_name, label
from glmlike.checkpoint.headers import TORCH_NAMES, refuse_lfs_pointer
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.ranks import RankedCheckpoint, RankLayout, numbered, open_ranks
from glmlike.checkpoint.shards import read_json
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import cannot_express, read_spec, sat
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec

_LATEST = "latest"
_RANK_FILE = re.compile(r"mp_rank_(\d{1,4})_model_states\.pt")
ARGUMENTS = "model_config.json"
_EMBEDDING, _NORM = "transformer.word_embeddings.weight", "transformer.final_layernorm.weight"
_FIRST = "transformer.layers.0."
_QKV, _DOWN, _UP_GATE = (
    f"{_FIRST}{name}" for name in ("attention.query_key_value.", "mlp.dense_4h_to_h.weight", "mlp.dense_h_to_4h.bias")
)
_ANGLES = (f"{_FIRST}attention.rotary_emb.inv_freq", "mixins.rotary-embedding.rotary_emb.inv_freq")
_UNSAID = ("rotary_precision", "residual_scale")  # SAT has no arguments for these

Shapes = Mapping[str, tuple[int, ...]]


def open_folder(
    folder: Path, given: str | DecoderSpec | None
) -> tuple[DecoderSpec, dict[str, Any], str, RankedCheckpoint]:
    """The decoder of a folder, its config, who says it, and its tensors, of which only the small are read.

    Raises:
        ConfigError: arguments, ``given`` spec and shapes contradict each other, or do not settle the decoder.
        CheckpointError: the rank files are damaged, incomplete, or of different checkpoints.
    """
    splits = TABLES["glm-130b"].split_of
    checkpoint = open_ranks(folder, rank_files(folder), "module", lambda shapes, ranks: splits, _bits)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    _require_every_rank(checkpoint, shapes)
    said = _arguments(folder)
    spec, said_by = _settle(folder, said, given, shapes)
    if given is None and _has_unrounded_angles(checkpoint):
        spec = spec.replace(rotary_precision="float32")
    checkpoint.require_equal_replicas()
    config = {"model_class": "GLM130B", "vocab_size": spec.vocab_size, **said}
    dtypes = (checkpoint.tensors[name].dtype for name in (_EMBEDDING, _NORM))
    dtype = TORCH_NAMES[next(dtype for dtype in dtypes if "F" in dtype)]
    return spec, {**config, "dtype": dtype}, said_by, checkpoint


def layout(spec: DecoderSpec, ranks: int) -> RankLayout:
    """How ``ranks`` rank files are written, in the folder that ``latest`` names."""
    files = tuple(f"1/mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks))
    return RankLayout(files, "module", TABLES["glm-130b"].split_of, {_LATEST: "1"})


def arguments(config: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """What ``model_config.json`` says: ``config``, and the number of ranks."""
    return {**config, "model_parallel_size": ranks}


def is_here(folder: Path) -> bool:
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
    return numbered(ranks, "mp_rank_{:02d}_model_states.pt".format, iteration)


def _iteration(folder: Path) -> str:
    path = folder / _LATEST
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not there, though rank files are. Pass the folder above the one with the rank files, and let "
            f"its file {_LATEST!r} hold that folder's name."
        )
    refuse_lfs_pointer(path)
    with require_inside(path, folder).open("rb") as file:
        name = file.read(256).decode("utf8", "replace").strip()
    if name != PurePosixPath(name).name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{path}: holds {name!r}, expected the plain name of a folder beside it, such as 49300.")
    return name


def _need(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"the rank files hold no {name!r}: not a checkpoint of the GLM-130B kind, or incomplete.")
    return shapes[name]


def _bits(shapes: Shapes) -> int | None:
    """How many bits the integers of a rank have; the input width of its first matrix tells."""
    if not any(name.endswith(SCALE) for name in shapes):
        return None
    hidden, columns = _need(shapes, _NORM)[0], _need(shapes, _QKV + "weight")[-1]
    if columns not in (hidden, hidden // 2):
        raise CheckpointError(
            f"{_QKV}weight has {columns} columns of integers; expected {hidden} (int8), or {hidden // 2} (int4)."
        )
    return 8 if columns == hidden else 4


def _require_every_rank(checkpoint: RankedCheckpoint, shapes: Shapes) -> None:
    """The pieces are as large as their number makes them: q, k and v together have three times the hidden size."""
    found, ranks = _need(shapes, _QKV + "bias")[0], len(checkpoint.files)
    expected = 3 * _need(shapes, _NORM)[0]
    if found != expected:
        raise CheckpointError(
            f"{checkpoint.files[0].parent}: {ranks} rank files hold {found} of the {expected} rows of q, k and v: they "
            f"were cut for {expected * ranks / found:g} ranks. Download every mp_rank_XX_model_states.pt, and keep "
            "those of one parallel degree."
        )


def _has_unrounded_angles(checkpoint: RankedCheckpoint) -> bool:
    """Whether SAT's own copy of the angles, which it computes anew, shows that it no longer rounds them to float16.

    The SAT that GLM-130B pins rounds them before anything else; later ones only where the whole model is float16.
    """
    if _ANGLES[1] not in checkpoint.tensors:
        return False
    angles = checkpoint.read(_ANGLES[1])
    return bool((angles.half().to(angles.dtype) != angles).any())


def _arguments(folder: Path) -> dict[str, Any]:
    path = folder / ARGUMENTS
    return read_json(path) if path.exists() else {}


def _settle(
    folder: Path, arguments: dict[str, Any], given: str | DecoderSpec | None, shapes: Shapes
) -> tuple[DecoderSpec, str]:
    """The decoder, and who says it."""
    if given is None and not arguments:
        return _spec_of_shapes(folder, shapes), "the shape of another tensor"
    said = _said(folder, arguments) if arguments else None
    if given is None:
        assert said is not None
        return said, ARGUMENTS
    spec, said_by = _of_this_kind(given), label(given)
    differences = said.differences(spec) if said else {}
    contradictory = {name: pair for name, pair in differences.items() if name not in _UNSAID or name in arguments}
    if contradictory:
        raise ConfigError(
            f"{folder / ARGUMENTS} and {said_by} contradict each other: {contradictory}. Correct one, or leave "
            "spec= out."
        )
    return spec, said_by


def _said(folder: Path, arguments: dict[str, Any]) -> DecoderSpec:
    return read_spec({"layernorm_order": "post", **arguments}, str(folder / ARGUMENTS))


def _of_this_kind(given: str | DecoderSpec) -> DecoderSpec:
    """The spec that is passed; only one of the GLM-130B kind fits such a folder."""
    spec = by_name(given)
    obstacles = cannot_express(spec.replace(rotary_precision=sat.GLM_130B["rotary_precision"]), "glm-130b")
    if obstacles:
        raise CannotExpressError(f"spec=: rank files hold a decoder of the GLM-130B kind, not {', '.join(obstacles)}.")
    return spec


def _spec_of_shapes(folder: Path, shapes: Shapes) -> DecoderSpec:
    """The decoder that shapes alone say; a head has two features for each angle, where the files hold those.

    Raises:
        ConfigError: no angles are in the files and the sizes are not GLM-130B's own, so nothing says how many heads.
    """
    vocab, hidden = _need(shapes, _EMBEDDING)
    inner = _need(shapes, _DOWN)[1]
    if _need(shapes, _UP_GATE)[0] != 2 * inner:
        raise ConfigError(
            f"{folder}: dense_h_to_4h has {shapes[_UP_GATE][0]} rows for {inner} columns of dense_4h_to_h; GLM-130B "
            "has two for each (a gate). This is another SwissArmyTransformer model."
        )
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if _is_layer(name))
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    published = PUBLISHED["glm-130b"].spec
    if all(getattr(published, name) == size for name, size in sizes.items()):
        return published
    head_dim = next((2 * shapes[name][0] for name in _ANGLES if len(shapes.get(name, ())) == 1), 0)
    if not head_dim or hidden % head_dim:
        raise ConfigError(
            f"{folder}: no {ARGUMENTS}, and the shapes ({sizes}) do not say the number of attention heads. Pass "
            f"spec= (a name such as 'glm-130b', or a DecoderSpec), or add {ARGUMENTS} with its launch arguments."
        )
    return sat.decoder(**sizes, num_attention_heads=hidden // head_dim, max_position_embeddings=2048)


def _is_layer(name: str) -> bool:
    parts = name.split(".")
    return parts[:2] == ["transformer", "layers"] and len(parts) > 2 and parts[2].isdigit()
