"""GLM-130B's SwissArmyTransformer folders: which decoder the rank files are, and their tensors.

Such a folder has no config.json. Its ``model_config.json`` says the decoder, or a spec that is passed, or the shapes of
its tensors do; each is checked against the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.quantized import SCALE
from glmlike.checkpoint.ranks import RankedCheckpoint, open_ranks
from glmlike.checkpoint.shards import read_json
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import cannot_express, read_spec, sat
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec

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
    checkpoint = open_ranks(folder, TABLES["glm-130b"].split_of, _bits)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    _require_every_rank(checkpoint, shapes)
    arguments = _arguments(folder)
    spec, said_by = _settle(folder, arguments, given, shapes)
    if given is None and _has_unrounded_angles(checkpoint):
        spec = spec.replace(rotary_precision="float32")
    checkpoint.require_equal_replicas()
    config = {"model_class": "GLM130B", "vocab_size": spec.vocab_size, **arguments}
    dtypes = (checkpoint.tensors[name].dtype for name in (_EMBEDDING, _NORM))
    return spec, {**config, "dtype": next(dtype for dtype in dtypes if "float" in dtype)}, said_by, checkpoint


def require_agreement(found: DecoderSpec, given: str | DecoderSpec | None, where: Path) -> None:
    """Raise ConfigError if a spec is passed and a config says another decoder."""
    differences = {} if given is None else found.differences(by_name(given))
    if differences:
        raise ConfigError(f"{where} and spec= contradict each other: {differences}. Correct one, or leave spec= out.")


def require_divisible(spec: DecoderSpec, ranks: int) -> None:
    """Raise ConfigError unless ``ranks`` ranks can each hold whole heads and equal pieces of every matrix."""
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= 99:
        raise ConfigError(f"tensor_parallel={ranks!r}: expected a whole number from 1 to 99.")
    for name in ("num_attention_heads", "intermediate_size", "vocab_size"):
        if getattr(spec, name) % ranks:
            raise ConfigError(
                f"tensor_parallel={ranks}: does not divide {name}={getattr(spec, name)}. Pass one that does."
            )


def by_name(given: str | DecoderSpec) -> DecoderSpec:
    """The spec that is passed, itself or by its name in :mod:`glmlike.published`."""
    if isinstance(given, str):
        if given not in PUBLISHED:
            raise ConfigError(f"spec={given!r}: expected one of {', '.join(PUBLISHED)}, or a DecoderSpec.")
        return PUBLISHED[given].spec
    if not isinstance(given, DecoderSpec):
        raise ConfigError(f"spec={given!r}: expected a name such as 'glm-130b', or a DecoderSpec.")
    return given


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
    spec, label = _of_this_kind(given), f"spec={given!r}" if isinstance(given, str) else "spec="
    differences = said.differences(spec) if said else {}
    contradictory = {name: pair for name, pair in differences.items() if name not in _UNSAID or name in arguments}
    if contradictory:
        raise ConfigError(
            f"{folder / ARGUMENTS} and {label} contradict each other: {contradictory}. Correct one, or leave spec= out."
        )
    return spec, label


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
