"""PEFT and glmlike's models: default targets for every method, and adapters of other layouts onto native modules."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmlike.errors import CheckpointError, ConfigError

AdapterReader = Callable[[Path, Any, Path], bool]
adapter_readers: list[AdapterReader] = []
"""Writes the adapter in a folder onto the native modules of a spec, to another folder, and returns True; False where
PEFT loads it as it is. Registration fills it: foreign names are the checkpoint room's, which the model does not import.
"""

_TABLE, _TARGETS = "TRANSFORMERS_MODELS_TO_", "_TARGET_MODULES_MAPPING"
_FEED_FORWARD = "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING"
_ATTENTION = ["q_proj", "v_proj"]
_BY_METHOD = {
    "LNTUNING": [
        *("input_layernorm", "post_attention_layernorm", "norm"),
        *("post_self_attn_layernorm", "post_mlp_layernorm"),
    ],
    "IA3": ["k_proj", "v_proj", "down_proj"],
    "BEFT": ["v_proj"],
    "OSF": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def register_targets(constants: Any) -> None:
    """Give PEFT the default modules of our model type, in every table that ``peft.utils.constants`` has.

    They are those of LLaMA. Our models' type is always ``glmlike``, whatever was loaded, so that the entry ``chatglm``
    (``query_key_value``), which models with remote code need, stays as it is.
    """
    for name, table in vars(constants).items():
        if name.startswith(_TABLE) and name.endswith(_TARGETS):
            method = name.removeprefix(_TABLE).removesuffix(_TARGETS)
            table.setdefault("glmlike", list(_BY_METHOD.get(method, _ATTENTION)))
    getattr(constants, _FEED_FORWARD, {}).setdefault("glmlike", ["down_proj"])


def load_adapter(
    model: Any, folder: str | Path, adapter_name: str = "default", *, is_trainable: bool = False, **kwargs: Any
) -> Any:
    """``PeftModel.from_pretrained`` for an adapter of any format that glmlike knows; the PeftModel is returned.

    An adapter trained on ``query_key_value`` and ``dense_h_to_4h`` of a remote-code model is put onto the separate
    projections of ``model``, with the same numbers and logits. ``model`` may be a PeftModel as well, which then gets
    one more adapter. ``kwargs`` are PEFT's. ``PeftModel.from_pretrained`` itself looks for the adapter's modules before
    it asks anybody, and ends with "Target modules … not found" for such an adapter; ``model.load_adapter`` of a glmlike
    model translates as this function does.

    Raises:
        ConfigError, CheckpointError: the adapter is damaged, of another decoder, or has no exact translation.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError("load_adapter needs PEFT: pip install 'glmlike[lora]'.") from None
    wrapped = isinstance(model, PeftModel)
    with native_folder(model.get_base_model() if wrapped else model, folder, **kwargs) as native:
        if wrapped:
            model.load_adapter(str(native), adapter_name, is_trainable=is_trainable, **kwargs)
            return model
        return PeftModel.from_pretrained(model, str(native), adapter_name, is_trainable=is_trainable, **kwargs)


@contextmanager
def native_folder(model: Any, folder: Any, **kwargs: Any) -> Iterator[Any]:
    """``folder`` itself, or for an adapter of another layout a temporary folder with it on native modules.

    Of a repository on the Hub, what ``kwargs`` say to PEFT of its revision and access, here or in ``adapter_kwargs``,
    is how it is read.
    """
    spec = getattr(getattr(model, "config", None), "spec", None)
    if spec is None:
        raise ConfigError(f"expected a glmlike model, got {type(model).__name__}: load the base model with glmlike.")
    with tempfile.TemporaryDirectory(prefix="glmlike-adapter-") as place:
        options = {**kwargs, **(kwargs.get("adapter_kwargs") or {})}
        within = str(options.get("subfolder") or "")
        local, target = _local_folder(folder, within, options), Path(place) / "native"
        translated = local is not None and any(read(local, spec, target / within) for read in adapter_readers)
        yield target if translated else folder


def _local_folder(folder: Any, within: str, options: dict[str, Any]) -> Path | None:
    """The folder with an adapter's files, of a repository after a download of them alone; None where PEFT knows more.

    What cannot be found or read is left to PEFT, whose message says why.
    """
    if not isinstance(folder, (str, Path)):
        return None
    place = Path(folder)
    if not place.exists():
        from huggingface_hub import snapshot_download

        access = {name: options[name] for name in ("revision", "token", "cache_dir") if options.get(name) is not None}
        files = [f"{within}/{name}".lstrip("/") for name in ("adapter_config.json", "adapter_model*")]
        try:
            place = Path(snapshot_download(str(folder), allow_patterns=files, **access))
        except (OSError, ValueError):  # huggingface_hub's own are both
            return None
    return place / within if (place / within / "adapter_config.json").is_file() else None


def require_magnitudes(info: Any, where: str) -> None:
    """Raise CheckpointError when transformers' ``load_adapter`` left out DoRA's magnitudes.

    PEFT saves ``lora_magnitude_vector`` without the ``.weight`` that the module has, and transformers (5.24) only adds
    the adapter's name, so that a DoRA adapter loads as another one; ``PeftModel`` knows both names.
    """
    left_out = sorted(name for name in getattr(info, "missing_keys", ()) if "lora_magnitude_vector" in name)
    if left_out:
        raise CheckpointError(
            f"{where}: {len(left_out)} DoRA magnitudes (first: {left_out[0]!r}) were not loaded: load_adapter of "
            "transformers does not find them under the names PEFT saves. Load the base model again and use "
            "glmlike.load_adapter(model, folder), or PeftModel.from_pretrained."
        )
