"""The parts of the chunked linear cross-entropy: sums and gradients of tokens against a vocabulary, slice by slice.

Two ways, chosen by what has to be rounded:

* by rows: a few tokens with all their logits, from which both gradients follow at once. Three matrix products, as in
  the plain loss, and the gradient of the head is summed over the chunks: exact only in float32 or wider.
* by tiles: a slice of the vocabulary with all tokens. Two passes, but each row of the head's gradient is written once
  and so rounded once: for a head in bfloat16 or float16 that is trained, where a sum in float32 would take twice the
  memory of the head itself; and for no more tokens than a trained head is wide, about. The second pass finds logits
  that the first kept: as many as fit where the head's gradient will be written, which is memory that is needed anyway,
  and a part beyond. The others are made again (a fourth product for them).

Logits are laid out [vocabulary, tokens]: on CPUs the products are a tenth to a quarter faster so.
Shapes: N labelled tokens, C tokens of a chunk, D hidden, V vocabulary, U vocabulary of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 30_000_000  # logits of a chunk of tokens: 120 MB in float32
_TILE = 1 << 21  # logits of a tile; more than 8 MB in float32 leaves the caches
_PART = 1 << 18  # logits of a chunk that are worked on at a time
_NARROWEST = 256
_FEW = 1.25  # times the width of the head: tokens that fit where its gradient will be, and a few
_KEPT = 0.4  # of the logits by tiles are kept beyond those in the gradient's place, where the plain loss has ten bytes


class Shape(NamedTuple):
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


def goes_by_tiles(hidden_ND: Tensor, weight_VD: Tensor, wanted: tuple[bool, bool]) -> bool:
    """Which of the two ways it is, by what is wanted: gradients of (the tokens, the head)."""
    return wanted[1] and (weight_VD.dtype.itemsize < 4 or len(hidden_ND) <= _FEW * hidden_ND.shape[1])


def by_rows(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: Shape, wanted: tuple[bool, bool]
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


def first_pass(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, shape: Shape, kept: Kept | None = None
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


def second_pass(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    normalizers_N: Tensor,
    scores_N: Tensor,
    shape: Shape,
    scale: Tensor,
    want_hidden: bool,
    kept: Kept | None = None,
    shrink: float = 1.0,
) -> tuple[Tensor | None, Tensor]:
    """Both gradients, times ``scale``: the head's tile by tile, the tokens' as a sum over tiles. Uses up ``kept``.

    The head's, a sum over many tokens, is multiplied by ``shrink`` too, before it is rounded.
    """
    buffer, work, width = _buffers(hidden_ND, len(weight_VD))
    grad_VD = torch.empty_like(weight_VD) if kept is None else kept.grad_VD
    at_labels_N = shape.gradient(scores_N.clone(), normalizers_N, labelled=True).mul_(scale)
    factor_ND = hidden_ND if shrink == 1.0 else hidden_ND * shrink
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
        torch.mm(logits_UN, factor_ND, out=grad_VD[tile])
    return None if grad_ND is None else grad_ND.to(hidden_ND.dtype), grad_VD


class Kept:
    """Logits on their way from the first pass to the second: first those in the memory of the head's gradient.

    They lie at its end. With the tiles taken in order, a tile of the gradient is written no further than where the
    logits of the next begin, whichever of N and D is larger.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, share: float = _KEPT) -> None:
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
