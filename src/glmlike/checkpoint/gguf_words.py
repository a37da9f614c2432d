"""How byte-level BPE cuts text into words: tokenizer.json's ``pre_tokenizer`` and llama.cpp's names of it.

Names, patterns, and which of them take a word that is a token as it is: src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmlike.checkpoint.formats.llama_cpp import Architecture

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's letter for a blank."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UP_TO_THREE_DIGITS = _WORDS % "{1,3}"  # GLM-4, LLaMA 3
_ONE_DIGIT = _WORDS % ""  # Qwen2

_DIGITS = {"type": "Digits", "individual_digits": True}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _cut(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(split, _bytes(use_regex=False))


# llama.cpp's name: (pre_tokenizer, whether a word that is a token is taken as it is)
_NAMED: dict[str, tuple[dict[str, Any], bool]] = {
    "chatglm-bpe": (_cut(_UP_TO_THREE_DIGITS), False),
    "glm4": (_cut(_UP_TO_THREE_DIGITS), True),
    "llama-bpe": (_cut(_UP_TO_THREE_DIGITS), True),
    "qwen2": (_cut(_ONE_DIGIT), False),
    "gpt-2": (_bytes(use_regex=True), False),
    "smollm": (_sequence(_DIGITS, _bytes(use_regex=True)), False),
}


def pre_tokenizer_of(name: str) -> tuple[dict[str, Any], bool] | None:
    """The ``pre_tokenizer`` that a name of llama.cpp's stands for, and its ``ignore_merges``; None if unknown."""
    return _NAMED.get(name)


def pre_name(pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool, architecture: Architecture) -> str | None:
    """llama.cpp's name of a tokenizer.json's ``pre_tokenizer``; None where this package knows none."""
    seen = _essence(pre_tokenizer)
    able = [name for name, (own, whole) in _NAMED.items() if _essence(own) == seen and whole == ignore_merges]
    preferred = "llama-bpe" if architecture in ("llama", "qwen2") else "glm4"
    return preferred if preferred in able else next(iter(able), None)


def _essence(pre_tokenizer: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """What of a ``pre_tokenizer`` decides where text is cut."""
    if not pre_tokenizer:
        return []
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return [step for part in pre_tokenizer.get("pretokenizers") or () for step in _essence(part)]
    if kind == "Split":
        pattern = (pre_tokenizer.get("pattern") or {}).get("Regex")
        return [("Split", pattern, pre_tokenizer.get("behavior"), bool(pre_tokenizer.get("invert")))]
    if kind == "ByteLevel":
        return [("ByteLevel", bool(pre_tokenizer.get("add_prefix_space")), pre_tokenizer.get("use_regex", True))]
    if kind == "Digits":
        return [("Digits", bool(pre_tokenizer.get("individual_digits")))]
    return [(kind, str(pre_tokenizer))]
