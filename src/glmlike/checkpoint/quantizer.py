"""The integers of pre-quantized releases in transformers' loader: the one file that knows its quantizer interface.

Which matrices are integers is read from the files' headers when the model is still empty, and checked there. Then they
are either joined with their scales into floats as they are loaded, or loaded into modules that hold integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from glmlike.checkpoint.formats import FormatTable, table_of
from glmlike.checkpoint.headers import TensorInfo, require_shapes
from glmlike.checkpoint.layouts import Layout
from glmlike.checkpoint.on_the_fly import loading_name, source_pattern
from glmlike.checkpoint.quantized import SCALE, find_integers, with_integers
from glmlike.checkpoint.rules import Rule, scales_of
from glmlike.checkpoint.shards import tensors_of
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import INTEGER_METHOD
from glmlike.integers import dequantize
from glmlike.quantization import GlmIntConfig, dequantize_modules, keep_integers

logger = logging.get_logger(__name__)

_LAYERS = "model.layers."
_SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}  # .bin files say torch's own


def register() -> None:
    """Make transformers know :class:`GlmIntConfig` and its quantizer; safe to repeat."""
    if INTEGER_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(INTEGER_METHOD)(GlmIntConfig)
        register_quantizer(INTEGER_METHOD)(GlmIntQuantizer)


class GlmIntQuantizer(HfQuantizer):
    """Loads the integers of pre-quantized ChatGLM folders, as floats or as they are; makes none itself."""

    requires_calibration = True  # in transformers' words: only for weights that are quantized already
    quantization_config: GlmIntConfig

    def __init__(self, quantization_config: GlmIntConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._steps: list[Rule] = []

    @property
    def _bits(self) -> int:
        return self.quantization_config.bits or 8  # a config without bits never comes here: loading.py completes it

    @property
    def is_trainable(self) -> bool:
        """Adapters train on top of integers; the integers themselves do not."""
        return True

    def is_serializable(self) -> bool:
        """Kept integers save under native names and reload exactly."""
        return True

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        where = str(model.config.name_or_path)
        if not checkpoint_files:
            raise ConfigError(
                f"{where}: integers are loaded from files, and a state_dict was passed. Pass the folder alone, or "
                "floats with a config without quantization_config."
            )
        table = table_of(model.config.fused_format or "glmlike", model.config.dropped_rows)
        tensors = _tensors(checkpoint_files, table)
        shapes = table.foreign_shapes(model.config.spec)
        integers = find_integers(tensors, shapes, self._bits, where)
        require_shapes(with_integers(shapes, integers, self._bits), tensors)
        self._steps = [step for step in table.steps(model.config.spec) if integers.intersection(step.foreign)]
        if model.config.tie_word_embeddings and any(not step.native[0].startswith(_LAYERS) for step in self._steps):
            raise CheckpointError(
                f"{where}: its embedding is of integers and also its head, which no published release has. Make floats "
                f"of them first: `glmlike convert {where} DST --to glmlike`, then load DST."
            )
        if not integers:
            self._take_floats(where)
        elif not self.quantization_config.dequantize:
            self._keep(model, tensors)

    def _take_floats(self, where: str) -> None:
        """The files hold no integers: what config.json says is then a wish of their code, not a description."""
        if not self.quantization_config.dequantize:
            raise CheckpointError(
                f"{where}: its config asks to keep integers, but its matrices are of floats. Load it without "
                "quantization_config (and remove that from config.json if it is there); to quantize floats, pass a "
                "BitsAndBytesConfig or TorchAoConfig."
            )
        logger.warning_once(
            f"{where}: config.json says quantization_bit={self._bits}, but the weights are floats (its own code would "
            "quantize them after loading). They are loaded as they are; to quantize them, pass a BitsAndBytesConfig."
        )

    def _keep(self, model: Any, tensors: dict[str, TensorInfo]) -> None:
        modules = dict(model.named_modules())
        for step in self._steps:
            said = tensors[step.foreign[0] + SCALE].dtype
            dtype = _SCALE_DTYPES.get(said) or _dtype(said)
            for native in step.native:
                path = native.removesuffix(".weight")
                for found in {path, path.removeprefix("model.")} & modules.keys():  # a bare decoder has no prefix
                    keep_integers(model, found, self._bits, dtype)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """Before the usual rules, one that joins each integer matrix with its scales; kept ones load by the rules."""
        if not self.quantization_config.dequantize:
            return weight_conversions
        joins = [_join(step, self._bits) for step in self._steps]
        taken = {pattern for join in joins for pattern in join.source_patterns}  # transformers knows a rule by these
        return [*joins, *(rule for rule in weight_conversions if not taken.intersection(rule.source_patterns))]

    def get_weight_conversions(self) -> list[Any]:
        """None beyond those above."""
        return []

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Floats that came with the integers, in the model's dtype (transformers before 5.24 leaves the files')."""
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype != _dtype(model.config.dtype):
                parameter.data = parameter.data.to(_dtype(model.config.dtype))
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        dequantize_modules(model, _dtype(dtype))
        return model


def _dtype(dtype: Any) -> torch.dtype:
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert isinstance(found, torch.dtype)
    return found


def _tensors(files: list[str], table: FormatTable) -> dict[str, TensorInfo]:
    """What all files hold; a decoder saved without its head leaves the leading ``model.`` of native names out."""
    found = {name: info for file in files for name, info in tensors_of(Path(file)).items()}
    if table.name != "glmlike":
        return found
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": found[name] for name in found}


def _join(step: Rule, bits: int) -> Any:
    """The rule that makes the floats of one step out of its integers and their scales."""
    named = Rule(step.native, tuple(loading_name(name, step.layout) for name in step.foreign), step.layout)
    both = [named, scales_of(named)]
    # Renamings come before all other rules: one tensor that stays one tensor has its native name by then.
    renamed = len(step.native) == 1 and loading_name(step.foreign[0], step.layout) == step.foreign[0]
    sources = [source_pattern(rule.native[0] if renamed else rule.foreign[0]) for rule in both]
    # One target is named and the operation gives the others: 5.16 allows many to many for its own operations only.
    return WeightConverter(sources, [step.native[0]], [Join(step.native, step.layout, bits)])


@dataclass
class Join(ConversionOps):
    """Integers and scales of a step to its native floats, in the dtype of the parameter they fill."""

    native: tuple[str, ...]
    layout: Layout
    bits: int
    hf_quantizer = True  # this attribute tells transformers (5.24) to hand over both tensors in their own dtypes

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """The native tensors under their full names."""
        first = kwargs["full_layer_name"]
        weight, scale = (input_dict[pattern][0] for pattern in source_patterns)
        dtype = kwargs["model"].get_parameter(first).dtype
        parts = self.layout.to_native([dequantize(weight, scale, self.bits, dtype)])
        relative = [name.removeprefix("model.") for name in self.native]
        prefix = first.removesuffix(relative[0])
        return {prefix + name: part for name, part in zip(relative, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """None: the integers are gone."""
        raise NotImplementedError("dequantized weights have no way back to the integers they came from.")
