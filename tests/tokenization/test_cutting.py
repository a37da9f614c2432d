"""Ids of the parts in a row are the ids of the whole, for published vocabularies and for any small one."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus import HARD, mixed_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocabularies import FOLDERS, TEXTS, bare, encoder, trained

from glmlike.tokenization.cutting import PieceCutter, cut


def wrongly_cut(backend: Tokenizer, texts: list[str]) -> list[str]:
    """The texts whose parts, each encoded for itself by Rust, have other ids than the whole."""
    found = encoder(backend)
    normal = [found._normalize(text) if found._normalize else text for text in texts]
    parts = found._cut(normal)
    assert ["".join(each) for each in parts] == normal
    assert all(part for each in parts for part in each)
    flat = list(chain.from_iterable(parts))
    ids = dict(zip(flat, found._encode(flat), strict=True))
    whole = [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
    rows = zip(texts, parts, whole, strict=True)
    return [text for text, each, row in rows if [*chain.from_iterable(map(ids.__getitem__, each))] != row]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), seed=st.integers(0, 7), lines=st.booleans())
def test_any_small_vocabulary(texts: list[str], seed: int, lines: bool) -> None:
    assert wrongly_cut(trained(seed, lines=lines), texts) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6))
def test_published_vocabularies(name: str, texts: list[str], shared: Path) -> None:
    assert wrongly_cut(bare(shared / "originals" / name), texts) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_published_vocabularies_on_a_corpus(name: str, shared: Path) -> None:
    """Among its texts are the vocabulary's own Chinese tokens put together."""
    backend = bare(shared / "originals" / name)
    tokens = [backend.decode([number]) for number in range(0, backend.get_vocab_size(), 3)]
    words = [token for token in tokens if any("\u4e00" <= each <= "\u9fff" for each in token)]
    pairs = ["".join(pair) for pair in pairwise(words)]
    texts = [*HARD, *mixed_corpus(100_000, 5, words), *words[:4000], *pairs[:8000]]
    assert wrongly_cut(backend, texts) == []
    assert len(words) > (1000 if name != "glm-10b" else 10)


@pytest.mark.parametrize("name", FOLDERS)
def test_most_words_are_parts(name: str, shared: Path) -> None:
    """What cuts are for: of a sentence there are about as many parts as words."""
    (parts,) = encoder(bare(shared / "originals" / name))._cut(
        ["The quick brown fox, 12 of them (or so) jumps over\n    the lazy dog."]
    )
    assert len(parts) >= 13


@given(st.lists(st.text("ab\x1f中", max_size=6), max_size=5), st.randoms(use_true_random=False))
def test_parts_are_the_text(texts: list[str], rng: object) -> None:
    """For any cuts, with and without the character that parts are written with between them."""
    asked: list[bool] = []

    def anywhere(codes: np.ndarray, starts: list[int]) -> np.ndarray:
        asked.extend(rng.random() < 0.5 for _ in codes[1:])
        return np.array(asked, np.bool_)

    parts = cut(texts, anywhere)
    assert ["".join(each) for each in parts] == texts
    assert all(part for each in parts for part in each)
    at = 0
    for each in parts:
        for number, part in enumerate(each):
            assert number == 0 or asked[at - 1]
            at += len(part)


@given(pieces=st.lists(st.text("abc的", min_size=1, max_size=4), max_size=8), text=st.text("abc的", max_size=20))
def test_no_piece_lies_across(pieces: list[str], text: str) -> None:
    (parts,) = PieceCutter(pieces)([text]) if text else ([],)
    ends = {sum(map(len, parts[:at])) for at in range(1, len(parts))}
    for piece in pieces:
        for start in range(len(text)):
            if text.startswith(piece, start):
                assert ends.isdisjoint(range(start + 1, start + len(piece)))
