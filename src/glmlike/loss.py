"""Cross-entropy of a linear head, of which no more than a slice of the logits exists at any time.

Two ways, chosen by what has to be rounded:

* by rows: a few tokens with all their logits, from which both gradients follow at once. Three matrix products, as in
  the plain loss, and the gradient of the head is summed over the chunks: exact only in float32 or wider.
* by tiles: a slice of the vocabulary with all tokens. Two passes, but each row of the head's gradient is written once
  and so rounded once: for a head in bfloat16 or float16 that is trained, where a sum in float32 would take twice the
  memory of the head itself; and for no more tokens than a trained head is wide, about. The second pass finds logits
  that the first kept: as many as fit where the head's gradient will be written, which is memory that is needed anyway,
  and a part beyond. The others are made again (a fourth product for them).

Logits are laid out [vocabulary, tokens]: on CPUs the products are a tenth to a quarter faster so.
On CUDA both are Liger's fused kernel instead, where liger-kernel is installed and serves the case.
Shapes: N labelled tokens, C tokens of a chunk, D hidden, V vocabulary, U vocabulary of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

IGNORED = -100
_CHUNK = 30_000_000  # logits of a chunk of tokens: 120 MB in float32
_TILE = 1 << 21  # logits of a tile; more than 8 MB in float32 leaves the caches
_PART = 1 << 18  # logits of a chunk that are worked on at a time
_NARROWEST = 256
_FEW = 1.25  # times the width of the head: tokens that fit where its gradient will be, and a few
_FUSED_ON = ("cuda",)  # devices whose kernels are Liger's
_KEPT = 0.4  # of the logits by tiles are kept beyond those in the gradient's place, where the plain loss has ten bytes


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

    A gradient is formed only for what requires one, and nothing beyond the loss without grad mode. Under torch.compile
    it runs outside the graph. There is no second derivative.

    Raises:
        IndexError: a label is neither a row of ``weight`` nor ``ignore_index``.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    mean: Tensor = _mean(hidden, weight, labels, ignore_index, num_items_in_batch, softcap, z_loss)
    return mean


def is_plain_head(head: nn.Module) -> bool:
    """Whether calling ``head`` is a product with its ``weight`` and nothing else: no bias, hook or sharded tensor."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or getattr(head, "bias", None) is not None:
        return False
    hooked: tuple[Any, ...] = (head._forward_hooks, head._forward_pre_hooks)
    hooked += (head._backward_hooks, head._backward_pre_hooks)
    return not any(hooked) and "forward" not in vars(head)


@torch.compiler.disable  # how many tokens are labelled is data
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
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)
    scored = (labels != ignore_index).nonzero()[:, 0]
    if len(scored) < len(labels):
        hidden, labels = hidden.index_select(0, scored), labels[scored]
    if ((labels < 0) | (labels >= len(weight))).any():
        found = sorted({int(labels.min()), int(labels.max())})
        raise IndexError(
            f"labels from {found[0]} to {found[-1]}: expected 0 to {len(weight) - 1}, the rows of the head, or "
            f"{ignore_index} for a token that is not scored."
        )
    grad = torch.is_grad_enabled()
    wanted = (grad and hidden.requires_grad, grad and weight.requires_grad)
    divisor = len(labels) if divisor is None else divisor
    # A low-precision gradient made ahead is rounded with the divisor's digits in it: what is left to multiply it by is
    # mostly a power of two, which rounds nothing. The whole divisor would make float16 underflow.
    low = weight.dtype.itemsize < 4 and wanted == (True, False)
    digits = math.frexp(float(divisor))[0] if low else 1.0
    with torch.autocast(hidden.device.type, enabled=False):
        shape = _Shape(softcap, z_loss, digits or 1.0)
        fused = _fused_sum(hidden, weight, labels, shape, wanted)
        if fused is not None:
            return fused.div(divisor.to(fused.device) if isinstance(divisor, Tensor) else divisor)
        total: Tensor = _Sum.apply(hidden, weight, labels, shape, wanted)  # type: ignore[no-untyped-call]
    return total.div(divisor.to(total.device) if isinstance(divisor, Tensor) else divisor)


def _fused_sum(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: _Shape, wanted: tuple[bool, bool]
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
        shape: _Shape,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.shape, ctx.wanted, ctx.ahead, ctx.kept = shape, wanted, None, None
        ctx.by_tiles = wanted[1] and (weight.dtype.itemsize < 4 or len(hidden) <= _FEW * hidden.shape[1])
        if any(wanted) and not ctx.by_tiles:
            total, *ctx.ahead = _by_rows(hidden, weight, labels, shape, wanted)
            ctx.save_for_backward(hidden, weight, labels)
            return total
        ctx.kept = _Kept(hidden, weight, _KEPT) if ctx.by_tiles else None
        normalizers, scores = _first_pass(hidden, weight, labels, shape, ctx.kept)
        ctx.save_for_backward(hidden, weight, labels, normalizers, scores)
        return shape.loss(normalizers, scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        shape, wanted = ctx.shape, ctx.wanted
        hidden, weight, labels, *first = ctx.saved_tensors
        if ctx.by_tiles:
            kept, ctx.kept = ctx.kept, None
            gradients = _second_pass(hidden, weight, labels, first[0], first[1], shape, scale, wanted[0], kept)
            return (*gradients, None, None, None)
        # Handed over, so that autograd keeps no copy: a second backward through a kept graph makes them anew.
        ahead = ctx.ahead or _by_rows(hidden, weight, labels, shape, wanted)[1:]
        ctx.ahead, scale = None, scale * shape.digits
        return (*(None if gradient is None else gradient.mul_(scale) for gradient in ahead), None, None, None)


class _Shape(NamedTuple):
    """What the loss is of a token's logits: everything that is not a matrix product."""

    softcap: float | None
    z_loss: float
    digits: float = 1.0
    """What gradients made ahead are divided by."""

    def capped(self, logits: Tensor) -> Tensor:
        """``logits``, capped in place."""
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def loss(self, normalizers_N: Tensor, scores_N: Tensor) -> Tensor:
        """The sum over tokens, of their log-sum-exps and their labels' logits."""
        losses = normalizers_N - scores_N
        if self.z_loss:
            losses = losses + self.z_loss * normalizers_N.square()
        return losses.sum()

    def gradient(self, logits: Tensor, normalizers_N: Tensor, labelled: bool = False) -> Tensor:
        """The loss's gradient by the logits before the cap, in place; ``labelled`` if they are the labels' own."""
        slopes = None if self.softcap is None else 1 - (logits / self.softcap).square()
        gradient = logits.sub_(normalizers_N).exp_()
        if self.z_loss:
            gradient.mul_(1 + 2 * self.z_loss * normalizers_N)
        if labelled:
            gradient.sub_(1)
        return gradient if slopes is None else gradient.mul_(slopes)

    def ahead(self, gradient: Tensor) -> Tensor:
        """``gradient`` as it is kept until the backward, in place."""
        return gradient if self.digits == 1.0 else gradient.div_(self.digits)


def _by_rows(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: _Shape, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The summed loss and its gradients, a chunk of tokens at a time."""
    vocabulary, count, wide = len(weight_VD), len(hidden_ND), _wide(hidden_ND)
    length = max(1, min(count, _CHUNK // vocabulary))
    length -= length % 64 if length > 64 else 0  # odd lengths make slow products
    width = min(vocabulary, max(_NARROWEST, _PART // length))
    buffer, work = hidden_ND.new_empty(vocabulary * length), hidden_ND.new_empty(width * length, dtype=wide)
    total = hidden_ND.new_zeros((), dtype=wide)
    grad_ND = torch.empty_like(hidden_ND) if wanted[0] else None
    grad_VD = torch.zeros_like(weight_VD) if wanted[1] else None
    for start in range(0, count, length):
        chunk_CD, labels_C = hidden_ND[start : start + length], labels_N[start : start + length]
        logits_VC = buffer[: vocabulary * len(chunk_CD)].view(vocabulary, len(chunk_CD))
        running = _LogSumExp(len(chunk_CD), work)
        for tile in _tiles(vocabulary, width):
            torch.mm(weight_VD[tile], chunk_CD.T, out=logits_VC[tile])
            running.add(shape.capped(_loaded(logits_VC[tile], work)))
        columns = torch.arange(len(chunk_CD), device=chunk_CD.device)
        scores_C, normalizers_C = shape.capped(logits_VC[labels_C, columns].to(wide)), running.value()
        total += shape.loss(normalizers_C, scores_C)
        for tile in _tiles(vocabulary, width):
            logits_UC = shape.capped(_loaded(logits_VC[tile], work))
            logits_VC[tile] = shape.ahead(shape.gradient(logits_UC, normalizers_C))
        at_labels_C = shape.ahead(shape.gradient(scores_C, normalizers_C, labelled=True))
        logits_VC[labels_C, columns] = at_labels_C.to(logits_VC.dtype)
        if grad_ND is not None:
            torch.mm(logits_VC.T, weight_VD, out=grad_ND[start : start + length])
        if grad_VD is not None:
            grad_VD.addmm_(logits_VC, chunk_CD)
    return total, grad_ND, grad_VD


def _first_pass(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: _Shape, kept: _Kept | None = None
) -> tuple[Tensor, Tensor]:
    """Each token's log-sum-exp and its label's logit, a tile of the vocabulary at a time; ``kept`` is filled."""
    buffer, work, width = _buffers(hidden_ND, len(weight_VD))
    running, scores_N = _LogSumExp(len(hidden_ND), work), torch.zeros_like(labels_N, dtype=work.dtype)
    for tile, found in _tiles_of(labels_N, len(weight_VD), width):
        logits_UN = _rows_of(buffer, tile, hidden_ND)
        if kept is not None and (place_UN := kept.rows(tile)) is not None:
            logits_UN = place_UN
        torch.mm(weight_VD[tile], hidden_ND.T, out=logits_UN)
        scores_N[found] = logits_UN[labels_N[found] - tile.start, found].to(work.dtype)
        running.add(shape.capped(_loaded(logits_UN, work)))
    return running.value(), shape.capped(scores_N)


def _second_pass(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    normalizers_N: Tensor,
    scores_N: Tensor,
    shape: _Shape,
    scale: Tensor,
    want_hidden: bool,
    kept: _Kept | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Both gradients, times ``scale``: the head's tile by tile, the tokens' as a sum over tiles. Uses up ``kept``."""
    buffer, work, width = _buffers(hidden_ND, len(weight_VD))
    grad_VD = torch.empty_like(weight_VD) if kept is None else kept.grad_VD
    at_labels_N = shape.gradient(scores_N.clone(), normalizers_N, labelled=True).mul_(scale)
    grad_ND = summand_ND = None
    if want_hidden:
        # The label's row weighs most: it is added unrounded here, and the sums of the others, rounded, below.
        grad_ND, summand_ND = at_labels_N[:, None] * weight_VD[labels_N], torch.empty_like(hidden_ND)
    for tile, found in _tiles_of(labels_N, len(weight_VD), width):
        logits_UN = _rows_of(buffer, tile, hidden_ND)
        found_UN = None if kept is None else kept.rows(tile)
        if found_UN is None:
            found_UN = torch.mm(weight_VD[tile], hidden_ND.T, out=logits_UN)
        wide_UN = _loaded(found_UN, work)
        logits_UN.copy_(shape.gradient(shape.capped(wide_UN), normalizers_N).mul_(scale))
        if grad_ND is not None and summand_ND is not None:
            logits_UN[labels_N[found] - tile.start, found] = 0
            grad_ND += torch.mm(logits_UN.T, weight_VD[tile], out=summand_ND)
        logits_UN[labels_N[found] - tile.start, found] = at_labels_N[found].to(logits_UN.dtype)
        torch.mm(logits_UN, hidden_ND, out=grad_VD[tile])
    return None if grad_ND is None else grad_ND.to(hidden_ND.dtype), grad_VD


class _Kept:
    """Logits on their way from the first pass to the second: first those in the memory of the head's gradient.

    They lie at its end. With the tiles taken in order, a tile of the gradient is written no further than where the
    logits of the next begin, whichever of N and D is larger.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, share: float) -> None:
        vocabulary, count = len(weight_VD), len(hidden_ND)
        self.grad_VD = torch.empty_like(weight_VD, memory_format=torch.contiguous_format)
        self.inside = min(vocabulary, self.grad_VD.numel() // count) if count else vocabulary
        place = self.grad_VD.view(-1)[self.grad_VD.numel() - self.inside * count :]
        beyond = min(vocabulary - self.inside, int(share * vocabulary))
        self.parts = (place.view(self.inside, count), hidden_ND.new_empty(beyond, count))

    def rows(self, tile: slice) -> Tensor | None:
        """The place of the logits of ``tile`` [U, N], if it has one."""
        if tile.stop <= self.inside:
            return self.parts[0][tile]
        if tile.start >= self.inside and tile.stop <= self.inside + len(self.parts[1]):
            return self.parts[1][tile.start - self.inside : tile.stop - self.inside]
        return None


class _LogSumExp:
    """The log-sum-exp of each token's logits, which come a tile at a time."""

    def __init__(self, tokens: int, like: Tensor) -> None:
        self.top = like.new_full((tokens,), -torch.inf)
        self.sum = like.new_zeros(tokens)

    def add(self, logits_UC: Tensor) -> None:
        """Take a tile in, and overwrite it."""
        top = torch.maximum(self.top, logits_UC.amax(0))
        self.sum.mul_(self.top.sub_(top).exp_()).add_(logits_UC.sub_(top).exp_().sum(0))
        self.top = top

    def value(self) -> Tensor:
        return self.top + self.sum.log()


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _buffers(hidden_ND: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """Room for a tile's logits as they are and widened, and how many rows of the vocabulary a tile has."""
    count = len(hidden_ND)
    width = min(vocabulary, max(_NARROWEST, _TILE // max(1, count)))
    return hidden_ND.new_empty(width * count), hidden_ND.new_empty(width * count, dtype=_wide(hidden_ND)), width


def _rows_of(buffer: Tensor, tile: slice, hidden_ND: Tensor) -> Tensor:
    rows = tile.stop - tile.start
    return buffer[: rows * len(hidden_ND)].view(rows, len(hidden_ND))


def _loaded(logits: Tensor, work: Tensor) -> Tensor:
    """``logits`` widened into ``work``, which they are computed on in."""
    return work[: logits.numel()].view(logits.shape).copy_(logits)


def _tiles(vocabulary: int, width: int) -> Iterator[slice]:
    for start in range(0, vocabulary, width):
        yield slice(start, min(start + width, vocabulary))


def _tiles_of(labels_N: Tensor, vocabulary: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Each tile, with the tokens whose label is in it."""
    tiles = list(_tiles(vocabulary, width))
    by_label, order = labels_N.sort()
    stops = torch.searchsorted(by_label, torch.tensor([tile.stop for tile in tiles], device=labels_N.device)).tolist()
    for tile, start, stop in zip(tiles, [0, *stops], stops, strict=False):
        yield tile, order[start:stop]
