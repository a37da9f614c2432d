"""Folders that compressed-tensors itself compresses, beside what it itself makes of them again: to test against."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from packed_folders import is_quantized


@dataclass(frozen=True)
class Recipe:
    """One way to compress: the library's name of the format, and what its QuantizationArgs are told of the weights.

    ``inputs`` are those of the activations. A ``split`` is another format and other arguments for the down projections.
    """

    format: str
    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None
    split: tuple[str, dict[str, Any]] | None = None

    def schemes(self) -> list[tuple[str, Any]]:
        """The library's schemes, each with its format; the last is that of all matrices that no other names."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        def scheme(fmt: str, targets: list[str], weights: dict[str, Any]) -> Any:
            inputs = QuantizationArgs(**self.inputs) if self.inputs else None
            return QuantizationScheme(
                targets=targets, weights=QuantizationArgs(**weights), input_activations=inputs, format=fmt
            )

        split = [(self.split[0], scheme(self.split[0], ["re:.*down_proj"], self.split[1]))] if self.split else []
        return [*split, (self.format, scheme(self.format, ["Linear"], self.weights))]

    def config(self) -> dict[str, Any]:
        """The ``quantization_config`` that the library writes."""
        from compressed_tensors.quantization import QuantizationConfig

        groups = {f"group_{number}": scheme for number, (_, scheme) in enumerate(self.schemes())}
        fmt = "mixed-precision" if self.split else self.format
        made = QuantizationConfig(
            config_groups=groups, format=fmt, quantization_status="compressed", ignore=["lm_head"]
        )
        found: dict[str, Any] = json.loads(json.dumps(made.to_dict(), default=str))
        return found


_GROUP = {"strategy": "group", "group_size": 32}
_MX = {**_GROUP, "type": "float", "scale_dtype": torch.uint8}
_INT8, _FP8 = {"num_bits": 8}, {"num_bits": 8, "type": "float"}
_NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_NVFP4["scale_dtype"] = torch.float8_e4m3fn
_BY_TOKEN = {"strategy": "token", "dynamic": True}
RECIPES = {
    "int4-group": Recipe("pack-quantized", {"num_bits": 4, **_GROUP}),
    "int4-group-zeros": Recipe("pack-quantized", {"num_bits": 4, **_GROUP, "symmetric": False}),
    "int4-channel": Recipe("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    "int4-channel-zeros": Recipe("pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}),
    "int4-tensor": Recipe("pack-quantized", {"num_bits": 4, "strategy": "tensor"}),
    "int4-ordered": Recipe("pack-quantized", {"num_bits": 4, **_GROUP, "actorder": "weight"}),
    "int2-group": Recipe("pack-quantized", {"num_bits": 2, **_GROUP}),
    "int8-packed": Recipe("pack-quantized", {"num_bits": 8, **_GROUP, "symmetric": False}),
    "int8-channel": Recipe("int-quantized", {**_INT8, "strategy": "channel"}, inputs={"num_bits": 8, **_BY_TOKEN}),
    "int8-tensor": Recipe("int-quantized", {**_INT8, "strategy": "tensor"}),
    "int8-zeros": Recipe("int-quantized", {**_INT8, "strategy": "channel", "symmetric": False}),
    "naive-int8": Recipe("naive-quantized", {**_INT8, **_GROUP, "symmetric": False}),
    "naive-int4": Recipe("naive-quantized", {"num_bits": 4, "strategy": "channel"}),
    "naive-fp8": Recipe("naive-quantized", {**_FP8, **_GROUP}),
    "fp8-tensor": Recipe("float-quantized", {**_FP8, "strategy": "tensor"}, inputs={**_FP8, "strategy": "tensor"}),
    "fp8-channel": Recipe("float-quantized", {**_FP8, "strategy": "channel"}, inputs={**_FP8, **_BY_TOKEN}),
    "fp8-block": Recipe("float-quantized", {**_FP8, "strategy": "block", "block_structure": [16, 32]}),
    "nvfp4": Recipe("nvfp4-pack-quantized", _NVFP4),
    "mxfp4": Recipe("mxfp4-pack-quantized", {"num_bits": 4, **_MX}),
    "mxfp8": Recipe("mxfp8-quantized", {"num_bits": 8, **_MX}),
    "mixed": Recipe("nvfp4-pack-quantized", _NVFP4, split=("float-quantized", {**_FP8, "strategy": "channel"})),
}
"""Every format of the library that is read, with every way to share scales that it has."""


def compressed(weight: Tensor, fmt: str, scheme: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a matrix as the library stores them, and the matrix as the library reads those."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args, state = scheme.weights, {"weight": weight}
    parts, axes = _parts(weight, args)
    if fmt.startswith("nvfp4"):
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    low, high = (parts.amin(axes), parts.amax(axes)) if axes else (parts.amin(), parts.amax())
    scale, zero = calculate_qparams(low, high, args, state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(fmt)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def _parts(weight: Tensor, args: Any) -> tuple[Tensor, tuple[int, ...]]:
    """The matrix cut into what has one scale each, and the axes of a cut."""
    if args.strategy == "tensor":
        return weight, ()
    if args.strategy == "channel":
        return weight[:, None], (2,)
    if args.strategy == "block":
        rows, columns = args.block_structure
        return weight.unflatten(0, (-1, rows)).unflatten(-1, (-1, columns)), (1, 3)
    return weight.unflatten(-1, (-1, args.group_size)), (-1,)


def write_compressed(
    source: Path,
    target: Path,
    recipe: Recipe,
    chosen: Callable[[str], bool] = is_quantized,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Path, Path]:
    """``source``, a folder of floats, as ``target``/packed and, as the library reads it, as ``target``/floats."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    packed, meant = dict(tensors), dict(tensors)
    *split, rest = recipe.schemes()
    for name in filter(chosen, sorted(tensors)):
        fmt, scheme = split[0] if split and "down_proj" in name else rest
        stored, read = compressed(packed.pop(name), fmt, scheme)
        meant[name] = read.to(dtype)
        packed |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in stored.items()}
        if recipe.inputs and not recipe.inputs.get("dynamic"):
            packed[name.removesuffix("weight") + "input_scale"] = torch.ones(1, dtype=dtype)
    config = json.loads((source / "config.json").read_text(encoding="utf8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    for folder, content, more in (
        ("packed", packed, {"quantization_config": recipe.config()}),
        ("floats", meant, {}),
    ):
        (target / folder).mkdir(parents=True)
        save_file(content, target / folder / "model.safetensors", metadata={"format": "pt"})
        (target / folder / "config.json").write_text(json.dumps({**config, **more}), encoding="utf8")
    return target / "packed", target / "floats"
