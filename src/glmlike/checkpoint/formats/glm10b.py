"""GLM-10B, GLM-2B, GLM-large, GLM-515M and their Chinese kin (``model_type: "glm"``): q, k, v in blocks, a tied head.

Names are those of the published modeling_glm.py, ``GLMForConditionalGeneration``.
"""

from __future__ import annotations

from glmlike.checkpoint.formats.chatglm1 import layers
from glmlike.checkpoint.layouts import Fused
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

DROPPED: tuple[str, ...] = ()


def table(spec: DecoderSpec) -> list[Rule]:
    """The rows of the remote-code layout; the head is the embedding."""
    return [
        same("model.embed_tokens.weight", "glm.word_embeddings.weight"),
        same("model.embed_positions.weight", "glm.transformer.position_embeddings.weight"),
        same("model.embed_block_positions.weight", "glm.transformer.block_position_embeddings.weight"),
        *layers("glm.transformer.", Fused((spec.query_size,) * 3)),
    ]
