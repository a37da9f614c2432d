"""``chat`` and ``stream_chat`` of the originals: scripts written for them run unedited."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glmlike.modeling import ChatGLMForConditionalGeneration
from glmlike.tokenization.replies import full_width_beside_chinese
from specs import SPECS

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the turn tokens of ChatGLM3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    roles = ["<|user|>", "<|assistant|>", "<|observation|>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=roles, pad_token="<pad>")


@pytest.fixture
def model(make: Callable[..., Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    return make(SPECS["chatglm2"].replace(vocab_size=len(tokenizer)), eos_token_id=None)


GREEDY = {"do_sample": False, "max_new_tokens": 6}


def test_messages_when_the_tokenizer_has_a_template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    past = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    reply, history = model.chat(tokenizer, "hello", history=past, **GREEDY)
    assert past == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert history[:2] == past
    assert history[2] == {"role": "user", "content": "hello"}
    assert (history[3]["role"], history[3]["content"]) == ("assistant", reply)
    prompt = tokenizer("<|user|>a<|assistant|>b<|user|>hello<|assistant|>", return_tensors="pt")
    generated = model.generate(**prompt, **GREEDY)[0, prompt["input_ids"].shape[1] :]
    assert reply == tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_rounds_when_it_has_none(model: Any, tokenizer: Any) -> None:
    """ChatGLM2's prompt (tokenization_chatglm.py, build_prompt)."""
    reply, history = model.chat(tokenizer, "你好", history=[("a", "b")], **GREEDY)
    assert history == [("a", "b"), ("你好", reply)]
    prompt = tokenizer("[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：你好\n\n答：", return_tensors="pt")
    generated = model.generate(**prompt, **GREEDY)[0, prompt["input_ids"].shape[1] :]
    assert reply == tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_chatglm_6b_has_its_own_rounds(make: Callable[..., Any], tokenizer: Any) -> None:
    """No round for the first query, then rounds from 0 (modeling_chatglm.py, chat)."""
    model = make(SPECS["chatglm-6b"].replace(vocab_size=len(tokenizer), max_position_embeddings=512), eos_token_id=None)
    for past, text in (([], "你好"), ([("a", "b")], "[Round 0]\n问：a\n答：b\n[Round 1]\n问：你好\n答：")):
        reply, history = model.chat(tokenizer, "你好", history=past, **GREEDY)
        assert history == [*past, ("你好", reply)]
        prompt = tokenizer(text, return_tensors="pt")
        generated = model.generate(**prompt, **GREEDY)[0, prompt["input_ids"].shape[1] :]
        decoded = tokenizer.decode(generated, skip_special_tokens=True).strip()
        assert reply == full_width_beside_chinese(decoded)


def test_full_width_punctuation_beside_chinese() -> None:
    assert full_width_beside_chinese("你好,hi, a:b 真的?是!") == "你好，hi, a:b 真的？是！"


def test_streaming_grows_to_the_same_reply(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    states = list(model.stream_chat(tokenizer, "hello", **GREEDY))
    replies = [reply for reply, _ in states]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(replies))
    assert states[-1] == model.chat(tokenizer, "hello", **GREEDY)


def test_generation_stops_where_the_next_turn_would_begin(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}
    original = type(model).generate

    def spy(self: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return original(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    model.chat(tokenizer, "hello", **GREEDY)
    vocabulary = tokenizer.get_vocab()
    assert seen["eos_token_id"] == sorted([vocabulary["<|user|>"], vocabulary["<|observation|>"]])
    assert not {"top_p", "temperature", "max_length"} & seen.keys()


def test_an_error_in_the_worker_reaches_the_reader(model: Any, tokenizer: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        list(model.stream_chat(tokenizer, "hello", not_an_argument=1, **GREEDY))


def test_the_class_the_original_repositories_name_has_both() -> None:
    assert callable(ChatGLMForConditionalGeneration.chat)
    assert callable(ChatGLMForConditionalGeneration.stream_chat)
