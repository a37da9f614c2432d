"""One card a family of published checkpoints; ``write_cards.py`` beside this folder writes them."""

from __future__ import annotations

from pathlib import Path

from families import chatglm, early, glm4, others
from families.family import Family
from families.render import render

FAMILIES: tuple[Family, ...] = (
    early.GLM_10B,
    early.GLM_130B,
    early.CHATGLM_6B,
    chatglm.CHATGLM2,
    chatglm.CHATGLM3,
    chatglm.CODEGEEX2,
    glm4.GLM_4_9B,
    glm4.GLM_4_0414,
    glm4.GLM_EDGE,
    glm4.CODEGEEX4,
    glm4.LONG,
    others.LLAMA_3,
    others.QWEN2_5,
)


def write_all(folder: Path) -> None:
    """Write every family's card to a folder."""
    for family in FAMILIES:
        (folder / f"{family.name}.md").write_text(render(family), encoding="utf8")
