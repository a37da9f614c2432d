"""Blank infilling: what GLM was made for. Names are imported when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmlike.infilling.decoding import Order
    from glmlike.infilling.filling import FilledSpan, Infilling, fill
    from glmlike.infilling.pipeline import BlankInfillingPipeline

_HOME = {
    "BlankInfillingPipeline": "pipeline",
    "FilledSpan": "filling",
    "Infilling": "filling",
    "Order": "decoding",
    "fill": "filling",
}

__all__ = ["BlankInfillingPipeline", "FilledSpan", "Infilling", "Order", "fill"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"glmlike.infilling.{_HOME[name]}"), name)
    raise AttributeError(f"module 'glmlike.infilling' has no attribute {name!r}")
