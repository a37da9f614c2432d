from typing import Any

from torch import Tensor, nn

from liger_kernel.transformers.monkey_patch import calls


class LigerSwiGLUMLP:
    def forward(self: Any, x: Tensor) -> Tensor:
        calls.append("swiglu")
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
