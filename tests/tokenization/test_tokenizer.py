"""The tokenizer classes: from the published folders, through AutoTokenizer, saved and read again."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from corpus import mixed_corpus
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glmlike import GlmLikeTokenizer, TokenizerError
from glmlike.tokenization.generations import GENERATIONS
from glmlike.tokenization.tokenizer import HUB_CLASSES

# folder -> (generation, class through AutoTokenizer, ids of 你好, ids of the pair a, b)
FOLDERS: dict[str, tuple[str, str, list[int], list[int]]] = {
    "glm-4-9b-chat": ("glm-4", "GlmLikeTokenizer", [151331, 151333, 109377], [151331, 151333, 64, 65, 151329]),
    "glm-10b": ("glm-10b", "GlmLikeTokenizer", [50259, 19526, 254, 25001, 121, 50256], [50259, 64, 50256, 65, 50256]),
    "glm-10b-chinese": ("glm-10b-chinese", "GlmLikeTokenizer", [50002, 2416, 50000], [50002, 778, 50000, 533, 50000]),
    "chatglm2-6b": ("chatglm2", "ChatGLMTokenizer", [64790, 64792, 36474, 54591], [64790, 64792, 260, 280, 2]),
    "chatglm3-6b": ("chatglm3", "ChatGLMTokenizer", [64790, 64792, 36474, 54591], [64790, 64792, 260, 280, 2]),
    "chatglm-6b-v1.1": (
        *("chatglm-6b", "ChatGLMTokenizer"),
        *([5, 74874, 130001, 130004], [104, 130001, 130004, 463, 130005]),
    ),
    "chatglm-6b-v1.0": (
        *("chatglm-6b", "ChatGLMTokenizer"),
        *([5, 74874, 130001, 130004], [104, 130001, 130004, 463, 130005]),
    ),
}
GOLDEN_OF = {"chatglm-6b-v1.0": "chatglm-6b-v1.1"}  # without image tokens, as its model is loaded
CLASS_ONLY = {"llama-3": "llama-3", "qwen2.5": "qwen2.5"}  # AutoTokenizer gives transformers' own class there
PLAIN_READS = ("glm-4-9b-chat", "glm-10b", "chatglm3-6b", "llama-3", "qwen2.5")


@cache
def load(folder: Path, **arguments: Any) -> Any:
    return GlmLikeTokenizer.from_pretrained(folder, **arguments)


@pytest.fixture(params=[*FOLDERS, *CLASS_ONLY])
def folder(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "originals" / str(request.param)


@pytest.mark.parametrize("name", FOLDERS)
def test_auto_tokenizer(name: str, shared: Path) -> None:
    generation, class_name, single, pair = FOLDERS[name]
    tokenizer = AutoTokenizer.from_pretrained(shared / "originals" / name)
    assert (type(tokenizer).__name__, type(tokenizer).__module__) == (class_name, "glmlike.tokenization.tokenizer")
    assert tokenizer.generation == generation
    assert tokenizer("你好")["input_ids"] == single
    assert tokenizer("a", "b")["input_ids"] == pair
    assert tokenizer.padding_side == GENERATIONS[generation].padding_side


def test_ids_of_the_originals(folder: Path, shared: Path) -> None:
    golden = json.loads((shared / "originals/golden_tokenization.json").read_text(encoding="utf8"))
    tokenizer = load(folder)
    expected = golden[GOLDEN_OF.get(folder.name, folder.name)]["ids"]
    for text, ids in zip(golden["strings"], expected, strict=True):
        assert tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids, text


def test_special_tokens_have_their_ids(folder: Path) -> None:
    tokenizer = load(folder)
    generation = GENERATIONS[tokenizer.generation]
    for text, number in generation.specials.items():
        expected = generation.specials.get(generation.aliases.get(text, text))
        assert tokenizer.convert_tokens_to_ids(text) == expected
        assert tokenizer.convert_ids_to_tokens(number) == text
    for name, text in generation.named.items():
        assert getattr(tokenizer, name) == text
        assert getattr(tokenizer, f"{name}_id") == generation.specials[text]
    assert tokenizer.decode([*generation.specials.values()], skip_special_tokens=True).replace(" ", "") == "".join(
        text for text in generation.specials if text in generation.shown
    )


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("chatglm3-6b", "<|user|>", None),  # as in the original, a text spells no special token
        ("chatglm2-6b", "[gMASK]", None),
        ("chatglm-6b-v1.1", "a<eop>b", [104, 130005, 463]),
        ("chatglm-6b-v1.1", "[MASK]", [130000]),
        ("chatglm-6b-v1.1", "[gMASK]", [130001]),
        ("glm-4-9b-chat", "<|user|>", [151336]),
        ("glm-10b", "the  [MASK]", [1169, 50260]),  # takes the blanks before it
        ("glm-10b", "[gMASK]", [50263]),
        ("glm-10b-chinese", "[gMASK]", [50007]),
        ("glm-10b-chinese", "[sMASK]", [50008]),
    ],
)
def test_special_tokens_in_a_text(name: str, text: str, ids: list[int] | None, shared: Path) -> None:
    tokenizer = load(shared / "originals" / name)
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids is not None:
        assert found == ids
    else:
        assert not set(found) & set(GENERATIONS[tokenizer.generation].specials.values())
        assert tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"] != found


def test_batches_padding_and_truncation_on_both_sides(folder: Path) -> None:
    tokenizer = load(folder)
    texts = ["one", "one two three four five six", ""]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    around = tokenizer.num_special_tokens_to_add()
    assert len(tokenizer("")["input_ids"]) == around
    assert len(tokenizer("", "")["input_ids"]) >= around
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side)
        width = max(map(len, rows))
        for row, mask, own in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
            pads, real = [tokenizer.pad_token_id] * (width - len(own)), [1] * len(own)
            assert row == (pads + own if side == "left" else own + pads)
            assert mask == ([0] * len(pads) + real if side == "left" else real + [0] * len(pads))
        padded = tokenizer.pad({"input_ids": rows}, padding_side=side)
        assert padded["input_ids"] == batch["input_ids"]
        before, tokenizer.truncation_side = tokenizer.truncation_side, side
        cut = tokenizer(texts[1], truncation=True, max_length=around + 2)["input_ids"]
        tokenizer.truncation_side = before
        plain = tokenizer(texts[1], add_special_tokens=False)["input_ids"]
        kept = plain[:2] if side == "right" else plain[-2:]
        assert len(cut) == around + 2
        assert any(cut[start : start + 2] == kept for start in range(around + 1))


def test_offsets_are_characters_of_the_text(folder: Path) -> None:
    tokenizer = load(folder)
    text = "def f(x):  return 你好 x + 1"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    assert ends == sorted(ends)
    assert ends[-1] == len(text)
    assert {text[start:end].strip() for start, end in encoded["offset_mapping"]} & {"return", "def"}


def test_position_ids_when_asked(shared: Path) -> None:
    tokenizer = load(shared / "originals/chatglm3-6b")
    assert "position_ids" not in tokenizer("你好")
    assert tokenizer("你好", return_position_ids=True)["position_ids"] == [0, 1, 2, 3]
    batch = tokenizer(["你好", "你"], padding="max_length", max_length=6, return_position_ids=True)
    assert batch["position_ids"] == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2]]
    one = tokenizer("你好", return_position_ids=True, return_tensors="pt", return_attention_mask=False)
    assert one["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert "attention_mask" not in one
    rows = [dict(tokenizer(text, return_position_ids=True)) for text in ("你好", "你")]
    for side, expected in (("left", [0, 0, 1, 2]), ("right", [0, 1, 2, 0])):
        assert tokenizer.pad(rows, padding_side=side)["position_ids"][1] == expected


def test_eos_token_can_be_set_and_tokens_added(shared: Path, tmp_path: Path) -> None:
    """Fine-tuned ChatGLM tokenizers could not be reloaded, since the originals' eos_token had no setter."""
    tokenizer = GlmLikeTokenizer.from_pretrained(shared / "originals/chatglm3-6b")
    size = len(tokenizer)
    tokenizer.eos_token = "<|user|>"
    assert tokenizer.add_tokens(["<extra>"]) == 1
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.eos_token_id, again.convert_tokens_to_ids("<extra>")) == (64795, size)
    assert again("a<extra>b")["input_ids"] == tokenizer("a<extra>b")["input_ids"]


def test_saved_and_read_again(folder: Path, shared: Path, tmp_path: Path) -> None:
    tokenizer = load(folder)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf8"))
    assert config["tokenizer_class"] == "GlmLikeTokenizer"
    assert config["generation"] == tokenizer.generation
    assert not {"auto_map", "is_local", "name_or_path", "vocab_file", "split_special_tokens"} & set(config)
    assert (tmp_path / "tokenizer.json").is_file()
    again = GlmLikeTokenizer.from_pretrained(tmp_path)
    texts = [*mixed_corpus(20_000, 4), "[MASK] [gMASK] <|user|> </s>"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert again("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert (again.generation, again.padding_side, again.truncation_side, again.chat_template) == (
        *(tokenizer.generation, tokenizer.padding_side, tokenizer.truncation_side, tokenizer.chat_template),
    )
    assert len(again) == len(tokenizer)
    (tmp_path / "tokenizer_config.json").unlink()  # the generation is found from tokenizer.json alone, too
    bare = GlmLikeTokenizer.from_pretrained(tmp_path, generation=None)
    assert bare("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]


def test_the_plain_class_where_it_is_asked_for(shared: Path, tmp_path: Path) -> None:
    load(shared / "originals/glm-10b").save_pretrained(tmp_path, plain=True)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast


WITHOUT_GLMLIKE = """
import json, sys
sys.modules["glmlike"] = None  # importing it fails
from transformers import AutoTokenizer
texts = json.load(open(sys.argv[1]))
found = []
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__module__.startswith("transformers."), type(tokenizer)
    found.append([tokenizer(texts)["input_ids"], tokenizer("a", "b")["input_ids"], tokenizer.padding_side])
print(json.dumps(found))
"""


def test_transformers_without_glmlike_gives_the_same_ids(shared: Path, tmp_path: Path) -> None:
    own = [token for each in GENERATIONS.values() for token in each.specials]  # there, a text may spell these
    texts = [text for text in mixed_corpus(20_000, 5) if not any(token in text for token in own)]
    expected, folders = [], []
    for name in PLAIN_READS:
        tokenizer = load(shared / "originals" / name)
        for plain in (False, True):
            folder = tmp_path / f"{name}-{plain}"
            tokenizer.save_pretrained(folder, plain=plain)
            (folder / "config.json").write_text('{"model_type": "chatglm"}')
            folders.append(str(folder))
            expected.append([tokenizer(texts)["input_ids"], tokenizer("a", "b")["input_ids"], tokenizer.padding_side])
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-c", WITHOUT_GLMLIKE, str(tmp_path / "texts.json"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("name", [each.__name__ for each in HUB_CLASSES])
def test_nothing_of_the_folder_is_executed(name: str, trust: bool | None, shared: Path, tmp_path: Path) -> None:
    source = shared / "originals/glm-10b"
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).symlink_to(source / file)
    (tmp_path / "tokenization_chatglm.py").write_text("raise SystemExit('the code of the folder was run')")
    auto_map = {"AutoTokenizer": [f"tokenization_chatglm.{name}", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "auto_map": auto_map}))
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust)
    assert type(tokenizer).__name__ == name
    assert tokenizer("x")["input_ids"] == [50259, 87, 50256]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved/tokenizer_config.json").read_text()


def test_native_folders_keep_transformers_classes(shared: Path, tmp_path: Path) -> None:
    assert type(AutoTokenizer.from_pretrained(shared / "originals/qwen2.5")).__module__.startswith("transformers.")
    load(shared / "originals/glm-4-9b-chat").backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "config.json").write_text('{"model_type": "glm", "intermediate_size": 8}')
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast
    assert GlmLikeTokenizer.from_pretrained(tmp_path).generation == "glm-4"


def test_the_image_tokens_of_the_first_release(shared: Path) -> None:
    """v1.0's own ids on request; by default those of its model as glmlike loads it."""
    folder = shared / "originals/chatglm-6b-v1.0"
    assert load(folder)("你好")["input_ids"] == [5, 74874, 130001, 130004]
    with pytest.raises(TokenizerError, match="150344 tokens, the model of config.json 150528 rows .less 20000"):
        GlmLikeTokenizer.from_pretrained(folder, num_image_tokens=20_000)
    own = GlmLikeTokenizer(vocab_file=str(folder / "ice_text.model"), num_image_tokens=20_000)
    assert own("你好")["input_ids"] == [20005, 94874, 150001, 150004]
    assert (own.eos_token_id, own.pad_token_id) == (150005, 20003)


def test_the_slim_model_has_the_first_vocabulary_and_the_later_ids(shared: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).symlink_to(shared / "originals/chatglm-6b-slim" / name)
    (tmp_path / "ice_text.model").symlink_to(shared / "originals/chatglm-6b-v1.0/ice_text.model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("你好")["input_ids"] == [5, 74874, 130001, 130004]
    assert tokenizer.eos_token_id == 130005


@pytest.mark.parametrize("place", ["beside", "above", "below"])
def test_glm_130b_finds_icetk_near_its_folder(place: str, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glm-130b-sat"
    (folder / "49300").mkdir(parents=True)
    (folder / "latest").write_text("49300")
    where = {"beside": folder, "above": tmp_path, "below": folder / "49300"}[place]
    (where / "ice_text.model").symlink_to(shared / "originals/chatglm-6b-v1.0/ice_text.model")
    tokenizer = GlmLikeTokenizer.from_pretrained(folder)
    assert tokenizer.generation == "glm-130b"
    assert tokenizer("你好")["input_ids"] == [20005, 94874, 150001, 150004]
    assert tokenizer("a [MASK]", add_special_tokens=False)["input_ids"][-1] == 150000


def test_declared_tokens_stand_above_the_generations_own(shared: Path, tmp_path: Path) -> None:
    """As CodeGeeX4's tokenizer_config.json may rename or add tokens; ids between get a reserved one."""
    (tmp_path / "tokenizer.model").symlink_to(shared / "originals/glm-4-9b-chat/tokenizer.model")
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    declared = {"151339": {"content": "<|code_prefix|>", **flags}, "151345": {"content": "<|code_end|>", **flags}}
    config = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": declared, "generation": "codegeex4"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = GlmLikeTokenizer.from_pretrained(tmp_path)
    assert tokenizer("<|code_prefix|><|code_end|><|user|>")["input_ids"] == [151331, 151333, 151339, 151345, 151336]
    assert tokenizer.convert_ids_to_tokens(151344) == "<|reserved_151344|>"
    assert len(tokenizer) == 151_346


BAD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "tiktoken beside ChatGLM3's config": (
        *("glm-4-9b-chat/tokenizer.model", "tokenizer.model"),
        *({"model_type": "chatglm", "padded_vocab_size": 65_024}, "151343 tokens, the model of config.json 65024 rows"),
    ),
    "SentencePiece beside GLM-4's config": (
        *("chatglm2-6b/tokenizer.model", "tokenizer.model"),
        *(
            {"model_type": "chatglm", "padded_vocab_size": 151_552},
            "64798 tokens, the model of config.json 151552 rows",
        ),
    ),
    "ice_text beside ChatGLM2's config": (
        *("chatglm-6b-v1.1/ice_text.model", "ice_text.model"),
        *(
            {"model_type": "chatglm", "padded_vocab_size": 65_024},
            "unigram model, but config.json is of format 'chatglm'",
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_vocabulary_of_another_checkpoint(case: str, shared: Path, tmp_path: Path) -> None:
    source, name, config, message = BAD[case]
    (tmp_path / name).symlink_to(shared / "originals" / source)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=message):
        GlmLikeTokenizer.from_pretrained(tmp_path)


def test_bad_arguments_and_files(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(shared / "originals/chatglm2-6b/tokenizer.model")
    with pytest.raises(TokenizerError, match="generation='chatglm5': expected one of"):
        GlmLikeTokenizer.from_pretrained(tmp_path, generation="chatglm5")
    with pytest.raises(TokenizerError, match="generation='glm-4' has no vocabulary of this kind"):
        GlmLikeTokenizer.from_pretrained(tmp_path, generation="glm-4")
    (tmp_path / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TokenizerError, match="Git LFS pointer"):
        GlmLikeTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer.json, or damaged"):
        GlmLikeTokenizer.from_pretrained(tmp_path)
