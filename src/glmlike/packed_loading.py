"""Folders and repositories that GPTQ, AWQ or compressed-tensors packed, at loading: what becomes floats, what stays.

Where transformers can keep the integers (the method's own library is installed, and no matrix is several of ours), it
does. Everywhere else the floats that they stand for are loaded, from a folder or from a repository on the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from glmlike.configuration import GlmLikeConfig
from glmlike.errors import ConfigError
from glmlike.hub_json import INTEGER_METHOD

logger = logging.get_logger(__name__)

Opened = tuple[dict[str, Any], dict[str, Any]]
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "proxies", "subfolder")
"""The arguments of ``from_pretrained`` that say where in the Hub and its cache files are."""

PackedReader = Callable[[Path, Any, Any, Callable[[str], bool]], "Opened | None"]
packed_readers: list[PackedReader] = []
"""The reader of folders of packed integers as floats; registration fills it. It takes a folder, ``spec``,
``generation`` and which methods' own libraries are there; None: the folder is another, or the integers stay."""

PackedFetcher = Callable[[str, Mapping[str, Any], Mapping[str, Any], Callable[[str], bool]], "Path | None"]
packed_fetchers: list[PackedFetcher] = []
"""What downloads such a repository, likewise. It takes the id, the fields of its config.json, the arguments that say
where in the Hub, and which methods' own libraries are there; None as above, and then nothing is downloaded."""

_PACKAGES = {
    "gptq": (("optimum", "gptqmodel"), "GPTQ"),
    "awq": (("gptqmodel",), "AWQ"),
    "compressed-tensors": (("compressed_tensors",), "compressed-tensors"),
    "torchao": (("torchao",), "torchao"),
    "bitsandbytes": (("bitsandbytes", "accelerate"), "bitsandbytes"),
}
"""What transformers needs to read files that another library quantized."""
_READ_AS_FLOATS = ("gptq", "awq", "compressed-tensors")


def packed_folder(where: Any, config: Any, kwargs: Mapping[str, Any]) -> Path | None:
    """The folder of ``where``, if its matrices may be packed: itself, or its copy in the Hub's cache.

    Raises:
        ConfigError: it is on the Hub, and packed in a way that is not read, or cannot be downloaded.
    """
    if where is None or kwargs.get("state_dict") is not None:
        return None
    if Path(where).exists():
        return Path(where, kwargs.get("subfolder") or "") if Path(where).is_dir() else None
    if isinstance(config, PreTrainedConfig) and _method(getattr(config, "quantization_config", None)) is None:
        return None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    fields, _ = GlmLikeConfig.get_config_dict(where, **hub)
    if _method(fields.get("quantization_config")) is None:
        return None
    keeps = _keeps(kwargs)
    return next((found for fetch in packed_fetchers if (found := fetch(str(where), fields, hub, keeps))), None)


def open_packed(where: Any, folder: Path, spec: Any, generation: Any, kwargs: dict[str, Any]) -> Opened | None:
    """The config fields and the floats of a folder of packed integers; None where they stay integers, or are none.

    A ``quantization_config`` of another method quantizes those floats. One that asks for them (``dequantize=True``) is
    thereby answered and taken out.

    Raises:
        ConfigError: the integers are asked for, where only their floats can be had.
    """
    keeps, asked = _keeps(kwargs), kwargs.get("quantization_config")
    found = next((f for read in packed_readers if (f := read(folder, spec, generation, keeps))), None)
    if found is None:
        return None
    if _stays_packed(asked) or _said(asked, "quant_method") == INTEGER_METHOD:
        raise ConfigError(
            f"{where}: quantization_config={type(asked).__name__}, but these integers can only become floats: some "
            "matrices are several of the decoder's in one, or have zeros or an order of columns that transformers "
            "does not take. Leave quantization_config out, and their floats are loaded."
        )
    if _method(asked) is not None:
        del kwargs["quantization_config"]
    logger.warning_once(
        f"{where}: its matrices are packed integers. They are read as the floats that these stand for, which take the "
        "memory of floats."
    )
    return found


def _said(quantization: Any, name: str) -> Any:
    """A field of a quantization config, an object or a dict of its fields."""
    return quantization.get(name) if isinstance(quantization, Mapping) else getattr(quantization, name, None)


def _method(quantization: Any) -> str | None:
    """The method of a quantization config, if it is one of those read as floats."""
    method = _said(quantization, "quant_method")
    return method if method in _READ_AS_FLOATS else None


def _stays_packed(asked: Any) -> bool:
    """Whether the integers are asked for: by a config of their own method that does not ask for floats."""
    return _method(asked) is not None and _said(asked, "dequantize") is not True


def _keeps(kwargs: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which methods' integers are to stay: what is asked for, or else those whose own library is there."""
    asked = kwargs.get("quantization_config")
    return _is_installed if asked is None else lambda method: _stays_packed(asked)


def _is_installed(method: str) -> bool:
    return all(find_spec(package) is not None for package in _PACKAGES[method][0])


def require_packages(fields: Mapping[str, Any], where: Any) -> None:
    """Raise ConfigError if config.json says that the files need a package that is not installed."""
    said = fields.get("quantization_config") or {}
    packages, name = _PACKAGES.get(said.get("quant_method", "") if isinstance(said, Mapping) else "", ((), ""))
    missing = [package.replace("_", "-") for package in packages if find_spec(package) is None]
    if missing:
        needed = " ".join(packages).replace("_", "-")
        gpu = " (which needs a GPU)" if "gptqmodel" in packages else ""
        readable = said["quant_method"] in _READ_AS_FLOATS
        convert = f", or `glmlike convert {where} DST --to glmlike` and load DST (floats)" if readable else ""
        raise ConfigError(
            f"{where}: its matrices are quantized by {name}, and {' and '.join(missing)} is not installed. Run "
            f"`pip install {needed}`{gpu}{convert}, or use the repository of the floats it was made of."
        )


def recompress(model: PreTrainedModel) -> None:
    """Put compressed-tensors' matrices back in the form that config.json says they are saved in.

    The first forward decompresses them for good, and transformers would then save floats as if they were compressed.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    compressor = getattr(quantizer, "compressor", None)
    modules = [module for module in model.modules() if getattr(module, "quantization_status", None) == "decompressed"]
    if compressor is None or not modules:
        return
    from compressed_tensors.quantization import QuantizationStatus

    for module in modules:
        _recompress(module)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    compressor.add_decompress_hook(model)


def _recompress(module: Any) -> None:
    """Compress a module again, integers to themselves: in float32, since quotients of bfloat16 may round to others."""
    from compressed_tensors.compressors import compress_module

    scale = module.weight_scale.dtype
    integers = module.quantization_scheme.weights.type == "int"
    if integers:
        module.weight.data, module.weight_scale.data = module.weight.data.float(), module.weight_scale.data.float()
    compress_module(module)
    if integers:
        module.weight_scale.data = module.weight_scale.data.to(scale)
