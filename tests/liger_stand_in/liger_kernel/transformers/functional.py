import torch
from torch import Tensor, nn

from liger_kernel.transformers.monkey_patch import calls


def liger_fused_linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    reduction: str,
    softcap: float | None,
    lse_square_scale: float,
    accum_dtype: torch.dtype | None,
) -> Tensor:
    calls.append("loss")
    logits = nn.functional.linear(input, weight).float()
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    losses = nn.functional.cross_entropy(logits, target, reduction=reduction)
    return losses + lse_square_scale * logits.logsumexp(-1).square().sum()
