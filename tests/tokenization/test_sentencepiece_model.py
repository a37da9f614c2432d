"""Reading a SentencePiece file: what is in it, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from glmlike.errors import TokenizerError
from glmlike.tokenization.sentencepiece_model import read_model


def piece(text: str, score: float, kind: int) -> bytes:
    body = (
        b"\x0a"
        + bytes([len(text.encode())])
        + text.encode()
        + b"\x15"
        + struct.pack("<f", score)
        + b"\x18"
        + bytes([kind])
    )
    return b"\x0a" + bytes([len(body)]) + body


SMALL = (
    piece("<unk>", 0, 2)
    + piece("▁a", -1.5, 1)
    + piece("<0x0A>", 0, 6)
    + b"\x12\x05\x18\x02\x98\x02\x01"
    + b"\x1a\x02\x20\x00"
)


def test_a_small_model(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(SMALL)
    model = read_model(tmp_path / "m")
    assert model.pieces == ("<unk>", "▁a", "<0x0A>")
    assert model.scores == (0.0, -1.5, 0.0)
    assert model.types == ("unknown", "normal", "byte")
    assert (model.algorithm, model.byte_fallback, model.unk_id) == ("bpe", True, 0)
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (True, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        SMALL[:-1],
        SMALL[:9],
        SMALL + piece("▁a", 0, 1),
        SMALL + piece("", 0, 1),
        b"IQ== 0\nIg== 1\n",
        SMALL[14:],
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(TokenizerError, match="not a SentencePiece model, or one that ends early"):
        read_model(tmp_path / "m")


def test_a_git_lfs_pointer_says_so(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(TokenizerError, match="Git LFS pointer"):
        read_model(tmp_path / "m")


def test_published_models_are_read_as_sentencepiece_reads_them(shared: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    for name in ("chatglm-6b-v1.1/ice_text.model", "glm-10b-chinese/cog-pretrain.model"):
        path = shared / "originals" / name
        model, original = read_model(path), spm.SentencePieceProcessor(model_file=str(path))
        ids = range(0, original.vocab_size(), 97)
        assert len(model.pieces) == original.vocab_size()
        assert [model.pieces[each] for each in ids] == [original.id_to_piece(each) for each in ids]
        assert [model.scores[each] for each in ids] == [original.get_score(each) for each in ids]
