"""What loading checks beyond transformers: a whole decoder or one clear sentence, never a silent guess."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.configuration_utils import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging

from glmlike import hub_json
from glmlike.configuration import GlmLikeConfig, as_native
from glmlike.errors import CheckpointError, ConfigError, conversion_failures
from glmlike.packed_loading import HUB_ARGUMENTS, open_packed, packed_folder, require_packages
from glmlike.quantization import GlmIntConfig

logger = logging.get_logger(__name__)

_SHARDED_ARGUMENTS = ("distributed_config", "tp_plan", "tp_size")

FolderReader = Callable[[Path, Any], "tuple[dict[str, Any], dict[str, Any]] | None"]
folder_readers: dict[str, FolderReader] = {}
"""Readers of folders that transformers cannot open, by format; registration fills it. Each takes a folder and ``spec``,
and returns the fields of a GlmLikeConfig and the native tensors, made when they are indexed; None for other folders."""

# Arguments that are fields of a config as well, and that transformers' loader takes itself.
_LOADERS_OWN = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")


def open_folder(
    where: Any, config: Any, spec: Any, generation: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any], Path] | None:
    """The config and the tensors of a folder or repository that transformers cannot open; None where it can.

    With them the folder that was read. A ``config`` object that is passed says the decoder as ``spec`` does. Arguments
    that are config fields (``use_cache``, token ids) are taken out of ``kwargs`` and set.

    Raises:
        ConfigError: ``spec`` is passed for another folder, or an argument needs files that transformers opens.
        GlmLikeError: what the reader found wrong with the folder.
    """
    folder = Path(where, kwargs.get("subfolder") or "") if where is not None and Path(where).is_dir() else None
    passed = as_native(config) if isinstance(config, PreTrainedConfig) else None
    said = passed.spec if spec is None and passed is not None else spec
    found = next((f for read in folder_readers.values() if folder and (f := read(folder, said)) is not None), None)
    packed = None
    if found is None and (folder := packed_folder(where, config, kwargs)) is not None:
        packed = found = open_packed(where, folder, spec, generation, kwargs)
    if found is None:
        if spec is not None:
            raise ConfigError(f"{where}: spec= is for folders of rank files, which have no config.json. Leave it out.")
        return None
    assert folder is not None
    _refuse_what_needs_files(where, kwargs, "rank files" if packed is None else "packed integers")
    fields, tensors = found
    native = GlmLikeConfig.from_dict(fields) if passed is None else passed
    if packed is not None and hasattr(native, "quantization_config"):
        native = copy.deepcopy(native)  # the caller's own says what the files are
        del native.quantization_config
    native.dtype = native.dtype or getattr(torch, fields["dtype"])
    kwargs.pop("subfolder", None)
    for name in [name for name in kwargs if name not in _LOADERS_OWN and hasattr(native, name)]:
        setattr(native, name, kwargs.pop(name))
    return native, tensors, folder


def settle_opened(model: PreTrainedModel, folder: Path, where: str, kwargs: Mapping[str, Any]) -> None:
    """Give a model made of :func:`open_folder`'s tensors what transformers gives one that it opened itself."""
    model.config.name_or_path = model.name_or_path = where
    said = kwargs.get("generation_config") is not None
    if model.can_generate() and not said and (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _refuse_what_needs_files(where: Any, kwargs: dict[str, Any], kind: str) -> None:
    sharded = next((name for name in _SHARDED_ARGUMENTS if kwargs.get(name) is not None), None)
    device_map = kwargs.get("device_map")
    places = device_map.values() if isinstance(device_map, dict) else (device_map,)
    offloaded = "device_map with 'disk'" if "disk" in places else None
    given = "state_dict" if kwargs.get("state_dict") is not None else None
    refused = sharded or offloaded or given
    if refused:
        raise ConfigError(
            f"{where}: {refused} with a folder of {kind}, which are read tensor by tensor and whole. First run "
            f"`glmlike convert {where} DST --to glmlike`, then load DST."
        )


def resolve_config(where: Any, config: Any, generation: str | None, kwargs: dict[str, Any]) -> Any:
    """The native config where it is known or needed now; else None, and transformers reads it from the folder."""
    sharded = [name for name in _SHARDED_ARGUMENTS if kwargs.get(name) is not None]
    if isinstance(config, PreTrainedConfig):
        config = as_native(config)
    elif generation is not None or sharded:
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = GlmLikeConfig.from_pretrained(config or where, generation=generation, **hub)
    if sharded and config.fused_format is not None:
        raise ConfigError(
            f"{where}: {sharded[0]} with a checkpoint in the {config.fused_format!r} layout: its fused matrices would "
            f"be cut in the wrong places. First run `glmlike convert {where} DST --to glmlike`, then load DST."
        )
    if sharded and config.prefix_length:
        raise ConfigError(
            f"{where}: {sharded[0]} with a P-tuning prefix (prefix_length={config.prefix_length}): its keys are those "
            "of all heads, and would not fit the heads of one process. Load it on one process."
        )
    return config


_file_checks: list[Callable[[Path], None]] = []


def use_file_check(check: Callable[[Path], None]) -> None:
    """Take what a folder must pass before transformers opens its files; the readers are the checkpoint room's."""
    _file_checks[:] = [check]


def require_readable(where: Any, kwargs: dict[str, Any]) -> None:
    """The pickles of a local folder hold tensors and plain containers alone, before transformers unpickles one.

    Raises:
        CheckpointError: a .bin file that would be read is damaged, old, or holds other objects.
    """
    folder = Path(where, kwargs.get("subfolder") or "") if where is not None and Path(where).is_dir() else None
    if folder is None or kwargs.get("state_dict") is not None or any(folder.glob("model*.safetensors")):
        return
    for check in _file_checks:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            check(path)


_key_mappings: list[Callable[[int], dict[str, str]]] = []


def use_key_mapping(make: Callable[[int], dict[str, str]]) -> None:
    """Take what ``from_pretrained`` needs as ``key_mapping`` from ``make(dropped_rows)``.

    The registration hands it over: foreign names are the checkpoint room's, which the model does not import.
    """
    _key_mappings[:] = [make]


def resolve_files(where: Any, config: Any, kwargs: dict[str, Any]) -> Any:
    """The config to load with (None: transformers reads it), and in ``kwargs`` what its files need beyond it.

    Raises:
        ConfigError: a quantization is asked for that does not go with the integers of the files.
    """
    asked = kwargs.get("quantization_config")
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    fields: Mapping[str, Any] = {}
    if isinstance(config, GlmLikeConfig):
        fields = {"quantization_config": dict(getattr(config, "quantization_config", None) or {})}
        dropped = config.dropped_rows
    elif where is not None or config is not None:
        fields, _ = GlmLikeConfig.get_config_dict(config or where, **hub)
        dropped = hub_json.dropped_rows(fields)
    else:
        return config
    for make in _key_mappings if dropped else ():
        kwargs["key_mapping"] = {**make(dropped), **(kwargs.get("key_mapping") or {})}
    require_packages(fields, where)
    bits = hub_json.integer_bits(fields, str(where))
    if isinstance(asked, dict) and asked.get("quant_method") == hub_json.INTEGER_METHOD:
        asked = GlmIntConfig(**asked)
    if isinstance(asked, GlmIntConfig):
        del kwargs["quantization_config"]
        if not isinstance(config, GlmLikeConfig):
            config = GlmLikeConfig.from_pretrained(config or where, **hub)
        config.quantization_config = _complete(asked, bits, fields, where)
    elif asked is not None and bits is not None:
        raise ConfigError(
            f"{where}: config.json says that its weights are quantized already ({bits} bits), and "
            f"{type(asked).__name__} quantizes floats. First run `glmlike convert {where} DST --to glmlike`, which "
            "makes floats of them, then load DST with it."
        )
    return config


_SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
"""What the quantization configs of transformers call the modules that stay floats."""


def keep_head(head: str, where: Any, config: Any, kwargs: dict[str, Any]) -> Any:
    """The config to load with: a classifier's ``head`` stays floats, whatever quantizes or has quantized the decoder.

    transformers leaves the last *parameter* of a model out, which is such a head's bias, and its matrix is replaced by
    an empty quantized one: a head that is to be trained would fail in its first forward.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    asked = kwargs.get("quantization_config")
    if asked is not None:
        kwargs["quantization_config"] = _with_skipped(asked, head)
    stored = getattr(config, "quantization_config", None)
    if config is None and where is not None:
        stored = GlmLikeConfig.get_config_dict(where, **hub)[0].get("quantization_config")
    if not stored:
        return config
    if not isinstance(config, GlmLikeConfig):
        config = GlmLikeConfig.from_pretrained(config or where, **hub)
    skipped = _with_skipped(stored, head)
    config.quantization_config = skipped if isinstance(skipped, Mapping) else skipped.to_dict()
    return config


def _with_skipped(quantization: Any, head: str) -> Any:
    """A copy of a quantization config, an object or a dict of its fields, that skips ``head`` as well.

    A list that says nothing is transformers' default, and of a classifier that is its head alone.
    """
    if isinstance(quantization, Mapping):
        if quantization.get("quant_method") == hub_json.INTEGER_METHOD:
            return quantization
        if quantization.get("quant_method") == "compressed-tensors":
            return {**quantization, "ignore": [*(quantization.get("ignore") or ()), head]}
        quantization = AutoQuantizationConfig.from_dict(dict(quantization))
    found = copy.deepcopy(quantization)
    for name in _SKIP_LISTS:
        if hasattr(found, name):
            setattr(found, name, [*(part for part in getattr(found, name) or () if part != head), head])
    return found


def _complete(asked: GlmIntConfig, bits: int | None, fields: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """The config that was asked for, with the width that config.json says."""
    if asked.bits is not None and bits is not None and asked.bits != bits:
        raise ConfigError(f"{where}: GlmIntConfig(bits={asked.bits}), but config.json says {bits}. Leave bits out.")
    if fields.get("quantization_config") and bits is None:
        raise ConfigError(
            f"{where}: config.json has the quantization_config of another method than {hub_json.INTEGER_METHOD!r}. "
            "Load it without GlmIntConfig."
        )
    if asked.bits is None and bits is None:
        raise ConfigError(
            f"{where}: GlmIntConfig without bits, and config.json does not say them either. If the files hold "
            "integers, pass bits=4 or bits=8; floats need no GlmIntConfig."
        )
    return dict(GlmIntConfig(bits=bits or asked.bits, dequantize=asked.dequantize))


def require_integers_declared(info: dict[str, Any], where: str) -> None:
    """No scales of integers were left over: a config that does not speak of integers had them read as floats."""
    scales = sorted(key for key in info["unexpected_keys"] if key.endswith(".weight_scale"))
    if scales:
        raise CheckpointError(
            f"{where}: {len(scales)} tensors of its files are scales of integer weights (first: {scales[0]!r}), but "
            'config.json has no "quantization_bit". Add the one of the original repository (4 or 8), or pass '
            "quantization_config=GlmIntConfig(bits=…)."
        )


@contextmanager
def one_sentence(where: str, *, bare: bool = False) -> Iterator[None]:
    """Turn the readers' failures on damaged or unsafe files into one CheckpointError that names the place.

    ``bare``: a decoder without a head is being loaded, under shorter names than those of a language model.
    """
    failures: list[str] = []
    token = conversion_failures.set(failures)
    try:
        yield
    except RuntimeError as error:
        if failures and not isinstance(error, CheckpointError):
            raise CheckpointError(f"{where}: {failures[0]}") from error
        if bare and _said_method(where) == "torchao":
            raise CheckpointError(
                f"{where}: torchao's files name their tensors as the model that was saved, with a head, and are not "
                "found under the names of one without. Load it with AutoModelForCausalLM and use its .model."
            ) from error
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"{where}: a .safetensors file cannot be read ({error}); it is truncated or damaged. Download it again."
        ) from error
    except (UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"{where}: a .bin file is not a pickle of plain tensors ({str(error).splitlines()[0]}); nothing in it was "
            "executed. Use a .safetensors copy, or download it again."
        ) from error
    finally:
        conversion_failures.reset(token)


def _said_method(where: str) -> Any:
    """The ``quant_method`` that a local folder's config.json says."""
    if not (Path(where) / "config.json").is_file():
        return None
    fields, _ = GlmLikeConfig.get_config_dict(where)
    return (fields.get("quantization_config") or {}).get("quant_method")


def require_shapes(info: dict[str, Any], where: str) -> None:
    """No tensor of the files had another shape than the model's; the first that had is named with both shapes."""
    for name, found, expected in sorted(info["mismatched_keys"], key=str):
        raise CheckpointError(
            f"{where}: {name!r} has shape {list(found)} in the files, but config.json asks for {list(expected)}. "
            "Weights and config are of different models; use those that belong together, or pass "
            "ignore_mismatched_sizes=True to start this tensor anew."
        )


def require_decoder(model: PreTrainedModel, info: dict[str, Any], where: str) -> None:
    """Every decoder tensor was in the files, and none of its layers' tensors was left over.

    A head that is not in the files (a classifier to be trained) stays transformers' warning.
    """
    heads = ("lm_head.", "score.", "qa_outputs.")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(heads))
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of the decoder are in none of its files (first: {missing[0]!r}). The "
            "download is incomplete or config.json is another model's; compare both with the original repository."
        )
    layers = model.config.num_hidden_layers
    extra = sorted(key for key in info["unexpected_keys"] if _is_layer_tensor(key, layers))
    if extra:
        raise CheckpointError(
            f"{where}: {len(extra)} tensors of its layers have no place in this decoder (first: {extra[0]!r}). "
            "config.json describes another model than the weights; use the config that belongs to them."
        )


def _is_layer_tensor(key: str, layers: int) -> bool:
    _, found, rest = key.partition("layers.")
    index = rest.partition(".")[0]
    adapter = "lora_" in key or "adapter" in key
    return bool(found) and not adapter and index.isdigit() and int(index) < layers


def warn_about_cpu_float16(model: PreTrainedModel, where: str) -> None:
    """Say once how to do better than float16 on a CPU."""
    if model.dtype == torch.float16 and model.device.type == "cpu":
        logger.warning_once(
            f"{where}: loaded in its own float16, whose matrix products are about ten times slower than bfloat16 on a "
            "CPU. Pass dtype=torch.bfloat16 (or float32)."
        )
