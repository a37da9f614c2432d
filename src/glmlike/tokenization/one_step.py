"""A vocabulary is read, written and tried, in a process of its own: see glmlike.checkpoint.tokenizer_processes."""

from __future__ import annotations

import json
import sys
from typing import Any

from glmlike.tokenization.generations import GENERATIONS
from glmlike.tokenization.probes import probes, sha256_of
from glmlike.tokenization.tokenizer import GlmLikeTokenizer

_INEXACT = ("unigram", "cog-pretrain")


def main(how: str, source: str, target: str, chat: str) -> None:
    """Print what ``source``'s tokenizer makes of :func:`probes` and of a ``chat`` as JSON, or an ``error``.

    ``ids`` are those of the ``texts`` with special tokens parsed, of the texts with special tokens as text, and of the
    chat; ``exact``: whether a Rust pipeline gives the same, whatever the text. Unless ``how`` is "read", the tokenizer
    is written into the new folder ``target`` first: as "plain", or as "own".
    """
    try:
        result = _step(source, None if how == "read" else target, json.loads(chat), plain=how == "plain")
    except Exception as error:  # whatever a damaged vocabulary raises: the weights can be converted all the same
        result = {"error": str(error).strip().split("\n")[0] or type(error).__name__}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


def _step(source: str, target: str | None, chat: list[dict[str, str]], *, plain: bool) -> dict[str, Any]:
    tokenizer: Any = GlmLikeTokenizer.from_pretrained(source)
    if target is not None:
        tokenizer.save_pretrained(target, plain=plain)
    texts = list(probes())
    ids = [tokenizer(texts, split_special_tokens=split)["input_ids"] for split in (False, True)]
    talk: list[int] = []
    if tokenizer.chat_template:
        talk = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    exact = not set(GENERATIONS[tokenizer.generation].kinds) & set(_INEXACT)
    said = {"generation": tokenizer.generation, "exact": exact, "sha256": sha256_of([*ids[0], *ids[1]])}
    return {**said, "texts": texts, "ids": [*ids, talk]}
