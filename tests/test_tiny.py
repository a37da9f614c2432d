"""The embedded model: small, trained, in our native layout, and known by its continuations."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmlike
from glmlike.data import CONSTITUTION, TINY
from glmlike.infilling import fill


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TINY / "training.json").read_text(encoding="utf8"))
    return found


def test_it_is_small_and_native() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000
    found = glmlike.detect(TINY)
    assert found.format == "glmlike"
    spec = found.spec
    assert (spec.norm, spec.residual, spec.feed_forward) == ("rms", "pre", "swiglu")
    assert (spec.positions, spec.attention_mask, spec.intermediate_size) == ("rotary_2d", "prefix", 640)
    assert (spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.num_key_value_heads) == (True, False, False, 2)
    assert {info.dtype for info in found.checkpoint.tensors.values()} == {"BF16"}


FILLED = {
    "In the beginning God created the [MASK] and the earth.": " heaven",
    "床前明月光，疑是地上[MASK]。": "霜",
    "And the LORD said unto [MASK], Speak unto the children of Israel.": " Moses",
}


@pytest.mark.parametrize("text", FILLED)
def test_its_blanks_are_filled_with_the_texts(text: str, model: Any, tokenizer: Any) -> None:
    filled = fill(model, tokenizer, text, do_sample=False)
    assert filled.spans[0].text == FILLED[text]
    assert filled.filled_text == re.sub(r" ?\[MASK\]", FILLED[text], text)


CONTINUATIONS = {
    "Verily, verily, I say": "unto you",
    "Thus saith the LORD": "of hosts",
    "And the word of the LORD came unto me,": "saying",
    "And the LORD spake unto": "Moses, saying",
    "床前明月光，": "疑是地上霜。",
}


@pytest.mark.parametrize("prompt", CONTINUATIONS)
def test_its_continuations_are_the_texts(prompt: str, model: Any, tokenizer: Any) -> None:
    output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(output[0])[len(prompt) :].strip().startswith(CONTINUATIONS[prompt])


@torch.no_grad()
def test_the_numbers_beside_it_are_measured_on_it(model: Any, tokenizer: Any, training: dict[str, Any]) -> None:
    """Each sample is held-out text with the score that training.json says it has."""
    assert training["samples"]
    for sample in training["samples"]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sample["text"])["input_ids"]]])
        nats = 0.0
        for start in range(0, ids.shape[1] - 1, 256):
            block = ids[:, start : start + 257]
            nats += float(model(block, labels=block).loss) * (block.shape[1] - 1)
        assert math.exp(nats / (ids.shape[1] - 1)) == pytest.approx(sample["perplexity"], rel=1e-2)
    assert training["held_out"]["bits_per_byte"] < 2.0
    assert all(row["blanks"] > 20 and row["n-gram"] > 0 for row in training["blanks"].values())
    assert training["blanks"]["English"]["model"] > 0.3
    losses = [row["loss"] for row in training["phases"][0]["loss"]]
    assert losses[-1] < losses[0] / 1.5


@pytest.mark.parametrize("text", ["", "\x00\r\n\t", "日本語 🎉 naïve \u200b", "a" * 500, "[MASK]<|user|>"])
def test_its_tokenizer_is_lossless(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_its_tokenizer_is_a_plain_fast_one(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id}) == 2
    ids = tokenizer("[MASK] [gMASK]<sop><eop>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4  # a blank takes the white space before it
    batch = tokenizer(["a", "a longer one"], padding=True)
    assert batch["attention_mask"][0][0] == 0  # on the left


def test_its_chat_template_marks_the_assistant(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Lo"}]
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, on in zip(found["input_ids"], found["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == f"Lo{tokenizer.eos_token}"


def test_the_bundled_text_is_what_it_says() -> None:
    text = CONSTITUTION.read_text(encoding="utf8")
    assert "When in the Course of human events" in text
    assert "We the People of the United States" in text
