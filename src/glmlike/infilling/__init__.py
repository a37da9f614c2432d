"""Autoregressive blank infilling (GLM, arXiv 2103.10360): filling blanks, and the objective that teaches it.

The paper's words: a row is a context with blanks (part A) and the pieces that fill them (part B). The masks and
positions that the model itself derives from token ids are in :mod:`glmlike.prefix`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmlike.infilling.collator import DataCollatorForBlankInfilling
    from glmlike.infilling.decoding import Order
    from glmlike.infilling.filling import FilledSpan, Infilling, fill
    from glmlike.infilling.objective import OBJECTIVES, BlankInfillingObjective, BlankTokens
    from glmlike.infilling.pipeline import BlankInfillingPipeline

_HOME = {
    "BlankInfillingObjective": "objective",
    "BlankInfillingPipeline": "pipeline",
    "BlankTokens": "objective",
    "DataCollatorForBlankInfilling": "collator",
    "FilledSpan": "filling",
    "Infilling": "filling",
    "OBJECTIVES": "objective",
    "Order": "decoding",
    "fill": "filling",
}

__all__ = [
    "OBJECTIVES",
    "BlankInfillingObjective",
    "BlankInfillingPipeline",
    "BlankTokens",
    "DataCollatorForBlankInfilling",
    "FilledSpan",
    "Infilling",
    "Order",
    "fill",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"glmlike.infilling.{_HOME[name]}"), name)
    raise AttributeError(f"module 'glmlike.infilling' has no attribute {name!r}")
