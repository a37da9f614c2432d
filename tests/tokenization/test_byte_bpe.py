"""Byte-level BPE against tiktoken itself, against the published ids, and against a slow restatement."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from corpus import mixed_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.errors import TokenizerError
from glmlike.tokenization import byte_bpe

Ranks = dict[bytes, int]
NAMES = {"glm-4": "glm-4-9b-chat", "llama-3": "llama-3"}


@pytest.fixture(scope="module", params=NAMES)
def ranks_file(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "originals" / NAMES[request.param] / "tokenizer.model"


def slow(piece: bytes, ranks: Ranks) -> list[int]:
    """tiktoken's rule, a step at a time: a whole token, else join the lowest-ranked neighbours, leftmost first."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        joined = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not joined:
            return [ranks[part] for part in parts]
        at = min(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def trained(text: bytes, steps: int) -> Ranks:
    """Ranks by training: the most frequent pair of neighbours becomes a token, again and again."""
    parts = [text[i : i + 1] for i in range(len(text))]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(steps):
        pairs = list(pairwise(parts))
        best = max(sorted(set(pairs)), key=pairs.count, default=None)
        if best is None or pairs.count(best) < 2:
            break
        ranks.setdefault(best[0] + best[1], len(ranks))
        done: list[bytes] = []
        for part in parts:
            if done and (done[-1], part) == best:
                done[-1] += part
            else:
                done.append(part)
        parts = done
    return ranks


@settings(max_examples=150, deadline=None)
@given(st.text("aab的 é", min_size=2, max_size=60), st.lists(st.text("ab的 é", max_size=30), max_size=5))
def test_ids_are_those_of_the_slow_rule_for_any_trained_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, text: str, others: list[str]
) -> None:
    ranks = trained(text.encode(), 20)
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    printable = byte_bpe._PRINTABLE
    vocabulary = {token.decode("latin-1").translate(printable): rank for token, rank in ranks.items()}
    path.write_bytes(byte_bpe.write_ranks(vocabulary))
    assert byte_bpe.read_ranks(path) == vocabulary
    tokenizer = byte_bpe.build_from_ranks(vocabulary)
    for each in (text, *others):
        pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(each)]
        byte = {character: value for value, character in printable.items()}
        expected = [token for piece in pieces for token in slow(bytes(byte[c] for c in piece), ranks)]
        assert tokenizer.encode(each).ids == expected
        assert tokenizer.decode(expected) == each


@pytest.mark.slow
def test_ids_are_those_of_tiktoken(ranks_file: Path) -> None:
    """Mixed text, repeated patterns (where a wrong order of joins would show), and vocabulary entries put together."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(ranks_file))
    original = tiktoken.Encoding(
        "original", pat_str=byte_bpe.LETTERS_AND_THREE_DIGITS, mergeable_ranks=ranks, special_tokens={}
    )
    units = ("ab", "aba", "-=", "的一的", "哈", "  ", "\n ", "oO", "🙂", "éà")
    repeated = [unit * count + unit[:1] for unit in units for count in range(1, 20)]
    entries = [
        b"".join(pair).decode("utf8", "ignore") for pair in zip(list(ranks)[::97], list(ranks)[::89], strict=False)
    ]
    texts = [*mixed_corpus(200_000, 1), *repeated, *entries]
    tokenizer = byte_bpe.build_from_ranks(byte_bpe.read_ranks(ranks_file))
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    expected = original.encode_batch(texts, disallowed_special=())
    different = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    assert different == []
    assert sum(map(len, found)) > 50_000
    assert [tokenizer.decode(ids) for ids in found] == texts


def test_every_cut_is_a_merge(shared: Path) -> None:
    """The number that the official GGUF files of GLM-4 have."""
    ranks = byte_bpe.read_ranks(shared / "originals/glm-4-9b-chat/tokenizer.model")
    merges = byte_bpe.merges_of(ranks)
    assert len(ranks) == 151_329
    assert len(merges) == 318_088 == len(set(merges))
    order = [ranks[left + right] for left, right in merges]
    assert order == sorted(order)


@pytest.mark.parametrize(("folder", "pattern"), [("glm-10b", None), ("qwen2.5", byte_bpe.LETTERS_AND_ONE_DIGIT)])
def test_gpt2_files(folder: str, pattern: str | None, shared: Path) -> None:
    where = shared / "originals" / folder
    golden = json.loads((shared / "originals/golden_tokenization.json").read_text(encoding="utf8"))
    vocabulary, merges = byte_bpe.read_merges(where / "vocab.json", where / "merges.txt")
    tokenizer = byte_bpe.build_from_merges(vocabulary, merges, pattern)
    assert [e.ids for e in tokenizer.encode_batch(golden["strings"])] == golden[folder]["ids"]


def test_qwen_is_transformers_own_tokenizer(shared: Path) -> None:
    """On the same files, which that class reads too."""
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    where = shared / "originals/qwen2.5"
    vocabulary, merges = byte_bpe.read_merges(where / "vocab.json", where / "merges.txt")
    ours = byte_bpe.build_from_merges(vocabulary, merges, byte_bpe.LETTERS_AND_ONE_DIGIT)
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    texts = mixed_corpus(60_000, 2)
    assert [e.ids for e in ours.encode_batch(texts)] == theirs(texts)["input_ids"]


def bytes_file(**changes: int | None) -> bytes:
    vocabulary: dict[str, Any] = {character: byte for byte, character in byte_bpe._PRINTABLE.items()}
    return byte_bpe.write_ranks({k: v for k, v in {**vocabulary, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg==", "cut off"),
        (b"", "found 0 words"),
        (b"I* 0\n", "damaged"),
        (b"IQ== zero\n", "damaged"),
        (b"IQ== 0\nIg== 2\n", "not 0 to 1"),
        (b"IQ== 0\nIg== 1\n", "no token for byte 0x00"),
        (bytes_file() + b"IQ== 256\n", "two ranks"),
    ],
)
def test_bad_rank_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        byte_bpe.read_ranks(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ("{", "", "expected JSON"),
        ("[]", "", "JSON object"),
        ('{"a": "b"}', "", "JSON object"),
        ('{"a": 0, "b": 1}', "#version: 0.2\na b\n", "line 2: 'a b'"),
        ('{"a": 0, "b": 1, "ab": 2}', "a b\na", "line 2: 'a'"),
    ],
)
def test_bad_gpt2_files(vocabulary: str, merges: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(TokenizerError, match=message):
        byte_bpe.read_merges(tmp_path / "vocab.json", tmp_path / "merges.txt")
