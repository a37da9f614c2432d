"""The originals' prompt helpers: the same inputs as their tokenizers made, an error where there were none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers_for_tests import ChatTokenizer, small_tokenizer_of

from glmlike.errors import GlmLikeError
from glmlike.tokenization.templates import GENERATIONS
from specs import SPECS

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_rounds() -> None:
    past = [("a", "b")]
    assert small_tokenizer_of("chatglm-6b").build_prompt("c", past) == "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答："
    assert small_tokenizer_of("chatglm-6b").build_prompt("c") == "c"
    assert small_tokenizer_of("chatglm2").build_prompt("c", past) == (
        "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答："
    )


@pytest.mark.parametrize("generation", ["chatglm3", "glm-4"])
def test_messages(generation: str) -> None:
    tokenizer = small_tokenizer_of(generation)
    single = tokenizer.build_single_message
    parts = [single("user", "", "a"), single("assistant", "", "b"), single("observation", "", "<|user|>")]
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "sop" if generation == "chatglm3" else "<sop>"])
    expected = [*prefix, *(token for part in parts for token in part), tokenizer.get_command("<|assistant|>")]
    inputs = tokenizer.build_chat_input("<|user|>", TALK, role="observation")
    assert inputs["input_ids"].tolist() == [expected]
    with pytest.raises(GlmLikeError, match="clown"):
        tokenizer.build_chat_input("x", role="clown")


def test_commands() -> None:
    tokenizer = small_tokenizer_of("chatglm2")
    assert tokenizer.get_command("<eos>") == tokenizer.get_command("</s>") == tokenizer.eos_token_id
    with pytest.raises(GlmLikeError, match="special token"):
        tokenizer.get_command("hello")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_helpers_that_an_original_never_had(generation: str) -> None:
    tokenizer = ChatTokenizer.__new__(ChatTokenizer)
    tokenizer.__dict__["generation"] = generation
    calls: dict[str, Callable[[], Any]] = {
        "build_prompt": lambda: tokenizer.build_prompt("x"),
        "build_chat_input": lambda: tokenizer.build_chat_input("x"),
        "get_command": lambda: tokenizer.get_command("x"),
        "build_inputs_for_generation": lambda: tokenizer.build_inputs_for_generation({}),
    }
    had = {
        "build_prompt": ("chatglm-6b", "chatglm2"),
        "build_chat_input": ("chatglm3", "glm-4", "codegeex4"),
        "get_command": ("chatglm2", "codegeex2", "chatglm3", "glm-4", "codegeex4"),
        "build_inputs_for_generation": ("glm-10b", "glm-10b-chinese", "glm-bert", "glm-roberta"),
    }
    for name, call in calls.items():
        if generation not in had[name]:
            with pytest.raises(GlmLikeError, match=f"{name}: the tokenizer of {generation}"):
                call()


@pytest.fixture
def blanks() -> Any:
    """Words, and the special tokens of GLM-10B."""
    names = ["[CLS]", "[MASK]", "[gMASK]", "<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>"]
    words = {word: number for number, word in enumerate(["[UNK]", *"abcdefgh"])}
    backend = Tokenizer(models.WordLevel(words, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer = ChatTokenizer(tokenizer_object=backend, pad_token="<|endoftext|>", mask_token="[MASK]")
    tokenizer.generation = "glm-10b"
    return tokenizer


def test_inputs_for_generation(blanks: Any) -> None:
    """Numbers worked out by hand after the original's rules (glm_lineage 2.3)."""
    texts = blanks(["a [MASK] b", "c d e [gMASK]"], padding=True, return_tensors="pt")
    made = blanks.build_inputs_for_generation(texts, max_gen_length=3)
    sop = blanks.convert_tokens_to_ids("<|startofpiece|>")
    assert made["input_ids"].tolist() == [[*row, sop] for row in texts["input_ids"].tolist()]
    assert made["position_ids"].tolist() == [
        [[0, 1, 2, 3, 1, 1, 1], [0, 0, 0, 0, 1, 2, 3]],
        [[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]],
    ]
    mask = made["generation_attention_mask"]
    assert mask.shape == (2, 1, 7, 7)
    assert mask[0, 0].tolist()[:4] == [[1, 1, 1, 0, 0, 0, 0]] * 4
    assert mask[0, 0].tolist()[4:] == [[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1]]


def test_inputs_for_training(blanks: Any) -> None:
    texts = blanks(["a [MASK]", "b [MASK]"], return_tensors="pt")
    made = blanks.build_inputs_for_generation(texts, targets=["c d e", "f"])
    ids = blanks.convert_tokens_to_ids
    sop, eop, pad = ids("<|startofpiece|>"), ids("<|endofpiece|>"), blanks.pad_token_id
    assert made["labels"].tolist() == [
        [-100, -100, ids("c"), ids("d"), ids("e"), eop],
        [-100, -100, ids("f"), eop, -100, -100],
    ]
    assert made["input_ids"].tolist() == [
        [ids("a"), ids("[MASK]"), sop, ids("c"), ids("d"), ids("e")],
        [ids("b"), ids("[MASK]"), sop, ids("f"), eop, pad],
    ]
    assert made["attention_mask"].shape == (2, 1, 6, 6)
    with pytest.raises(GlmLikeError, match="1 targets for 2"):
        blanks.build_inputs_for_generation(texts, targets=["c"])
    with pytest.raises(GlmLikeError, match="no blank"):
        blanks.build_inputs_for_generation(blanks(["a"], return_tensors="pt"))


def test_generation_from_them(make: Callable[..., Any], blanks: Any) -> None:
    """The lines of GLM-10B's model card: the same as from the prompt itself."""
    ids = blanks.convert_tokens_to_ids
    names = {"mask_token_id": ids("[MASK]"), "gmask_token_id": ids("[gMASK]"), "sop_token_id": ids("<|startofpiece|>")}
    spec = SPECS["glm-10b"].replace(vocab_size=len(blanks))
    model = make(spec, **names, smask_token_id=None, pad_token_id=ids("<|endoftext|>"), eos_token_id=None)
    texts = blanks(["a [MASK] b c", "d [MASK]"], padding=True, padding_side="left", return_tensors="pt")
    made = blanks.build_inputs_for_generation(texts, max_gen_length=8)
    output = model.generate(**made, max_new_tokens=6, do_sample=False)
    start = torch.full((2, 1), names["sop_token_id"])
    prompt = torch.cat((texts["input_ids"], start), 1)
    shown = torch.cat((texts["attention_mask"], torch.ones_like(start)), 1)
    assert torch.equal(output, model.generate(prompt, attention_mask=shown, max_new_tokens=6, do_sample=False))
