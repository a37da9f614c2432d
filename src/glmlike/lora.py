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
    with native_folder(model.get_base_model() if wrapped else model, folder) as native:
        if wrapped:
            model.load_adapter(str(native), adapter_name, is_trainable=is_trainable, **kwargs)
            return model
        return PeftModel.from_pretrained(model, str(native), adapter_name, is_trainable=is_trainable, **kwargs)


@contextmanager
def native_folder(model: Any, folder: Any) -> Iterator[Any]:
    """``folder`` itself, or for a local adapter of another layout a temporary folder with it on native modules."""
    spec = getattr(getattr(model, "config", None), "spec", None)
    if spec is None:
        raise ConfigError(f"expected a glmlike model, got {type(model).__name__}: load the base model with glmlike.")
    with tempfile.TemporaryDirectory(prefix="glmlike-adapter-") as place:
        target = Path(place) / "native"
        local = isinstance(folder, (str, Path)) and (Path(folder) / "adapter_config.json").is_file()
        translated = local and any(read(Path(folder), spec, target) for read in adapter_readers)
        yield target if translated else folder


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
