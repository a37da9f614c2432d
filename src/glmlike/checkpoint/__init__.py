"""The checkpoint room: format tables, and what reads them: conversion, verification, loading on the fly."""

from __future__ import annotations

from glmlike.checkpoint.convert import ConversionReport, Detection, convert, detect, fingerprint, verify
from glmlike.checkpoint.plan import Plan
from glmlike.errors import CheckpointError

__all__ = ["CheckpointError", "ConversionReport", "Detection", "Plan", "convert", "detect", "fingerprint", "verify"]
