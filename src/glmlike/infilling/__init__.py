"""Autoregressive blank infilling (GLM, arXiv 2103.10360): the training objective and its collator.

The paper's words: a sample is a context with blanks (part A) and the pieces that fill them (part B). The masks and
positions that the model itself derives from token ids are in :mod:`glmlike.prefix`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmlike.infilling.collator import DataCollatorForBlankInfilling
    from glmlike.infilling.objective import OBJECTIVES, BlankInfillingObjective, BlankTokens

_HOME = {
    "BlankInfillingObjective": "objective",
    "BlankTokens": "objective",
    "OBJECTIVES": "objective",
    "DataCollatorForBlankInfilling": "collator",
}

__all__ = ["OBJECTIVES", "BlankInfillingObjective", "BlankTokens", "DataCollatorForBlankInfilling"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"glmlike.infilling.{_HOME[name]}"), name)
    raise AttributeError(f"module 'glmlike.infilling' has no attribute {name!r}")
