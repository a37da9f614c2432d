"""P-tuning v2 prefixes as things of their own: from a folder onto a model and back, begun anew, to PEFT and back.

The original scripts save folders that hold nothing but the prefix; ``load_prefix`` puts one onto its base model. PEFT's
PrefixTuning is the same idea with one difference: the tokens' positions count its prefix. Rotary attention only sees
distances, so the prefix keys are rotated by the length of the prefix on the way there, and back on the way back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from glmlike.checkpoint.prefix_files import EMBEDDING, fit, read_prefix, width, write_prefix
from glmlike.checkpoint.shards import open_file, read_json, whole_folder, write_shards
from glmlike.configuration import GlmLikeConfig
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import Generation, carried_fields, read_spec
from glmlike.prefix_encoder import PrefixEncoder, set_lengths
from glmlike.rotary import GlmLikeRotaryEmbedding, quarter_turn
from glmlike.spec import DecoderSpec

_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_TENSOR = "prompt_embeddings"
_TURNED_ALIKE = ("default", "linear", "yarn", "llama3")


def load_prefix(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put the prefix in ``folder`` onto ``model``, in place of any it has; the model is returned.

    ``folder`` is what the P-tuning scripts of ChatGLM-6B and ChatGLM2 save, or :func:`save_prefix`, or
    :func:`from_peft`, or a whole checkpoint, of which only the prefix is read. The prefix keeps the dtype of its files.

    Raises:
        ConfigError: the model is of a kind that has no prefixes.
        CheckpointError: the files hold no prefix, part of one, or one of another decoder, or config.json contradicts.
    """
    base = _decoder(model)
    tensors = read_prefix(Path(folder))
    spec = fit(tensors, model.config.spec, str(folder))
    _attach(model, base, spec, tensors[EMBEDDING].dtype)
    base.prefix_encoder.load_state_dict(tensors)
    return model


def start_prefix(model: PreTrainedModel, length: int, *, projection: bool = False) -> PreTrainedModel:
    """Put a new random prefix of ``length`` tokens onto ``model`` and freeze all else, as the originals train it.

    The prefix is float32 whatever the model's dtype, and trains with the Hugging Face Trainer as it is (with gradient
    checkpointing too, in its non-reentrant form). ``config.prefix_dropout`` (0.1 in the originals) acts in training.

    Raises:
        ConfigError, SpecError: the model is of a kind that has no prefixes, or ``length`` is not positive.
    """
    base = _decoder(model)
    if length == 0:
        raise ConfigError("length=0: expected the number of prefix tokens, such as 128.")
    spec = model.config.spec.replace(prefix_length=length, prefix_projection=projection)
    _attach(model, base, spec, torch.float32)
    freeze_decoder(model)
    return model


def freeze_decoder(model: PreTrainedModel) -> None:
    """Leave gradients to the prefix alone.

    Raises:
        ConfigError: the model has no prefix.
    """
    encoder = _require_prefix(model)
    model.requires_grad_(False)
    encoder.requires_grad_(True)


def save_prefix(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the prefix of ``model``, and config.json, to the new folder ``folder``; :func:`load_prefix` reads it.

    Raises:
        ConfigError: the model has no prefix.
        CheckpointError: ``folder`` holds something already.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in _require_prefix(model).state_dict().items()}
    write_prefix(Path(folder), None, model.config.spec, carried_fields(model.config.to_dict()), tensors)


def to_peft(
    src: str | Path, dst: str | Path, *, base: str | Path | None = None, generation: Generation | None = None
) -> None:
    """Write the prefix in ``src`` as a PEFT PrefixTuning adapter to the new folder ``dst``.

    ``PeftModel.from_pretrained(base_model, dst)`` then gives the logits of the prefix. ``base`` is the folder whose
    config.json describes the decoder (default: ``src``). A projection is carried out, as PEFT does when it saves.
    Numbers are computed in float64 and stored as float32. ``generation`` is that of :func:`glmlike.detect`.

    Raises:
        ConfigError: the decoder is ChatGLM-6B's or has another position rule that PEFT's shift of positions changes.
        CheckpointError: ``src`` holds no prefix or one of another decoder, or ``dst`` holds something already.
    """
    source, target = Path(src), Path(dst)
    where = source if base is None else Path(base)
    config = read_json(where / "config.json")
    spec = read_spec(config, str(where / "config.json"), generation=generation)
    tensors = read_prefix(source)
    spec = fit(tensors, spec, str(source))
    _refuse_unturnable(spec, str(source))
    rows = _turn_keys(_rows(tensors), spec, spec.prefix_length).float()
    with whole_folder(target, source) as partial:
        write_shards(partial, iter([(_PEFT_TENSOR, rows)]), rows.nbytes + 1)
        (partial / "model.safetensors").rename(partial / _PEFT_WEIGHTS[0])
        text = json.dumps(_peft_config(spec, None if base is None else str(base)), indent=2) + "\n"
        (partial / _PEFT_CONFIG).write_text(text, encoding="utf8")


def from_peft(adapter: str | Path, base: str | Path, dst: str | Path, *, generation: Generation | None = None) -> None:
    """Write a PEFT PrefixTuning adapter as a prefix to the new folder ``dst``; the inverse of :func:`to_peft`.

    ``base`` is the folder whose config.json describes the decoder that the adapter is for. ``dst`` holds a table
    without projection (PEFT saves none) and config.json; :func:`load_prefix` reads it.

    Raises:
        ConfigError: the adapter is of another kind or for another decoder, or that is ChatGLM-6B's (:func:`to_peft`).
        CheckpointError: the adapter's files are damaged or not what adapter_config.json says, or ``dst`` is not empty.
    """
    source, where = Path(adapter), Path(base)
    config = read_json(where / "config.json")
    spec = read_spec(config, str(where / "config.json"), generation=generation)
    said = read_json(source / _PEFT_CONFIG)
    spec = _check_peft_config(said, spec, str(source / _PEFT_CONFIG))
    _refuse_unturnable(spec, str(source))
    rows = _read_peft_rows(source, spec)
    rows = _turn_keys(rows.double(), spec, -spec.prefix_length).to(rows.dtype)
    write_prefix(Path(dst), source, spec, carried_fields(config), {EMBEDDING: rows})


def _decoder(model: PreTrainedModel) -> Any:
    base = getattr(model, "base_model", None)
    if not isinstance(getattr(model, "config", None), GlmLikeConfig) or not hasattr(base, "prefix_encoder"):
        raise ConfigError(f"expected a glmlike model, got {type(model).__name__}: load the base model with glmlike.")
    return base


def _require_prefix(model: PreTrainedModel) -> PrefixEncoder:
    encoder: PrefixEncoder | None = _decoder(model).prefix_encoder
    if encoder is None:
        raise ConfigError("this model has no P-tuning prefix. Begin one with start_prefix, or load one by load_prefix.")
    return encoder


def _attach(model: PreTrainedModel, base: Any, spec: DecoderSpec, dtype: torch.dtype) -> None:
    set_lengths(model, spec.prefix_length, spec.prefix_projection)
    encoder = PrefixEncoder(base.config).to(base.embed_tokens.weight.device, dtype)
    base.prefix_encoder = encoder.train(model.training)


def _rows(tensors: dict[str, Tensor]) -> Tensor:
    """[P, layers * 2 * K * H] in float64, the projection carried out."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    rows = wide[EMBEDDING]
    if len(wide) == 1:
        return rows
    hidden = torch.nn.functional.linear(rows, wide["trans.0.weight"], wide["trans.0.bias"]).tanh()
    return torch.nn.functional.linear(hidden, wide["trans.2.weight"], wide["trans.2.bias"])


def _turn_keys(rows: Tensor, spec: DecoderSpec, positions: int) -> Tensor:
    """``rows`` [P, layers * 2 * K * H] with every key rotated as if it stood ``positions`` further on."""
    config = GlmLikeConfig.from_spec(spec)
    angles = positions * GlmLikeRotaryEmbedding(config).inv_freq.double()
    interleaved = spec.rotary_pairing == "interleaved"
    angles = angles.repeat_interleave(2) if interleaved else torch.cat((angles, angles))
    turned = rows.clone().view(len(rows), spec.num_hidden_layers, 2, spec.num_key_value_heads, spec.head_dim)
    keys = turned[:, :, 0, :, : spec.rotary_dim]
    keys.copy_(keys * angles.cos() + quarter_turn(config)(keys) * angles.sin())
    return turned.flatten(1)


def _refuse_unturnable(spec: DecoderSpec, where: str) -> None:
    if spec.attention_mask == "prefix":
        raise ConfigError(
            f"{where}: a prefix of ChatGLM-6B and PEFT: PEFT hands the prefix over as a cache of past tokens, after "
            "which masks and positions of blank infilling no longer follow from the tokens. Keep it in the model: "
            "load_prefix, save_prefix and save_pretrained need no PEFT."
        )
    if spec.rope_type not in _TURNED_ALIKE:
        raise ConfigError(
            f"{where}: a prefix with rope_type={spec.rope_type!r} and PEFT: PEFT's positions begin after the prefix, "
            "and with these frequencies, which depend on the length, no rotation of the prefix makes up for it. Use "
            "load_prefix instead."
        )


def _peft_config(spec: DecoderSpec, base: str | None) -> dict[str, Any]:
    """The fields of PEFT's PrefixTuningConfig; ``token_dim`` is the width of all key-value heads."""
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": spec.prefix_length,
        "token_dim": spec.key_value_size,
        "num_attention_heads": spec.num_key_value_heads,
        "num_layers": spec.num_hidden_layers,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": spec.hidden_size,
        "prefix_projection": False,
    }


def _check_peft_config(said: dict[str, Any], spec: DecoderSpec, where: str) -> DecoderSpec:
    if said.get("peft_type") != "PREFIX_TUNING":
        raise ConfigError(
            f"{where}: peft_type={said.get('peft_type')!r}: expected 'PREFIX_TUNING'. Only prefix-tuning adapters are "
            "prefixes; use other adapters with PEFT itself."
        )
    expected = {
        "num_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_key_value_heads,
        "token_dim": spec.key_value_size,
        "num_transformer_submodules": 1,
    }
    for name, value in expected.items():
        if said.get(name) != value:
            raise ConfigError(
                f"{where}: {name}={said.get(name)!r}, but this decoder's keys and values ask for {value} "
                f"({width(spec)}). The adapter is for another base model; pass that."
            )
    length = said.get("num_virtual_tokens")
    if not length:
        raise ConfigError(f"{where}: num_virtual_tokens={length!r}: expected the number of prefix tokens.")
    return spec.replace(prefix_length=length, prefix_projection=False)


def _read_peft_rows(folder: Path, spec: DecoderSpec) -> Tensor:
    path = next((folder / name for name in _PEFT_WEIGHTS if (folder / name).exists()), folder / _PEFT_WEIGHTS[0])
    checkpoint = open_file(path)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    expected = {_PEFT_TENSOR: (spec.prefix_length, spec.prefix_size)}
    if shapes != expected:
        raise CheckpointError(
            f"{path}: holds {shapes}, but {_PEFT_CONFIG} asks for {expected} alone. Weights and config are of "
            "different adapters, or the adapter holds more than a prefix (modules_to_save); use a pure prefix adapter."
        )
    return checkpoint.read(_PEFT_TENSOR)
