"""Remembered ids are the original libraries', met for the first time or again, however little is remembered."""

from __future__ import annotations

import os
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from corpus import mixed_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from vocabularies import FOLDERS, TEXTS, bare, trained

from glmlike.tokenization import byte_bpe, remembered, sentencepiece_bpe
from glmlike.tokenization.remembered import Remembered, encoder_of, encoder_of_pieces, one_in_a_row
from glmlike.tokenization.sentencepiece_model import SentencePieceModel


def ids_of(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), seed=st.integers(0, 7), lines=st.booleans())
def test_any_small_vocabulary(texts: list[str], seed: int, lines: bool) -> None:
    backend = trained(seed, lines=lines)
    encoder = encoder_of(backend)
    assert encoder.encode_all(texts) == encoder.encode_all(texts) == ids_of(backend, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_little_memory(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory never holds more than its size and what one call brought, and what it forgets comes out the same."""
    backend = bare(shared / "originals" / name)
    texts = mixed_corpus(20_000, 9, ["中国", "的", "人民"])
    expected = ids_of(backend, texts)
    monkeypatch.setattr(remembered, "REMEMBERED", 300)
    encoder = encoder_of(backend)
    forgotten = 0
    for _ in range(2):
        for text, ids in zip(texts, expected, strict=True):
            before = encoder._size
            assert encoder.encode_all([text]) == [ids], text[:60]
            assert encoder._size == sum(map(len, encoder._known)) <= 301 + 2 * len(text)
            forgotten += encoder._size < before
    assert forgotten > 10


@pytest.mark.slow
def test_tiktoken(shared: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    for name in ("glm-4-9b-chat", "llama-3"):
        folder = shared / "originals" / name
        library = tiktoken.Encoding(
            name,
            pat_str=byte_bpe.LETTERS_AND_THREE_DIGITS,
            mergeable_ranks=load_tiktoken_bpe(str(folder / "tokenizer.model")),
            special_tokens={},
        )
        encoder = encoder_of(bare(folder))
        texts = mixed_corpus(150_000, 7, ["中国", "人民", "的", "一带一路"])
        assert encoder.encode_all(texts) == library.encode_batch(texts, disallowed_special=())


def test_sentencepiece(shared: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    folder = shared / "originals/chatglm2-6b"
    library = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    encoder = encoder_of(bare(folder))
    texts = mixed_corpus(150_000, 7, ["中国", "人民", "的", "一带一路"])
    assert encoder.encode_all(texts) == library.encode(texts)


def test_lone_surrogates() -> None:
    for seed in range(2):
        with pytest.raises(UnicodeEncodeError):
            encoder_of(trained(seed, lines=bool(seed))).encode_all(["a", "b\ud800"])


def test_threads() -> None:
    backend = trained(1, lines=True)
    texts = [text[:300] for text in mixed_corpus(40_000, 4, ["中国", "的"])]
    expected, encoder, wrong = ids_of(backend, texts), encoder_of(backend), []

    def work(start: int) -> None:
        mine = range(start, len(texts), 2)
        wrong.extend(texts[at] for at in mine if encoder.encode_all([texts[at]]) != [expected[at]])

    threads = [threading.Thread(target=work, args=(at % 2,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def with_part(part: str, value: Any, **model: Any) -> Tokenizer:
    backend = byte_bpe.build_from_ranks(trained(0, lines=True).get_vocab())
    for name, each in model.items():
        setattr(backend.model, name, each)
    setattr(backend, part, value)
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        with_part("normalizer", normalizers.NFKC()),
        with_part("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        with_part("pre_tokenizer", pre_tokenizers.Whitespace()),
        with_part("pre_tokenizer", None),
        with_part("normalizer", None, dropout=0.5),
        with_part("normalizer", None, continuing_subword_prefix="##"),
        Tokenizer(models.WordLevel({"a": 0})),
    ],
)
def test_other_pipelines_are_not_guessed(backend: Tokenizer) -> None:
    assert encoder_of(backend) is None


def piece_model(pieces: dict[str, float]) -> SentencePieceModel:
    names = ("<unk>", "<s>", "</s>", *pieces)
    types = ("unknown", "control", "control", *["normal"] * len(pieces))
    return SentencePieceModel(names, (0.0, 0.0, 0.0, *pieces.values()), types, "bpe")


@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.sampled_from(["a", "b", "c", " ", "  ", "x", "<s>", "<unk>", "ab", "é"]), max_size=14))
def test_pieces_with_unknown_characters_and_spelled_controls(text: list[str]) -> None:
    model = piece_model({"▁": -1.0, "a": -2.0, "b": -3.0, "c": -4.0, "▁a": -5.0, "ab": -6.0, "▁ab": -7.0, "abc": -8.0})
    backend = sentencepiece_bpe.build(model)
    encoder = encoder_of_pieces(backend, model, lambda given: " " + " ".join(given.split()) if given.split() else "")
    words = " ".join("".join(text).split())
    assert encoder is not None
    if not any(each in words for each in ("<s>", "<unk>")):  # Rust takes a word that spells a control piece for it
        assert encoder.encode_all([words]) == encoder.encode_all([words]) == ids_of(backend, [words])
    assert encoder.encode_all(["<s>", "a<unk>"]) == [[3, 0], [7, 0]]


def test_pieces_that_no_joins_lead_to() -> None:
    model = piece_model({"a": -1.0, "b": -2.0, "c": -3.0, "abc": -4.0})
    assert encoder_of_pieces(sentencepiece_bpe.build(model), model, str) is None


@given(st.lists(st.integers(0, 2)))
def test_one_in_a_row(ids: list[int]) -> None:
    out = one_in_a_row(ids, 1)
    assert [each for each in out if each != 1] == [each for each in ids if each != 1]
    assert (1, 1) not in pairwise(out)
    assert (1 in out) == (1 in ids)


def test_only_what_is_new_is_encoded() -> None:
    asked: list[str] = []

    def encode(parts: list[str]) -> list[list[int]]:
        asked.extend(parts)
        return [[ord(part)] for part in parts]

    encoder = Remembered(lambda texts: [list(text) for text in texts], encode, str.lower, fused=ord("b"))
    assert encoder.encode_all(["Abba", ""]) == [[97, 98, 97], []]
    assert encoder.encode_all(["ABC"]) == [[97, 98, 99]]
    assert sorted(asked) == ["a", "b", "c"]


@pytest.mark.parametrize("many", [0, 1000])
def test_words_on_few_cores_and_on_many(many: int, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words go to the model itself or through the pipeline, marks in front of them or none: the ids are the same."""
    monkeypatch.setattr(remembered, "MANY_CORES", many)
    heads = ["", " ", "(", "，", "'", "`", "\\", "]", "^", "…", "\u3000", "\t"]
    texts = [head + word for head in heads for word in ("word", "Ideograph", "中国", "人民共和国", "s", "ll")]
    for name in ("glm-4-9b-chat", "glm-10b", "llama-3"):
        backend = bare(shared / "originals" / name)
        assert encoder_of(backend).encode_all(texts) == ids_of(backend, texts)


@pytest.mark.parametrize(("asked", "one"), [("false", True), ("0", True), ("true", False), (None, False)])
def test_cores(asked: str | None, one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if asked is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", asked)
    assert remembered.cores() == (1 if one else len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    ("cores", "texts"), [(1, ["人民 the " * 400] * 5), (1, ["中国人民。" * 1000] * 3), (64, ["word " * 100] * 64)]
)
def test_by_parts_or_by_rust(
    name: str, cores: int, texts: list[str], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rust has batches of much Chinese, and all on many cores: the ids are the same."""
    monkeypatch.setattr(remembered, "cores", lambda: cores)
    backend = bare(shared / "originals" / name)
    encoder = encoder_of(backend)
    assert encoder.encode_all(texts) == ids_of(backend, texts)
    assert (not encoder._known) == (cores == 64 or "。" in texts[0])
