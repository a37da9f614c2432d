"""The unigram vocabularies beside sentencepiece with the original code's steps around it, restated here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from corpus import HARD, mixed_corpus, random_text
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glmlike.errors import TokenizerError
from glmlike.tokenization import unigram
from glmlike.tokenization.sentencepiece_model import SentencePieceModel, read_model

FILES = {"v1.0": ("chatglm-6b-v1.0", 20000), "slim": ("chatglm-6b-v1.0", 0), "v1.1": ("chatglm-6b-v1.1", 0)}


class Pair(NamedTuple):
    """Ours and the original, of one release."""

    model: SentencePieceModel
    images: int
    tokenizer: Any
    exact: unigram.UnigramCode
    original: Original


class Original:
    """SPTokenizer of tokenization_chatglm.py; the pieces v1.0 appends are appended to the file's own message."""

    def __init__(self, path: Path, images: int) -> None:
        spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
        data = path.read_bytes()
        if spm.SentencePieceProcessor(model_proto=data).vocab_size() == 130000:
            names = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
            added = [(name, 3) for name in names] + [("<|tab|>", 4)]
            added += [(f"<|blank_{length}|>", 4) for length in range(2, 81)]
            added += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
            for name, kind in added:
                text = name.encode()
                piece = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x00\x00\x18" + bytes([kind])
                data += b"\x0a" + bytes([len(piece)]) + piece
            data += b"\x12\x03\x98\x02\x01"  # trainer_spec.byte_fallback
        self.sp = spm.SentencePieceProcessor(model_proto=data)
        assert self.sp.vocab_size() == 130344
        self.images = images

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in range(80, 1, -1):
            text = text.replace(" " * length, f"<|blank_{length}|>")
        return [each + self.images for each in self.sp.encode(text)]

    def decode(self, ids: list[int]) -> str:
        text = self.sp.decode([each - self.images for each in ids if each >= self.images])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for length in range(2, 81):
            text = text.replace(f"<|blank_{length}|>", " " * length)
        return text


@cache
def load(shared: Path, release: str) -> Pair:
    folder, images = FILES[release]
    path = shared / "originals" / folder / "ice_text.model"
    model = read_model(path)
    return Pair(
        model,
        images,
        unigram.build(model, image_tokens=images),
        unigram.exact(model, image_tokens=images),
        Original(path, images),
    )


@pytest.fixture(params=FILES)
def pair(request: pytest.FixtureRequest, shared: Path) -> Pair:
    return load(shared, request.param)


@pytest.fixture
def v11(shared: Path) -> Pair:
    return load(shared, "v1.1")


def chinese(model: SentencePieceModel) -> list[str]:
    return [piece for piece in model.pieces if any("\u4e00" <= each <= "\u9fff" for each in piece)]


def different(texts: list[str], ours: Callable[[str], Any], original: Callable[[str], Any]) -> list[str]:
    return [text for text in texts if ours(text) != original(text)]


def test_golden_ids(pair: Pair, shared: Path) -> None:
    golden = json.loads((shared / "originals" / "golden_tokenization.json").read_text(encoding="utf8"))
    expected = golden["chatglm-6b-v1.0" if pair.images else "chatglm-6b-v1.1"]
    assert [pair.exact.encode(text) for text in golden["strings"]] == expected["ids"]
    found = [pair.tokenizer.encode(text).ids for text in golden["strings"]]
    ties = [index for index, text in enumerate(golden["strings"]) if text == "x" * 30]
    assert [index for index, ids in enumerate(found) if ids != expected["ids"][index]] == ties
    if "decoded" in expected:
        assert [pair.tokenizer.decode(ids) for ids in expected["ids"]] == expected["decoded"]
        assert [pair.exact.decode(ids) for ids in expected["ids"]] == expected["decoded"]


def test_hard_texts(pair: Pair) -> None:
    assert different(list(HARD), pair.exact.encode, pair.original.encode) == []


def test_mixed_corpus(v11: Pair) -> None:
    texts = mixed_corpus(300_000, 1, chinese(v11.model))
    assert different(texts, v11.exact.encode, v11.original.encode) == []
    # A word is remembered by now, and comes out the same.
    assert different(texts, v11.exact.encode, v11.original.encode) == []


@pytest.mark.exhaustive
def test_five_megabytes_and_fifty_thousand_short_strings(v11: Pair) -> None:
    texts = mixed_corpus(5_500_000, 2, chinese(v11.model))
    rng = random.Random(3)
    texts += [random_text(rng, rng.randrange(1, 12)) for _ in range(50_000)]
    assert different(texts, v11.exact.encode, v11.original.encode) == []


def test_long_texts_of_ties(v11: Pair) -> None:
    """Every sum here is rounded, and the rounding decides between equal cuts."""
    for text in (
        "xx" * 20_000,
        "哈" * 999,
        " ".join("x" * length for length in range(1, 150)),
        "def f():\n    xxxxx\n" * 900,
    ):
        assert v11.exact.encode(text) == v11.original.encode(text)


def test_ties_after_every_other_text(v11: Pair) -> None:
    """Which of two equal cuts is taken depends on the sum so far, and on the place where sums begin anew."""
    for before in ("", "a", "def f(x):\n", "你好，世界。" * 40, "<n>\t  word " * 300):
        for row in ("=" * 18, "-" * 38, "_" * 61, "x" * 47):
            text = f"{before} {row}\n\n{row}"
            assert v11.exact.encode(text) == v11.original.encode(text), text[-80:]
    long = "".join(mixed_corpus(150_000, 9, chinese(v11.model)))
    assert v11.exact.encode(long + "=" * 18) == v11.original.encode(long + "=" * 18)


def test_the_pipeline_differs_only_where_its_docstring_says(v11: Pair) -> None:
    """Without ties and marks outside the table, Rust alone gives the original's ids."""
    texts = [text for text in mixed_corpus(300_000, 5, chinese(v11.model)) if len(text) > 0]
    for text in different(texts, lambda text: v11.tokenizer.encode(text).ids, v11.original.encode):
        spelled = v11.tokenizer.normalizer.normalize_str(text)
        table = v11.exact.pieces.normalize(unigram.spell(text))
        runs = v11.exact.pieces.runs(table)
        assert spelled != table[1:] or min(v11.exact.pieces.gap(run) for run in runs) < 2**-6, text[:80]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text(shared: Path, text: str) -> None:
    pair = load(shared, "v1.1")
    ids = pair.exact.encode(text)
    assert ids == pair.original.encode(text)
    assert all(0 <= each < 130344 for each in (*ids, *pair.tokenizer.encode(text).ids))
    assert pair.exact.decode(ids) == pair.tokenizer.decode(ids) == pair.original.decode(ids)


@settings(max_examples=150, deadline=None)
@example(ids=[130282, 1, 130216])  # the bytes of one character, a control piece between them
@given(ids=st.lists(st.integers(0, 130343) | st.integers(130000, 130343), max_size=12))
def test_any_ids_decode_as_the_original_decodes_them(shared: Path, ids: list[int]) -> None:
    pair = load(shared, "v1.1")
    assert pair.exact.decode(ids) == pair.original.decode(ids)


def test_offsets_are_of_the_text_as_given(v11: Pair) -> None:
    text = "def f(x):\n        return　“你好”\tＡ e\u0301 🙂 end"
    encoding = v11.tokenizer.encode(text)
    assert encoding.ids == v11.original.encode(text)
    parts = [text[start:end] for start, end in encoding.offsets]
    assert "\n" in parts
    blanks = parts[encoding.tokens.index("<|blank_8|>")]  # Rust says one of them, or all, by version
    assert blanks.strip(" ") == ""
    assert blanks
    assert "\t" in parts
    assert any(part.strip() == "🙂" for part in parts)
    starts = [start for start, _ in encoding.offsets]
    assert starts == sorted(starts)
    assert encoding.offsets[-1][1] == len(text)


def test_text_after_a_special_token_gets_its_own_dummy_prefix(shared: Path) -> None:
    pair = load(shared, "v1.1")
    tokenizer = unigram.build(pair.model)
    assert tokenizer.add_special_tokens(["<eop>", "<sop>"]) in (0, 2)
    assert tokenizer.encode("a<eop>b").ids == [104, 130005, 463]  # the official code under transformers 4.30.2
    parts = ["Hello  world ", "\n x", "　，", ""]
    expected = [each for part in parts for each in (*pair.original.encode(part), 130004)]
    assert tokenizer.encode("".join(part + "<sop>" for part in parts)).ids == expected
    assert tokenizer.token_to_id("<sop>") == 130004


def test_what_only_looks_like_a_control_piece_stays_text(v11: Pair) -> None:
    for index in (*v11.model.of_type("control"), *v11.model.of_type("byte"), v11.model.unk_id):
        text = v11.model.pieces[index]
        assert v11.tokenizer.encode(text).ids == v11.original.encode(text), text


def test_every_id_is_its_piece(pair: Pair) -> None:
    assert pair.tokenizer.get_vocab_size() == pair.images + 130344
    complete = unigram.complete(pair.model)
    for index in (0, 3, 4, 5, 9999, 129999, 130000, 130008, 130087, 130088, 130343):
        assert pair.tokenizer.id_to_token(pair.images + index) == complete.pieces[index]


def test_the_pipeline_survives_saving(v11: Pair) -> None:
    again = type(v11.tokenizer).from_str(v11.tokenizer.to_str())
    for text in ("a  b\n\tc 你好 🙂", "e\u0301"):
        assert again.encode(text).ids == v11.tokenizer.encode(text).ids


def test_other_vocabularies_are_refused(shared: Path) -> None:
    for name in ("chatglm2-6b/tokenizer.model", "glm-10b-chinese/cog-pretrain.model"):
        model = read_model(shared / "originals" / name)
        with pytest.raises(TokenizerError, match=r"bpe vocabulary of .* expected"):
            unigram.build(model)
