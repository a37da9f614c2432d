"""Chat templates of every generation that chats, as Jinja text for ``tokenizer.chat_template``.

Each is written here in our own words from the prompts its model was trained with, and gives the ids of the original
chat code. ``{% generation %}`` encloses what the model itself writes after the generation prompt, the token that ends
its turn included:

* GLM-4, ChatGLM3, GLM-Edge and CodeGeeX4 have no token of their own for the end of a reply: they stop by naming who
  speaks next, ``<|user|>`` or, after a tool call, ``<|observation|>``. That token belongs to the reply. A conversation
  that ends with a reply is closed by it too, as the original fine-tuning scripts do, so every rendering is a prefix of
  its continuation. The line end after ``<|assistant|>`` is the model's own as well (a tool's name may stand before it).
* ChatGLM-6B and ChatGLM2 see their earlier replies without an end token; only a reply at the end has one (``<eop>``,
  ``</s>``), so only that one teaches the model to stop.

Where no published file was at hand, public code agrees: the generation prompt is ``<|assistant|>`` in GLM-Edge
(llama.cpp, src/llama-chat.cpp), with a line end in CodeGeeX4 (the completion template of Continue), and opens
``<think>`` without one after it in GLM-Z1; LLaMA 3.1's tool text is that of several re-implementations, which have no
blank before "Do not use variables." either. That GLM-Z1 forgets earlier thoughts is from its template alone.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from glmlike.errors import ConfigError

_FOLDER = Path(__file__).parent / "templates"
_PIECES = {
    "chatglm-6b": ("_macros", "chatglm-6b"),
    "chatglm2": ("_macros", "chatglm2"),
    "chatglm3": ("_macros", "chatglm3"),
    "glm-4": ("_macros", "_glm_functions", "glm-4"),
    "glm-4-0414": ("_macros", "_glm_functions", "glm-4-0414"),
    "glm-z1": ("_macros", "_glm_functions", "glm-z1"),
    "glm-edge": ("_macros", "glm-edge"),
    "codegeex4": ("_macros", "codegeex4"),
    "llama-3": ("_macros", "llama-3"),
    "qwen2.5": ("_macros", "qwen2.5"),
}
_PLACES = {"{#- turns -#}": "_glm_turns", "{#- rounds -#}": "_rounds"}
_WITHOUT = frozenset({"glm-10b", "glm-10b-chinese", "glm-bert", "glm-roberta", "glm-130b", "codegeex2"})

GENERATIONS: tuple[str, ...] = tuple(sorted({*_PIECES, *_WITHOUT}))
"""Every generation this package has a tokenizer for."""


@cache
def chat_template(generation: str) -> str | None:
    """The template of a generation; None for those that complete or fill text and never chatted.

    Raises:
        ConfigError: a name that is no generation.
    """
    if generation in _WITHOUT:
        return None
    if generation not in _PIECES:
        raise ConfigError(f"generation={generation!r} is not known; known: {', '.join(GENERATIONS)}.")
    text = "".join(_read(name) for name in _PIECES[generation])
    for place, name in _PLACES.items():
        text = text.replace(place, _read(name))
    return text


def _read(name: str) -> str:
    """A file of the folder without its comments, which every checkpoint would carry along."""
    text = (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    kept = "|".join(map(re.escape, _PLACES))
    return re.sub(rf"(?!{kept})\{{#-.*?-#\}}\n?", "", text, flags=re.DOTALL)
