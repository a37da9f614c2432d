import torch
from torch import Tensor

from liger_kernel.transformers.monkey_patch import calls


def liger_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    calls.append("rope")
    assert cos.shape[-1] == q.shape[-1]
    turned = [torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) for x in (q, k)]
    return q * cos[:, None] + turned[0] * sin[:, None], k * cos[:, None] + turned[1] * sin[:, None]
