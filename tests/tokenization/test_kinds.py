"""Files are told apart by what they hold; the wrong ones by one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.errors import TokenizerError
from glmlike.tokenization import kinds
from glmlike.tokenization.detection import choose, find
from glmlike.tokenization.generations import GENERATIONS

PUBLISHED = {
    "chatglm-6b-v1.0/ice_text.model": ("unigram", 130_000, "chatglm-6b"),
    "chatglm-6b-v1.1/ice_text.model": ("unigram", 130_344, "chatglm-6b"),
    "chatglm2-6b/tokenizer.model": ("sentencepiece-bpe", 64_789, "chatglm3"),
    "glm-10b-chinese/cog-pretrain.model": ("cog-pretrain", 50_000, "glm-10b-chinese"),
    "glm-4-9b-chat/tokenizer.model": ("ranks", 151_329, "glm-4"),
    "llama-3/tokenizer.model": ("ranks", 128_000, "llama-3"),
    "glm-10b/vocab.json": ("merges", 50_257, "glm-10b"),
    "qwen2.5/vocab.json": ("merges", 151_643, "qwen2.5"),
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:5f\nsize 2706249\n"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vocabularies_whatever_their_name(name: str, shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "some-name"
    file.symlink_to(shared / "originals" / name)
    if name.endswith("vocab.json"):
        (tmp_path / "merges.txt").symlink_to((shared / "originals" / name).with_name("merges.txt"))
    found = kinds.read_file(file)
    assert (found.kind, found.size, find(found.kind, found.size, {}, {}, "here")) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "Git LFS pointer.*git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html>"),
        (b"PK\x03\x04\x00\x00", "begins with"),
        (b'{"a": 0}', "merges.txt is not beside it"),
        (b"\n\xff\xff\xff", "SentencePiece"),
    ],
)
def test_files_that_are_no_vocabulary(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        kinds.read_file(tmp_path / "tokenizer.model")


def test_a_sentencepiece_model_that_ends_early(shared: Path, tmp_path: Path) -> None:
    whole = (shared / "originals/chatglm2-6b/tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2 + 1])
    with pytest.raises(TokenizerError, match="[Dd]ownload"):
        kinds.read_file(tmp_path / "tokenizer.model")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("kinds") / "file"
    path.write_bytes(content)
    with pytest.raises(TokenizerError):
        kinds.read_file(path)


def test_no_vocabulary_and_half_of_one(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no vocabulary: expected tokenizer.json"):
        kinds.read_vocabulary({})
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match="merges.txt is not beside it"):
        kinds.read_vocabulary({"vocab_json_file": str(tmp_path / "vocab.json")})


def test_a_size_that_nothing_published_has() -> None:
    with pytest.raises(TokenizerError, match="151330 tokens; published ones of its kind have 151329"):
        find("ranks", 151_330, {}, {}, "here")


@pytest.mark.parametrize(
    ("able", "config", "own", "meant"),
    [
        (("chatglm2", "chatglm3", "codegeex2"), {}, {}, "chatglm3"),
        (("chatglm2", "chatglm3", "codegeex2"), {"_name_or_path": "THUDM/chatglm2-6b-32k"}, {}, "chatglm2"),
        (("chatglm2", "chatglm3", "codegeex2"), {}, {"name_or_path": "THUDM/chatglm2-6b"}, "chatglm2"),
        (("chatglm2", "chatglm3", "codegeex2"), {"generation": "chatglm2"}, {}, "chatglm2"),
        (("chatglm2", "chatglm3", "codegeex2"), {"interleaved_qkv": False}, {}, "codegeex2"),
        (("glm-4", "glm-4-0414", "glm-z1", "codegeex4"), {"generation": "glm4"}, {}, "glm-4"),
        (("glm-4", "glm-4-0414", "glm-z1", "codegeex4"), {"model_type": "glm4"}, {}, "glm-4-0414"),
        (("glm-4", "glm-4-0414", "glm-z1"), {"model_type": "glm4"}, {"chat_template": "…<think>"}, "glm-z1"),
        (("glm-4", "codegeex4"), {"_name_or_path": "THUDM/codegeex4-all-9b"}, {}, "codegeex4"),
        (("chatglm-6b", "glm-130b"), {"model_class": "GLM130B"}, {}, "glm-130b"),
        (("chatglm-6b", "glm-130b"), {"model_type": "glmlike", "positions": "rotary"}, {}, "glm-130b"),
        (("chatglm-6b", "glm-130b"), {"model_type": "chatglm"}, {}, "chatglm-6b"),
    ],
)
def test_what_tells_generations_of_one_vocabulary_apart(
    able: tuple[str, ...], config: dict[str, object], own: dict[str, object], meant: str
) -> None:
    assert choose(list(able), config, own) == meant


def test_the_table_contradicts_itself_nowhere() -> None:
    for generation in GENERATIONS.values():
        ids = list(generation.specials.values())
        assert len(ids) == len(set(ids)), generation.name
        used = {piece.partition(":")[0] for piece in (*generation.single, *generation.pair)} - {"$A", "$B"}
        named = {*used, *generation.named.values(), *generation.left_stripped, *generation.shown, *generation.aliases}
        assert named <= set(generation.specials), generation.name
