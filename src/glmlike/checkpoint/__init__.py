"""The checkpoint room: format tables, and what reads them: conversion, verification, loading on the fly."""

from __future__ import annotations

from glmlike.checkpoint.adapters import AdapterReport, convert_adapter
from glmlike.checkpoint.convert import ConversionReport, Detection, convert, detect, fingerprint, verify
from glmlike.checkpoint.merging import MergeReport, merge
from glmlike.checkpoint.plan import Plan
from glmlike.errors import CheckpointError

__all__ = [
    "AdapterReport",
    "CheckpointError",
    "ConversionReport",
    "Detection",
    "MergeReport",
    "Plan",
    "convert",
    "convert_adapter",
    "detect",
    "fingerprint",
    "merge",
    "verify",
]
