"""What ``AutoTokenizer`` gives of folders that are transformers' own: where it is exact, and what to call elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from corpus import mixed_corpus
from tiktoken import Encoding
from tiktoken.load import load_tiktoken_bpe
from transformers import AutoTokenizer

from glmlike import GlmLikeTokenizer
from glmlike.generation_defaults import DEFAULTS
from glmlike.tokenization import byte_bpe
from glmlike.tokenization.generations import GENERATIONS
from glmlike.tokenization.probes import probes


@cache
def automatic(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*probes(), *mixed_corpus(100_000, 11)]


@pytest.mark.slow  # transformers builds LLaMA's merges from its ranks: 10 s
def test_llama_3_through_auto_tokenizer_has_no_special_tokens(shared: Path, texts: list[str]) -> None:
    """Meta's folder names no special tokens, and transformers knows none: its ids of text are exact, and no more.

    ``GlmLikeTokenizer.from_pretrained`` reads the same folder whole; ``glmlike convert … --to llama`` writes it as a
    tokenizer.json that AutoTokenizer reads whole.
    """
    folder = shared / "originals/llama-3"
    found, ours = automatic(folder), GlmLikeTokenizer.from_pretrained(folder)
    assert type(found).__module__.startswith("transformers.")
    ranks = load_tiktoken_bpe(str(folder / "tokenizer.model"))
    original = Encoding("llama-3", pat_str=byte_bpe.LETTERS_AND_THREE_DIGITS, mergeable_ranks=ranks, special_tokens={})
    expected = [original.encode(text, disallowed_special=()) for text in texts]
    assert found(texts)["input_ids"] == expected
    assert ours(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
    assert (len(found), found.chat_template) == (128_000, None)
    assert found.convert_tokens_to_ids("<|eot_id|>") is None
    assert (len(ours), ours.convert_tokens_to_ids("<|eot_id|>")) == (128_256, 128_009)
    assert ours("a")["input_ids"] == [128_000, 64]
    stops = [ours.convert_ids_to_tokens(number) for number in DEFAULTS["llama-3"].stops]
    assert stops == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]


def test_qwen_through_auto_tokenizer_is_exact(shared: Path, texts: list[str]) -> None:
    folder = shared / "originals/qwen2.5"
    found, ours = automatic(folder), GlmLikeTokenizer.from_pretrained(folder)
    assert type(found).__name__ == "Qwen2Tokenizer"
    for split in (False, True):
        options = {"add_special_tokens": False, "split_special_tokens": split}
        assert found(texts, **options)["input_ids"] == ours(texts, **options)["input_ids"]
    generation = GENERATIONS["qwen2.5"]
    for text, number in generation.specials.items():
        assert found.convert_tokens_to_ids(text) == number
    assert {found.eos_token_id} < set(DEFAULTS["qwen2.5"].stops)
    talk = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    for tools in (None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]):
        options = {"add_generation_prompt": True, "tools": tools, "return_dict": False}
        assert found.apply_chat_template(talk, **options) == ours.apply_chat_template(talk, **options)


def test_a_token_that_is_none_has_no_id(shared: Path) -> None:
    """As in transformers: None where there is no unknown token, not an error."""
    assert (
        GlmLikeTokenizer.from_pretrained(shared / "originals/glm-4-9b-chat").convert_tokens_to_ids("<|im_end|>") is None
    )
