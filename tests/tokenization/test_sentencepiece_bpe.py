"""The BPE vocabularies beside sentencepiece."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from corpus import mixed_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.errors import TokenizerError
from glmlike.tokenization.sentencepiece_bpe import build
from glmlike.tokenization.sentencepiece_model import read_model

FILES = {"chatglm2-6b": "chatglm2-6b/tokenizer.model", "glm-10b-chinese": "glm-10b-chinese/cog-pretrain.model"}


@cache
def load(shared: Path, name: str) -> tuple[Any, Any, tuple[str, ...]]:
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    path = shared / "originals" / FILES[name]
    model = read_model(path)
    return build(model), spm.SentencePieceProcessor(model_file=str(path)), model.pieces


@pytest.mark.parametrize("name", FILES)
def test_golden_ids(shared: Path, name: str) -> None:
    ours, _, _ = load(shared, name)
    golden = json.loads((shared / "originals" / "golden_tokenization.json").read_text(encoding="utf8"))
    assert [ours.encode(text).ids for text in golden["strings"]] == golden[name]["ids"]


@pytest.mark.parametrize("size", [200_000, pytest.param(5_500_000, marks=pytest.mark.exhaustive)])
def test_mixed_corpus_chatglm2(shared: Path, size: int) -> None:
    ours, original, pieces = load(shared, "chatglm2-6b")
    texts = mixed_corpus(size, size, [each for each in pieces if any("\u4e00" <= c <= "\u9fff" for c in each)])
    assert [text for text in texts if ours.encode(text).ids != original.encode(text)] == []


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_chatglm2(shared: Path, text: str) -> None:
    ours, original, _ = load(shared, "chatglm2-6b")
    ids = ours.encode(text).ids
    assert ids == original.encode(text)
    assert ours.decode(ids) == original.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab 一个可以 ，。：～＂ＡＢ\n\t\u3000\x01<n>🙂é20..", max_size=40))
def test_ordinary_text_glm10b_chinese(shared: Path, text: str) -> None:
    ours, original, _ = load(shared, "glm-10b-chinese")
    assert ours.encode(text).ids == original.encode(text)


def test_text_after_a_special_token_gets_its_own_dummy_prefix(shared: Path) -> None:
    _, original, _ = load(shared, "chatglm2-6b")
    ours = build(read_model(shared / "originals" / FILES["chatglm2-6b"]))
    ours.add_special_tokens(["[gMASK]"])
    end = ours.token_to_id("[gMASK]")
    assert end == 64789
    parts = ["Hello  world ", "\n x", "1", ""]
    expected = [each for part in parts for each in (*original.encode(part), end)]
    assert ours.encode("".join(part + "[gMASK]" for part in parts)).ids == expected


def test_unigram_models_are_refused(shared: Path) -> None:
    model = read_model(shared / "originals" / "chatglm-6b-v1.1" / "ice_text.model")
    with pytest.raises(TokenizerError, match=r"unigram vocabulary"):
        build(model)
