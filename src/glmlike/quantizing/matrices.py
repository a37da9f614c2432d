"""Tensors of a decoder quantized one at a time: what a quantized model would save, without ever holding the model.

bitsandbytes and torchao work through transformers' own quantizers, asked about each tensor of a model on the meta
device, so the files are byte for byte those of ``from_pretrained(quantization_config=…)`` and ``save_pretrained``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from glmlike.checkpoint.quantized import SCALE
from glmlike.configuration import GlmLikeConfig
from glmlike.errors import CheckpointError
from glmlike.integers import quantize
from glmlike.modeling import GlmLikeForCausalLM
from glmlike.quantizing.methods import Method

Tensors = dict[str, Tensor]
_NUMBERS = 2**18
_BLOCK = 64  # numbers that share a scale: what transformers' BitsAndBytesConfig gives


class Quantizer(Protocol):
    """``takes`` says whether a tensor is quantized; ``made`` is what a file holds for it; ``fields`` of config.json.

    ``metadata`` is what the files' headers must hold, and grows with what is made.
    """

    fields: dict[str, Any]
    metadata: dict[str, str]

    def takes(self, name: str) -> bool: ...

    def made(self, name: str, tensor: Tensor) -> Tensors: ...


def quantizer_of(method: Method, config: GlmLikeConfig, dtype: torch.dtype, skip: Sequence[str]) -> Quantizer:
    """What quantizes the tensors of a decoder; ``skip`` are parts of module names that stay floats besides the usual.

    Raises:
        GlmLikeError: a package is missing.
    """
    if method.engine == "glmlike":
        return _Integers(method, skip)
    return _Transformers(method, config, dtype, skip)


class _Integers:
    """The integers of the pre-quantized releases: the matrices of the layers, under native names."""

    def __init__(self, method: Method, skip: Sequence[str]) -> None:
        assert method.config is not None
        self.fields = dict(method.config().to_dict())
        self.metadata: dict[str, str] = {}
        self._bits, self._skip = method.bits, skip

    def takes(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return ".layers." in name and name.endswith("_proj.weight") and not any(part in module for part in self._skip)

    def made(self, name: str, tensor: Tensor) -> Tensors:
        try:
            rows, scale = quantize(tensor, self._bits)
        except CheckpointError as error:
            raise CheckpointError(f"{name!r}: {error}. Leave it out with skip (--skip).") from None
        return {name: rows, name + SCALE: scale}


class _Transformers:
    """transformers' quantizer of a method, over a model on the meta device."""

    def __init__(self, method: Method, config: GlmLikeConfig, dtype: torch.dtype, skip: Sequence[str]) -> None:
        from transformers.quantizers.auto import AutoHfQuantizer

        assert method.config is not None
        with torch.device("meta"):
            self._model = GlmLikeForCausalLM(config).to(dtype)
        asked = method.config()
        if skip:
            named = "llm_int8_skip_modules" if method.engine == "bitsandbytes" else "modules_to_not_convert"
            usual = AutoHfQuantizer.from_config(asked, pre_quantized=False).get_modules_to_not_convert(self._model)
            setattr(asked, named, sorted({*usual, *self._modules(skip)}))
        self._quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False)
        placed: dict[str, Any] = {"device_map": {"": "cpu"}, "dtype": dtype}
        self._quantizer.validate_environment(**placed, weights_only=True)
        self._quantizer.preprocess_model(model=self._model, **placed, checkpoint_files=None)
        self.fields = dict(self._quantizer.quantization_config.to_dict())
        self.metadata: dict[str, str] = {}
        made: dict[str, Callable[[str], Tensors]] = {"bitsandbytes": self._plain, "torchao": self._flattened}
        self._collect = made[method.engine]
        self._four_bits = bool(self.fields.get("load_in_4bit"))

    def _modules(self, parts: Sequence[str]) -> set[str]:
        linear = (name for name, module in self._model.named_modules() if isinstance(module, torch.nn.Linear))
        return {name for name in linear if any(part in name for part in parts)}

    def takes(self, name: str) -> bool:
        return bool(self._quantizer.param_needs_quantization(self._model, name))

    def made(self, name: str, tensor: Tensor) -> Tensors:
        if self._four_bits:
            return self._by_rows(name, tensor)
        path, _, kind = name.rpartition(".")
        module = self._model.get_submodule(path)
        empty = module._parameters[kind]
        done = self._quantizer.get_quantize_ops().convert(
            {name: tensor}, full_layer_name=name, model=self._model, config=self._model.config, missing_keys=set()
        )
        for value in done.values():  # torchao puts it into the module itself
            module._parameters[kind] = value
        try:
            return self._collect(name)
        finally:
            module._parameters[kind] = empty

    def _by_rows(self, name: str, tensor: Tensor) -> Tensors:
        """bitsandbytes' 4 bits, some rows at a time: on a CPU it takes 160 bytes a number while it works.

        Blocks of numbers are quantized each by itself; only scales that are quantized in turn are taken together.
        """
        from bitsandbytes import functional

        asked = self._quantizer.quantization_config
        rows = max(1, _NUMBERS // tensor.shape[1]) if tensor.shape[1] % _BLOCK == 0 else tensor.shape[0]
        parts = [
            functional.quantize_4bit(part, blocksize=_BLOCK, quant_type=asked.bnb_4bit_quant_type)
            for part in tensor.split(rows)  # type: ignore[no-untyped-call]
        ]
        scales = torch.cat([state.absmax for _, state in parts])
        nested: dict[str, Any] = {}
        if asked.bnb_4bit_use_double_quant:
            offset = scales.mean()
            scales, second = functional.quantize_blockwise(scales - offset, blocksize=256)
            nested = {"offset": offset, "state2": second}
        state = functional.QuantState(
            absmax=scales,
            shape=tensor.shape,
            dtype=tensor.dtype,
            blocksize=_BLOCK,
            code=parts[0][1].code,
            quant_type=asked.bnb_4bit_quant_type,
            **nested,
        )
        packed = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {name: torch.cat([integers for integers, _ in parts]), **packed}

    def _plain(self, name: str) -> Tensors:
        path = name.rpartition(".")[0]
        state = self._model.get_submodule(path).state_dict(prefix=f"{path}.")
        return {key: tensor for key, tensor in state.items() if key != f"{path}.bias"}

    def _flattened(self, name: str) -> Tensors:
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, metadata = flatten_tensor_state_dict({name: self._model.get_parameter(name).data})
        names = [*json.loads(self.metadata.get("tensor_names", "[]")), *json.loads(metadata["tensor_names"])]
        self.metadata |= {**metadata, "tensor_names": json.dumps(names)}
        return dict(tensors)
