"""transformers' own ``glm4``: GLM-4-0414 and GLM-Z1. The rows of ``glm``; a sandwiched spec brings two more norms."""

from __future__ import annotations

from glmlike.checkpoint.formats.glm import DROPPED, table

__all__ = ["DROPPED", "table"]
