"""Vocabularies small enough to train in a test, and texts in which their corners meet."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer

from glmlike.tokenization import byte_bpe, sentencepiece_bpe
from glmlike.tokenization.remembered import encoder_of
from glmlike.tokenization.sentencepiece_model import read_model

ALPHABET = "aab1 .\n\t\r'_的一中国人大是，。！「é\u0301🙂\u3000\x1f\x00▁龥龦㐀々ー가ｱﾞ\u2028\xa0٣"
WORDS = ("中国人", "大是的", "一的一", " 的", "，中", "return", "  ", " \n ", "\n\n", "'s", "的a", "1中", "人1")
TEXTS = st.lists(st.sampled_from([*ALPHABET, *WORDS]) | st.characters(exclude_categories=["Cs"]), max_size=24).map(
    "".join
)
FOLDERS = ("llama-3", "qwen2.5", "glm-4-9b-chat", "glm-10b", "chatglm2-6b")


@cache
def bare(folder: Path) -> Tokenizer:
    """The Rust pipeline of a published vocabulary, without special tokens."""
    if (folder / "merges.txt").is_file():
        pattern = byte_bpe.LETTERS_AND_ONE_DIGIT if folder.name == "qwen2.5" else None
        return byte_bpe.build_from_merges(*byte_bpe.read_merges(folder / "vocab.json", folder / "merges.txt"), pattern)
    if folder.name == "chatglm2-6b":
        return sentencepiece_bpe.build(read_model(folder / "tokenizer.model"))
    return byte_bpe.build_from_ranks(byte_bpe.read_ranks(folder / "tokenizer.model"))


@cache
def trained(seed: int, *, lines: bool) -> Tokenizer:
    """Byte-level BPE trained on random text: by ranks behind GLM-4's regular expression, or by merges behind GPT-2's.

    Its tokens begin and end within characters, and some of its whole words no joins lead to.
    """
    rng = random.Random(seed)
    text = "".join(rng.choices([*ALPHABET[:24], *WORDS], k=400))
    words = [piece for piece, _ in _cut(lines).pre_tokenizer.pre_tokenize_str(text)]
    parts = [list(word) for word in words]
    vocabulary = dict(_BYTES)
    merges = []
    for _ in range(120):
        pairs: dict[tuple[str, str], int] = {}
        for part in parts:
            for pair in pairwise(part):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(sorted(pairs), key=pairs.__getitem__)
        vocabulary.setdefault("".join(best), len(vocabulary))
        merges.append(best)
        parts = [_joined(part, best) for part in parts]
    for word in rng.sample(sorted(set(words)), 12):
        vocabulary.setdefault(word, len(vocabulary))
    return byte_bpe.build_from_ranks(vocabulary) if lines else byte_bpe.build_from_merges(vocabulary, merges)


@cache
def encoder(backend: Tokenizer) -> Any:
    """What remembers for ``backend``."""
    return encoder_of(backend)


_BYTES = {character: byte for byte, character in byte_bpe._PRINTABLE.items()}


@cache
def _cut(lines: bool) -> Tokenizer:
    return byte_bpe.build_from_ranks(_BYTES) if lines else byte_bpe.build_from_merges(_BYTES, [])


def _joined(part: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(part):
        both = tuple(part[at : at + 2]) == pair
        out.append("".join(pair) if both else part[at])
        at += 2 if both else 1
    return out
