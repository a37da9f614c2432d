"""Cross-entropy of a linear head, of which no more than a slice of the logits exists at any time.

Three ways to one number: an autograd function of our own (:mod:`glmlike.loss_chunks` computes); within a graph of
torch.compile an operator, which the compiler does not look into; and on CUDA Liger's fused kernel in the place of
either's computation, where liger-kernel is installed and serves the case.
Shapes: N labelled tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from glmlike.loss_chunks import Kept, Shape, by_rows, first_pass, goes_by_tiles, second_pass

IGNORED = -100
_FUSED_ON = ("cuda",)  # devices whose kernels are Liger's


def causal_lm_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """What transformers' ``loss_function`` gives for the logits ``hidden @ weight.T``, without those logits.

    ``labels`` [B, T] are shifted here (``labels[t + 1]`` is scored at ``t``); ``shift_labels`` [B, T] are in place
    already and replace them. ``num_items_in_batch`` divides the sum where it is given (gradient accumulation), else the
    number of labelled tokens does. Other arguments are ignored, as transformers' function ignores them, except
    ``softcap`` and ``z_loss`` of :func:`linear_cross_entropy`.
    """
    if shift_labels is None:
        if labels is None:
            raise ValueError("neither labels nor shift_labels: give one of them.")
        shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
    chosen = {name: kwargs[name] for name in ("softcap", "z_loss") if name in kwargs}
    return linear_cross_entropy(
        hidden, weight, shift_labels, ignore_index=ignore_index, num_items_in_batch=num_items_in_batch, **chosen
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    num_items_in_batch: Tensor | int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """``F.cross_entropy(F.linear(hidden, weight).float(), labels)``, to rounding, in a fraction of its memory.

    ``hidden`` [..., D], ``weight`` [V, D] of the same type (or under autocast), ``labels`` [...]. Tokens whose label is
    ``ignore_index`` cost nothing. The mean is over the others, or their sum is divided by ``num_items_in_batch``; the
    mean of none is NaN, as in torch. ``softcap`` c makes the logits ``c * tanh(logits / c)`` (Gemma 2, arXiv
    2408.00118); ``z_loss`` adds that multiple of each token's squared log-sum-exp (PaLM, arXiv 2204.02311).

    On CUDA with liger-kernel installed, its fused kernel makes the sum and the gradients (a head's in float32). Then a
    second backward through a kept graph is wrong: Liger scales its gradients in place.

    A gradient is formed only for what requires one, and nothing beyond the loss without grad mode. There is no second
    derivative. Under torch.compile it is one operator of the graph, whatever number of tokens is labelled; both
    gradients are then made in the forward, and rounded again if the loss is scaled by anything but a power of two.

    Raises:
        IndexError: a label is neither a row of ``weight`` nor ``ignore_index``.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.compiler.is_compiling():
        return _mean(hidden, weight, labels, ignore_index, num_items_in_batch, softcap, z_loss)
    if num_items_in_batch is not None and not isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = torch.full((), num_items_in_batch)
    options = (ignore_index, softcap, z_loss, *_wanted(hidden, weight))
    mean: Tensor = _OPERATOR(hidden, weight, labels, num_items_in_batch, *options)[0]
    return mean


def is_plain_head(head: nn.Module) -> bool:
    """Whether calling ``head`` is a product with its ``weight`` and nothing else: no bias, hook or sharded tensor."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or getattr(head, "bias", None) is not None:
        return False
    hooked: tuple[Any, ...] = (head._forward_hooks, head._forward_pre_hooks)
    hooked += (head._backward_hooks, head._backward_pre_hooks)
    return not any(hooked) and "forward" not in head.__dict__


def _mean(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    divisor: Tensor | int | None,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The sum of the loss over the labelled tokens, divided by ``divisor`` or by their number."""
    hidden, labels, _ = _labelled(hidden, weight, labels, ignore_index)
    wanted = _wanted(hidden, weight)
    divisor = len(labels) if divisor is None else divisor
    digits = _digits(divisor) if weight.dtype.itemsize < 4 and wanted == (True, False) else 1.0
    with torch.autocast(hidden.device.type, enabled=False):
        shape = Shape(softcap, z_loss, digits)
        fused = _fused_sum(hidden, weight, labels, shape, wanted)
        total: Tensor = _Sum.apply(hidden, weight, labels, shape, wanted) if fused is None else fused  # type: ignore[no-untyped-call]
    return total.div(divisor.to(total.device) if isinstance(divisor, Tensor) else divisor)


def _labelled(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The labelled tokens [N, D], their labels, and which they are of all (None: all of them)."""
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)
    scored = (labels != ignore_index).nonzero()[:, 0]
    some = len(scored) < len(labels)
    if some:
        hidden, labels = hidden.index_select(0, scored), labels[scored]
    if ((labels < 0) | (labels >= len(weight))).any():
        found = sorted({int(labels.min()), int(labels.max())})
        raise IndexError(
            f"labels from {found[0]} to {found[-1]}: expected 0 to {len(weight) - 1}, the rows of the head, or "
            f"{ignore_index} for a token that is not scored."
        )
    return hidden, labels, scored if some else None


def _wanted(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether there will be gradients of the tokens and of the head."""
    grad = torch.is_grad_enabled()
    return grad and hidden.requires_grad, grad and weight.requires_grad


def _digits(divisor: Tensor | int) -> float:
    """What a low-precision gradient of the sum, made ahead, is divided by before it is rounded.

    What is left to multiply it by is mostly a power of two then, which rounds nothing. The whole divisor would make
    float16 underflow.
    """
    return math.frexp(float(divisor))[0] or 1.0


def _fused_sum(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: Shape, wanted: tuple[bool, bool]
) -> Tensor | None:
    """The summed loss by Liger's kernel, or None where it does not serve.

    It computes in float32, needs a token, and forms no gradient of the head unless the tokens' is wanted too
    (liger_kernel 0.8.5, ops/fused_linear_cross_entropy.py).
    """
    if hidden_ND.device.type not in _FUSED_ON or hidden_ND.dtype == torch.float64:
        return None
    kernel = _fused_kernel() if len(labels_N) and wanted != (False, True) else None
    if kernel is None:
        return None
    return kernel(
        hidden_ND,
        weight_VD,
        labels_N,
        reduction="sum",
        softcap=shape.softcap,
        lse_square_scale=shape.z_loss,
        accum_dtype=torch.float32 if wanted[1] else None,
    )


@cache
def _fused_kernel() -> Callable[..., Tensor] | None:
    """Liger's fused linear cross-entropy; None where liger-kernel (or Triton, which it needs) is not installed."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except (ImportError, RuntimeError):  # Triton raises the latter where it finds no driver
        return None
    kernel: Callable[..., Tensor] = liger_fused_linear_cross_entropy
    return kernel


class _Sum(torch.autograd.Function):
    """The summed loss of [N, D] tokens. By rows, its gradients are made ahead; by tiles, when they are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        shape: Shape,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.shape, ctx.wanted, ctx.ahead, ctx.kept = shape, wanted, None, None
        ctx.by_tiles = goes_by_tiles(hidden, weight, wanted)
        if any(wanted) and not ctx.by_tiles:
            total, *ctx.ahead = by_rows(hidden, weight, labels, shape, wanted)
            ctx.save_for_backward(hidden, weight, labels)
            return total
        ctx.kept = Kept(hidden, weight) if ctx.by_tiles else None
        normalizers, scores = first_pass(hidden, weight, labels, shape, ctx.kept)
        ctx.save_for_backward(hidden, weight, labels, normalizers, scores)
        return shape.loss(normalizers, scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        shape, wanted = ctx.shape, ctx.wanted
        hidden, weight, labels, *first = ctx.saved_tensors
        if ctx.by_tiles:
            kept, ctx.kept = ctx.kept, None
            gradients = second_pass(hidden, weight, labels, first[0], first[1], shape, scale, wanted[0], kept)
            return (*gradients, None, None, None)
        # Handed over, so that autograd keeps no copy: a second backward through a kept graph makes them anew.
        ahead = ctx.ahead or by_rows(hidden, weight, labels, shape, wanted)[1:]
        ctx.ahead, scale = None, scale * shape.digits
        return (*(None if gradient is None else gradient.mul_(scale) for gradient in ahead), None, None, None)


def _ahead(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: Shape, wanted: tuple[bool, bool], shrink: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The summed loss, and its gradients without waiting for what they will be multiplied by.

    They are divided by ``shape.digits``; the head's, if in float16, is multiplied by ``shrink``.
    """
    leaves = [tensor.detach().requires_grad_(one) for tensor, one in zip((hidden_ND, weight_VD), wanted, strict=True)]
    with torch.enable_grad():
        fused = _fused_sum(leaves[0], leaves[1], labels_N, shape, wanted) if shrink == 1.0 else None
    if fused is not None:
        made = iter(torch.autograd.grad(fused, [leaf for leaf in leaves if leaf.requires_grad]) if any(wanted) else ())
        grad_ND, grad_VD = (next(made).div_(shape.digits) if one else None for one in wanted)
        return fused.detach(), grad_ND, grad_VD
    if any(wanted) and not goes_by_tiles(hidden_ND, weight_VD, wanted):
        return by_rows(hidden_ND, weight_VD, labels_N, shape, wanted)
    kept = Kept(hidden_ND, weight_VD) if any(wanted) else None
    first = first_pass(hidden_ND, weight_VD, labels_N, shape, kept)
    total = shape.loss(*first)
    if kept is None:
        return total, None, None
    scale = total.new_tensor(1 / shape.digits)
    return total, *second_pass(hidden_ND, weight_VD, labels_N, *first, shape, scale, wanted[0], kept, shrink)


def _mean_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    divisor: Tensor | None,
    ignore_index: int,
    softcap: float | None,
    z_loss: float,
    want_hidden: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss; what its two gradients are still to be multiplied by; these, of all tokens and of the head.

    Gradients that are not wanted are empty. All are contiguous and none is a view, as an operator's outputs must be.
    """
    wanted = (want_hidden, want_weight)
    hidden_ND, labels_N, scored = _labelled(hidden, weight, labels, ignore_index)
    divisor = labels_N.new_tensor(len(labels_N)) if divisor is None else divisor.to(labels_N.device).reshape(())
    digits = _digits(divisor) if weight.dtype.itemsize < 4 and any(wanted) else 1.0
    # A sum over all tokens may pass float16's largest number, which no gradient scaler could mend afterwards.
    shrink = 2.0 ** -(len(labels_N).bit_length() // 2) if weight.dtype == torch.float16 and want_weight else 1.0
    with torch.autocast(hidden.device.type, enabled=False):
        total, grad_ND, grad_VD = _ahead(hidden_ND, weight, labels_N, Shape(softcap, z_loss, digits), wanted, shrink)
    if grad_ND is not None and scored is not None:
        grad_ND = hidden.new_zeros(labels.numel(), hidden.shape[-1]).index_copy_(0, scored, grad_ND)
    of_hidden = hidden.new_empty(0) if grad_ND is None else grad_ND.reshape(hidden.shape).contiguous()
    of_weight = hidden.new_empty(0) if grad_VD is None else grad_VD.contiguous()
    factors = total.new_tensor([digits, digits / shrink]) / divisor
    return (total / divisor).to(total.dtype), factors, of_hidden, of_weight


def _registered() -> Callable[..., tuple[Tensor, ...]]:
    """``_mean_and_gradients`` as an operator of torch, which compilers call and do not look into.

    The name is this module's: the same code merged into another file makes an operator of its own.
    """
    name = f"glmlike::linear_cross_entropy_{zlib.crc32(__name__.encode()):08x}"
    operator = torch.library.custom_op(name, _mean_and_gradients, mutates_args=())

    @operator.register_fake
    def _(hidden: Tensor, weight: Tensor, labels: Tensor, divisor: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scalars = (hidden.new_empty((), dtype=wide), hidden.new_empty(2, dtype=wide))
        found = zip((hidden, weight), options[-2:], strict=True)
        return (*scalars, *(tensor.new_empty(tensor.shape if one else 0) for tensor, one in found))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.wanted = inputs[-2:]
        ctx.set_materialize_grads(False)  # zeros of the size of the head otherwise
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    def multiplied(ctx: Any, scale: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if scale is None:
            return (None,) * 9
        factors, *ahead = ctx.saved_tensors
        found = zip(ahead, (scale * factors).unbind(), ctx.wanted, strict=True)
        return (*(gradient * factor if one else None for gradient, factor, one in found), *[None] * 7)

    operator.register_autograd(multiplied, setup_context=keep)
    return operator


_OPERATOR = _registered()
