"""Packed rows: several samples one after another in one row, told apart by ``seq_idx`` [B, T].

Every run of equal values in a row of ``seq_idx`` is one sample (transformers' DataCollatorWithFlattening writes
0 0 0 1 1 2 ...). Samples do not see each other, and each has positions of its own. Everything here is counted within
samples without a loop over them. Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor


class Samples:
    """The samples of rows of tokens, and sums over each; without ``seq_idx``, every row is one sample.

    ``number`` [B, T] says which sample of its row a token is in, from 0; ``first`` [B, T] where that sample begins.
    """

    def __init__(self, seq_idx: Tensor | None, like: Tensor) -> None:
        """``like`` is any tensor [B, T] of the rows."""
        self.number = torch.zeros(like.shape[:2], dtype=torch.long, device=like.device)
        self.first = self.number
        self.packed = seq_idx is not None
        if seq_idx is not None:
            place = torch.arange(like.shape[1], device=like.device).expand(like.shape[:2])
            begins = torch.zeros_like(self.number, dtype=torch.bool)
            begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
            self.number = begins.long().cumsum(-1)
            self.first = torch.where(begins, place, 0).cummax(-1).values

    def count(self, marked: Tensor) -> Tensor:
        """For every token [B, T], how many of its sample up to and with itself are marked."""
        counts = marked.long().cumsum(-1)
        return counts - (counts - marked.long()).gather(1, self.first) if self.packed else counts

    def over(self, values: Tensor, how: Literal["sum", "amax", "amin"]) -> Tensor:
        """For every token [B, T] the sum, or greatest or least, of the values of its whole sample."""
        values = values.long()
        if not self.packed:
            whole: Tensor = getattr(values, how)(-1, keepdim=True)
            return whole.expand_as(values)
        reduced = torch.zeros_like(values).scatter_reduce(1, self.number, values, how, include_self=False)
        return reduced.gather(1, self.number)

    def labels(self, attention_mask: Tensor | None) -> Tensor:
        """[B, T]: tokens that may see each other have the same number; padding (0 in the mask) has -1."""
        return self.number if attention_mask is None else self.number.masked_fill(attention_mask == 0, -1)


def samples_of_positions(position_ids: Tensor) -> Tensor | None:
    """The ``seq_idx`` that plain positions [B, T] say, which count from 0 in every sample; None for any others.

    Collators that know nothing of blanks write such (DataCollatorWithFlattening, TRL's packing). Within a compiled
    graph, which cannot look at them, they are taken for plain.
    """
    begins = position_ids == 0
    if not torch.compiler.is_compiling():
        steps = begins[:, 1:] | (position_ids[:, 1:] == position_ids[:, :-1] + 1)
        if not bool(begins[:, :1].all() & steps.all()):
            return None
    return begins.long().cumsum(-1) - 1


def restart(position_ids: Any) -> bool:
    """Whether positions [B, T] begin again at 0 within a row."""
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2 or torch.compiler.is_compiling():
        return False
    return bool((position_ids[:, 1:] == 0).any())


def require_packable(seq_idx: Tensor, like: Tensor, cache: Any, attention_mask: Any) -> None:
    """Raise ValueError for a ``seq_idx`` that does not number the tokens of this call, or that comes with a cache."""
    if cache is not None:
        raise ValueError(
            "seq_idx with a key-value cache: samples packed into one row cannot be continued token by token. Leave "
            "the cache out, or give generate one sample a row, padded on the left."
        )
    if seq_idx.shape != like.shape[:2] or seq_idx.is_floating_point():
        raise ValueError(
            f"seq_idx {list(seq_idx.shape)} of {seq_idx.dtype}: expected integers {list(like.shape[:2])}, the number "
            "of the packed sample for every token."
        )
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and attention_mask.shape != seq_idx.shape:
        raise ValueError(
            f"attention_mask {list(attention_mask.shape)} beside seq_idx {list(seq_idx.shape)}: packed rows take a "
            "mask of their own tokens only, 1 for tokens and 0 for padding."
        )


def require_kernel(attention: str | None, rows: int, attention_mask: Any, cu_seq_lens: Any) -> None:
    """Raise ValueError where an attention implementation would let packed samples see each other.

    Flash attention takes no mask: it cuts samples at ``cu_seq_lens_q``, or, in one row without padding, where positions
    restart. Flex attention (torch 2.13, on a CPU) now and then runs a kernel that it compiled for another packing.
    """
    if attention == "flex_attention":
        raise ValueError(
            "seq_idx with attn_implementation='flex_attention': its compiled kernels can mix up the samples of a row. "
            "Use 'sdpa' or 'eager', or give one sample a row."
        )
    if attention is None or "flash" not in attention or cu_seq_lens is not None:
        return
    if rows > 1 or attention_mask is not None:
        raise ValueError(
            f"seq_idx with attn_implementation={attention!r}, {rows} rows: flash attention keeps samples apart in a "
            "single row without padding only. Pack into one row, pass cu_seq_lens_q and its like, or use 'sdpa'."
        )
