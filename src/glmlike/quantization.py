"""The integers of the pre-quantized ChatGLM releases as modules: int8 or packed int4 rows with a scale each.

By default such a checkpoint is dequantized as it is loaded and nothing here remains in the model. Kept
(``GlmIntConfig(dequantize=False)``), a matrix stays in its integers and is dequantized whenever it is used, one matrix
at a time, on any device. Shapes: B batch, T tokens, I input features, O output features or rows.
"""

# No `from __future__ import annotations`: it is not needed, and modules' annotations stay what they say.
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from glmlike.errors import ConfigError
from glmlike.hub_json import INTEGER_METHOD
from glmlike.integers import dequantize


class GlmIntConfig(QuantizationConfigMixin):
    """How ``from_pretrained`` reads a checkpoint of the pre-quantized ChatGLM-6B or ChatGLM2-6B releases.

    ``dequantize=True`` (what such a folder gets by itself) makes an ordinary float model of it. ``dequantize=False``
    keeps the integers: a quarter (int4) or half (int8) of float16's memory, dequantized at each use. ``bits`` is what
    the folder's config.json says; None takes it from there.

    It reads integers that are there. To quantize floats, use transformers' bitsandbytes or torchao configs.

    Raises:
        ConfigError: ``bits`` other than 4, 8 or None, or the ``quant_method`` of another class.
    """

    def __init__(self, bits: int | None = None, dequantize: bool = True, quant_method: str = INTEGER_METHOD) -> None:
        if bits is not None and (type(bits) is not int or bits not in (4, 8)):
            raise ConfigError(f"GlmIntConfig: bits={bits!r}: expected 4 or 8, the widths that were published.")
        if quant_method != INTEGER_METHOD:
            raise ConfigError(f"GlmIntConfig: quant_method={quant_method!r}: expected {INTEGER_METHOD!r}.")
        self.quant_method = quant_method
        self.bits = bits
        self.dequantize = dequantize


class _IntProduct(torch.autograd.Function):
    """``inputs @ dequantized.T``; the backward pass dequantizes again instead of keeping the matrix."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return inputs @ dequantize(weight, scale, bits, inputs.dtype).mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ dequantize(weight, scale, ctx.bits, gradient.dtype), None, None, None


class IntLinear(nn.Linear):
    """A linear map whose matrix is int8 [O, I] or packed int4 [O, I/2] rows times ``weight_scale`` [O].

    The integers are buffers: they have no gradient, and the module's own dtype is that of what surrounds it. Gradients
    reach the inputs and the bias, so adapters train on top of it.
    """

    weight: Tensor  # a buffer here
    weight_scale: Tensor

    def __init__(self, like: nn.Linear, bits: int, scale_dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = like.in_features, like.out_features, bits
        _add_integers(self, like.weight, bits, scale_dtype)
        self.bias = like.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., O] in the dtype of ``input``."""
        output: Tensor = _IntProduct.apply(input, self.weight, self.weight_scale, self.bits)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias

    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """The ordinary module that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(dequantize(self.weight, self.weight_scale, self.bits, dtype))
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        """The sizes of the map, and the width of its integers."""
        return f"{super().extra_repr()}, bits={self.bits}"


class IntEmbedding(nn.Embedding):
    """A table of int8 [O, I] or packed int4 [O, I/2] rows times ``weight_scale`` [O]; floats are made of used rows."""

    weight: Tensor  # a buffer here
    weight_scale: Tensor

    def __init__(self, like: nn.Embedding, bits: int, scale_dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.bits = like.num_embeddings, like.embedding_dim, bits
        self.padding_idx, self.max_norm, self.norm_type = like.padding_idx, None, like.norm_type
        self.scale_grad_by_freq, self.sparse = False, False
        self.dtype = like.weight.dtype
        _add_integers(self, like.weight, bits, scale_dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Ids [B, T] to rows [B, T, I], in the dtype that the table had before."""
        return dequantize(self.weight[input], self.weight_scale[input], self.bits, self.dtype)

    def dequantized(self, dtype: torch.dtype) -> nn.Embedding:
        """The ordinary module that looks up the same rows."""
        table = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        table.weight = nn.Parameter(dequantize(self.weight, self.weight_scale, self.bits, dtype))
        return table

    def extra_repr(self) -> str:
        """The sizes of the table, and the width of its integers."""
        return f"{super().extra_repr()}, bits={self.bits}"


def _add_integers(module: nn.Module, like: Tensor, bits: int, scale_dtype: torch.dtype) -> None:
    rows, columns = like.shape
    integers = torch.empty(rows, columns * bits // 8, dtype=torch.int8, device=like.device)
    module.register_buffer("weight", integers)
    module.register_buffer("weight_scale", torch.empty(rows, dtype=scale_dtype, device=like.device))


def keep_integers(model: nn.Module, path: str, bits: int, scale_dtype: torch.dtype) -> None:
    """Put an empty integer module in place of the Linear or Embedding at ``path``."""
    old = model.get_submodule(path)
    new = IntEmbedding(old, bits, scale_dtype) if isinstance(old, nn.Embedding) else IntLinear(old, bits, scale_dtype)  # type: ignore[arg-type]
    _replace(model, path, new)


def dequantize_modules(model: nn.Module, dtype: torch.dtype) -> None:
    """Put ordinary modules in ``dtype`` in place of all integer ones, each matrix let go once it is used."""
    for path, module in list(model.named_modules()):
        if isinstance(module, (IntLinear, IntEmbedding)):
            _replace(model, path, module.dequantized(dtype))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
