"""WordPiece is transformers' own BERT tokenizer on the same file."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from corpus import mixed_corpus
from transformers.models.bert.tokenization_bert import BertTokenizer

from glmlike.errors import TokenizerError
from glmlike.tokenization import wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pieces() -> list[str]:
    letters = [*string.ascii_lowercase, *string.digits, *"的一是在不了有和人这，。()=.:_-"]
    return [*SPECIAL, *letters, *(f"##{c}" for c in letters), "the", "##ing", "self", "def", "import", "##tion"]


def test_ids_are_those_of_transformers_bert(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces()) + "\n", encoding="utf8")
    vocabulary = wordpiece.read_pieces(path)
    assert vocabulary == {piece: number for number, piece in enumerate(pieces())}
    texts = [*mixed_corpus(40_000, 3), "ÀÉ naïve The DEFINITION", "a" * 101]
    theirs = BertTokenizer(vocab=vocabulary)(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ours = [e.ids for e in wordpiece.build(vocabulary).encode_batch(texts)]
    assert ours == theirs
    assert sum(token != vocabulary["[UNK]"] for ids in ours for token in ids) > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\na\n", r"no \[CLS\], \[SEP\], \[MASK\]"),
        (b"\xff\xfe", "expected text"),
        ("\n".join([*SPECIAL, "a", "a"]).encode(), "two lines"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        wordpiece.read_pieces(tmp_path / "vocab.txt")
