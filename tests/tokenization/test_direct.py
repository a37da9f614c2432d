"""Ids and masks that are put together are those of Rust's encodings, whatever is asked for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corners import load
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers_for_tests import small_tokenizer_of
from vocabularies import TEXTS

from glmlike import GlmLikeTokenizer
from glmlike.tokenization import direct
from glmlike.tokenization.direct import Around, Encodings, around

SPECIAL = st.sampled_from(["[gMASK]", "<sop>", "<|user|>", "<|endoftext|>", "</s>", "<eop> ", " [MASK]", "sop", "<n>"])
MIXED = st.lists(TEXTS | SPECIAL, max_size=4).map("".join)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "add_special_tokens": st.booleans(),
        "padding": st.sampled_from([True, False, "longest", "max_length"]),
        "truncation": st.sampled_from([True, False, "only_first", "only_second"]),
        "max_length": st.sampled_from([None, 3, 9, 40]),
        "pad_to_multiple_of": st.sampled_from([None, 8]),
        "padding_side": st.sampled_from([None, "left", "right"]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_length": st.booleans(),
        "split_special_tokens": st.sampled_from([None, True, False]),
        "return_offsets_mapping": st.booleans(),
        "return_special_tokens_mask": st.booleans(),
        "return_position_ids": st.booleans(),
    },
)
FOLDERS = ("chatglm-6b-v1.1", "chatglm2-6b", "glm-4-9b-chat", "glm-10b", "glm-10b-chinese", "qwen2.5", "llama-3")


class ByEncodings(GlmLikeTokenizer):
    """The same tokenizer that asks Rust, or the exact cut, for everything."""

    def _directly(self, text: Any, **kwargs: Any) -> None:
        return None


def other_way(tokenizer: Any) -> Any:
    other = object.__new__(ByEncodings)
    other.__dict__ = tokenizer.__dict__
    return other


def outcome(tokenizer: Any, *args: Any, **options: Any) -> Any:
    try:
        return dict(tokenizer(*args, **options))
    except Exception as error:
        return type(error)


def agrees(tokenizer: Any, texts: Any, options: dict[str, Any]) -> None:
    expected = outcome(other_way(tokenizer), texts, **options)
    assert outcome(tokenizer, texts, **options) == expected
    assert outcome(tokenizer, texts, **options) == expected  # remembered by now


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(MIXED, max_size=4) | MIXED, options=OPTIONS)
def test_as_by_encodings(name: str, texts: Any, options: dict[str, Any], shared: Path) -> None:
    agrees(load(shared / "originals" / name), texts, options)


def small() -> GlmLikeTokenizer:
    """GLM-4's special tokens around a vocabulary of bytes."""
    chat = small_tokenizer_of("glm-4")
    backend = chat.backend_tokenizer
    numbers = [(text, backend.token_to_id(text)) for text in ("[gMASK]", "<sop>")]
    backend.post_processor = processors.TemplateProcessing("[gMASK] <sop> $A", "[gMASK] <sop> $A $B:1", numbers)
    return GlmLikeTokenizer(tokenizer_object=backend, generation="glm-4", pad_token="<|endoftext|>")


SMALL = small()


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(MIXED, max_size=4) | MIXED, options=OPTIONS)
def test_small_vocabulary(texts: Any, options: dict[str, Any]) -> None:
    agrees(SMALL, texts, options)


def test_most_calls_are_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not asked for is made when it is."""
    asked: list[int] = []
    whole = GlmLikeTokenizer._by_encodings
    monkeypatch.setattr(
        GlmLikeTokenizer, "_by_encodings", lambda *args, **kwargs: asked.append(1) or whole(*args, **kwargs)
    )
    batch = SMALL(["one <sop> two", "é 中"], padding=True, truncation=True, max_length=12, return_tensors="pt")
    assert asked == []
    assert batch.tokens(0)[-3:] == ["t", "w", "o"]
    assert batch.word_ids(1)[:2] == [None, None]
    assert batch.is_fast
    assert asked == [1]
    assert [each.ids for each in batch.encodings] == batch["input_ids"].tolist()
    assert [each.ids for each in pickle.loads(pickle.dumps(batch)).encodings] == batch["input_ids"].tolist()
    for options in ({"return_offsets_mapping": True}, {"stride": 1, "truncation": True, "max_length": 9}):
        SMALL("a b", **options)
    SMALL("a", "b")
    assert len(asked) == 4


def test_tokens_added_later_are_found() -> None:
    tokenizer = small()
    before = tokenizer("a <new> b")["input_ids"]
    tokenizer.add_tokens(["<new>"])
    after = tokenizer("a <new> b")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<new>") in after
    assert before != after == outcome(other_way(tokenizer), "a <new> b")["input_ids"]


def test_lone_surrogates_are_refused_as_rust_refuses_them() -> None:
    expected = outcome(other_way(SMALL), ["a", "\ud800"])
    assert isinstance(expected, type)
    assert outcome(SMALL, ["a", "\ud800"]) == expected


def test_around() -> None:
    numbers = SMALL.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    assert around(SMALL.backend_tokenizer) == Around(numbers, [])
    plain = Tokenizer(WordLevel({"a": 0}))
    assert around(plain) == Around([], [])
    plain.add_special_tokens(["<s>"])
    plain.post_processor = processors.TemplateProcessing("<s> $A <s>", "$A $B", [("<s>", 1)])
    assert around(plain) == Around([1], [1])
    plain.post_processor = processors.TemplateProcessing("<s> $A $A", "$A $B", [("<s>", 1)])
    assert around(plain) is None


@given(row=st.lists(st.integers(1, 9), max_size=6), length=st.integers(0, 9), side=st.sampled_from(["left", "right"]))
def test_rows_cut_and_padded(row: list[int], length: int, side: str) -> None:
    (cut,) = direct.truncated([row], length, side)
    assert cut == (row[-length:] if side == "left" and length else row[:length])
    (ids,), (mask,) = direct.padded([cut], length, 0, side)
    assert len(ids) == len(mask) == length
    assert [each for each, real in zip(ids, mask, strict=True) if real] == cut
    assert mask == sorted(mask, reverse=side == "right")


def test_encodings_are_made_once() -> None:
    made: list[int] = []
    lazy = Encodings(2, lambda: made.append(1) or ["a", "b"])
    assert len(lazy) == 2
    assert made == []
    assert lazy[0] == "a"
    assert lazy[:] == ["a", "b"]
    assert made == [1]
