"""The real tokenizers beside sentencepiece, in the texts that Rust alone cuts otherwise too."""

from __future__ import annotations

import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from corpus import HARD, mixed_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unigram import Original
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glmlike import GlmLikeTokenizer
from glmlike.tokenization import unigram, write_plain
from glmlike.tokenization.alignment import align

MARKED = "a e\u0301 (xxxxxxxxxxxx)\n\n  🙂\U0010fffd 哈哈哈哈哈哈哈哈哈 ｶﾞ end"


@cache
def load(folder: Path) -> Any:
    return GlmLikeTokenizer.from_pretrained(folder)


@pytest.fixture
def tokenizer(shared: Path) -> Any:
    return load(shared / "originals/chatglm-6b-v1.1")


@pytest.fixture
def original(shared: Path) -> Original:
    return Original(shared / "originals/chatglm-6b-v1.1/ice_text.model", 0)


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def chinese(tokenizer: Any) -> list[str]:
    return [piece for piece in tokenizer._corners.model.pieces if any("\u4e00" <= each <= "\u9fff" for each in piece)]


def test_ids_and_texts_are_sentencepieces(tokenizer: Any, original: Original) -> None:
    texts = mixed_corpus(60_000, 11, chinese(tokenizer))
    found = plain_ids(tokenizer, texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids == original.encode(text), text[:80]
        assert tokenizer.decode(ids) == original.decode(ids), text[:80]


@pytest.mark.exhaustive
def test_five_megabytes(tokenizer: Any, original: Original) -> None:
    texts = mixed_corpus(5_000_000, 21, chinese(tokenizer))
    wrong = [text for text, ids in zip(texts, plain_ids(tokenizer, texts), strict=True) if ids != original.encode(text)]
    assert [text[:80] for text in wrong] == []


def test_encodings_have_the_same_tokens_as_ids(tokenizer: Any) -> None:
    """Whether a text is left to Rust or cut exactly, in batches of both."""
    texts = [*HARD, MARKED, "你好，世界。……", "    return x\n\n\n", "# " + "_" * 61, *mixed_corpus(20_000, 3)[-20:]]
    ids = tokenizer(texts)["input_ids"]
    with_offsets = tokenizer(texts, return_offsets_mapping=True)
    assert with_offsets["input_ids"] == ids
    assert [encoding.ids for encoding in tokenizer(texts).encodings] == ids
    assert with_offsets.word_ids(len(HARD) + 1).count(0) < len(ids[len(HARD) + 1])  # Rust's words


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(HARD))
def test_aligned_texts_are_the_normalised_ones(text: str, shared: Path) -> None:
    pieces = load(shared / "originals/chatglm-6b-v1.1")._corners.encoder.pieces
    normal, spans = align(text, pieces.charsmap, pieces.users, unigram.spell)
    expected = pieces.normalize(unigram.spell(text))
    assert normal == expected[1:]
    assert len(spans) == len(normal)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)


def test_offsets_are_of_the_text(tokenizer: Any) -> None:
    encoded = tokenizer(MARKED, return_offsets_mapping=True, add_special_tokens=False)
    parts = [MARKED[start:end] for start, end in encoded["offset_mapping"]]
    places = dict(zip(encoded.tokens(), parts, strict=True))
    assert places["▁é"] == " e\u0301"
    assert places["<|blank_2|>"] == "  "
    assert places["<n>"] == "\n"
    assert places["<0xF4>"] == places["<0xBD>"] == "\U0010fffd"
    assert encoded.tokens()[encoded.char_to_token(MARKED.index("🙂"))] == "🙂"
    assert "".join(parts[:-6]).startswith("a e\u0301 (xxxx")


def test_hard_texts_among_others(tokenizer: Any, original: Original) -> None:
    """Batches, padding on both sides, truncation, pairs, special tokens in a text, words."""
    texts = ["plain", MARKED, "", "a" + "e\u0301" * 40]
    rows = [original.encode(text) for text in texts]
    around = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, pad_to_multiple_of=8)
        for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
            own = [*row, *around]
            pads = len(ids) - len(own)
            assert ids == ([tokenizer.pad_token_id] * pads + own if side == "left" else own + [3] * pads)
            assert mask == ([0] * pads + [1] * len(own) if side == "left" else [1] * len(own) + [0] * pads)
    assert len(batch["input_ids"][0]) % 8 == 0
    cut = tokenizer(MARKED, truncation=True, max_length=9)["input_ids"]
    assert cut == [*rows[1][:7], *around]
    pair = tokenizer("e\u0301", "b", add_special_tokens=True)["input_ids"]
    assert pair == [*original.encode("e\u0301"), *around, *original.encode("b"), 130005]
    spelled = tokenizer("e\u0301<eop>e\u0301 [MASK]", add_special_tokens=False)["input_ids"]
    assert spelled == [*original.encode("e\u0301"), 130005, *original.encode("e\u0301 "), 130000]
    words = tokenizer(["e\u0301", "b"], is_split_into_words=True, add_special_tokens=False)
    assert words["input_ids"] == [*original.encode("e\u0301"), *original.encode("b")]
    assert words.word_ids()[-1] == 1
    overflow = tokenizer([MARKED], truncation=True, max_length=9, return_overflowing_tokens=True, stride=2)
    assert len(overflow["input_ids"]) > 2
    assert overflow["input_ids"][0] == cut
    assert tokenizer([MARKED], return_tensors="pt")["input_ids"].tolist() == [[*rows[1], *around]]


def test_saved_pickled_and_read_again(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert {"tokenizer.json", "ice_text.model"} <= {path.name for path in tmp_path.iterdir()}
    for again in (AutoTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert plain_ids(again, [MARKED]) == plain_ids(tokenizer, [MARKED])
    assert tokenizer.backend_tokenizer.encode(MARKED).ids != plain_ids(tokenizer, [MARKED])[0]


def test_glm_10b_chinese(shared: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    folder = shared / "originals/glm-10b-chinese"
    tokenizer = load(folder)
    library = spm.SentencePieceProcessor(model_file=str(folder / "cog-pretrain.model"))
    texts = mixed_corpus(60_000, 13, ["你好", "世界", "的"])
    for text, ids in zip(texts, plain_ids(tokenizer, texts), strict=True):
        assert ids == library.encode(text), text[:80]
    for text in ("<n></s>", "</s>", "a <unk>\u0301", "<n><s> e\u0301"):  # pieces that text does not spell
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        assert encoded["input_ids"] == library.encode(text)
    encoded = tokenizer("a e\u0301 b", add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["offset_mapping"][-1][1] == len("a e\u0301 b")


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b"])
def test_bytes_that_are_no_characters_decode_as_sentencepiece_decodes_them(name: str, shared: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    library = spm.SentencePieceProcessor(model_file=str(shared / "originals" / name / "tokenizer.model"))
    tokenizer = load(shared / "originals" / name)
    smile = [each + 3 for each in "🙂".encode()]
    for ids in (smile, smile[:3], [*smile, smile[0]], [36474, *smile, 250, 54591], [131, *smile, 131, 260]):
        assert tokenizer.decode(ids) == library.decode(ids)


def test_write_plain(shared: Path, tmp_path: Path) -> None:
    names = write_plain(shared / "originals/chatglm3-6b", tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(names)
    assert not {"tokenizer.model", "config.json"} & {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert plain("你好")["input_ids"] == [64790, 64792, 36474, 54591]


@pytest.mark.parametrize("name", ["chatglm-6b-v1.1", "chatglm3-6b", "glm-4-9b-chat"])
def test_replies_are_marked_as_a_trainer_asks_for_them(name: str, shared: Path) -> None:
    """The call of TRL 1.16's SFTTrainer with assistant_only_loss: one chat a time, the chat template's own marks."""
    tokenizer = load(shared / "originals" / name)
    reply = "哈哈哈哈哈哈哈哈哈 caf\u0065\u0301!"
    talk = [{"role": "user", "content": "Q e\u0301"}, {"role": "assistant", "content": reply}]
    talk += [{"role": "user", "content": "again"}, {"role": "assistant", "content": "two"}]
    processed = tokenizer.apply_chat_template(
        talk, tools=None, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masks = processed["assistant_masks"]
    assert len(masks) == len(processed["input_ids"])
    assert processed["input_ids"] == tokenizer.apply_chat_template(talk, return_dict=False)
    learned = [token for token, mask in zip(processed["input_ids"], masks, strict=True) if mask]
    said = tokenizer.decode(learned, skip_special_tokens=True)
    assert "caf\u00e9!" in said.replace("e\u0301", "\u00e9")
    assert said.rstrip().endswith("two")
    assert "again" not in said
    assert "Q" not in said
