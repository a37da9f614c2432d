"""Replies of every generation as messages; whatever a model writes, nothing runs and nothing raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import small_tokenizer_of

from glmlike.errors import ConfigError
from glmlike.tokenization.replies import parse_reply
from glmlike.tokenization.templates import GENERATIONS

CALLS = {
    "chatglm3": "get_weather\n ```python\ntool_call(city='北京', days=[1, 2])\n```<|observation|>",
    "glm-4": 'get_weather\n{"city": "北京", "days": [1, 2]}<|observation|>',
    "glm-4-0414": 'get_weather \n{"city": "北京", "days": [1, 2]}<|observation|>',
    "glm-z1": 'the user asks\n</think>\nget_weather\n{"city": "北京", "days": [1, 2]}<|observation|>',
    "qwen2.5": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京", "days": [1, 2]}}\n</tool_call><|im_end|>'
    ),
    "llama-3": '<|python_tag|>{"name": "get_weather", "parameters": {"city": "北京", "days": [1, 2]}}<|eom_id|>',
}


@pytest.mark.parametrize("generation", CALLS)
def test_a_call_is_read(generation: str) -> None:
    reply = parse_reply(CALLS[generation], generation)
    assert reply.content == ""
    assert reply.notes == ()
    (call,) = reply.tool_calls
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "北京", "days": [1, 2]}


@pytest.mark.parametrize("generation", [g for g in CALLS if g != "glm-z1"])
def test_what_is_read_is_what_the_template_writes(generation: str) -> None:
    """A parsed call, put back into the conversation, gives the tokens that the model wrote."""
    tokenizer = small_tokenizer_of(generation)
    asked = [{"role": "user", "content": "weather?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "a b", "n": 1, "deep": {"x": [None]}}}}
    told = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids = tokenizer.apply_chat_template(told, return_dict=False)[len(prompt) :]
    reply = parse_reply(torch.tensor([ids]), tokenizer)
    assert reply.notes == ()
    assert tokenizer.apply_chat_template([*asked, reply.to_message()], return_dict=False)[len(prompt) :] == ids


@pytest.mark.parametrize(
    ("generation", "text", "content"),
    [
        ("chatglm3", "\n 你好<|user|>", "你好"),
        ("chatglm3", "Hello\nworld", "Hello\nworld"),
        ("glm-4", "\n你好\n{}<|user|><|endoftext|>", "你好\n{}"),
        ("glm-4", "Python\nis a language", "Python\nis a language"),
        ("chatglm-6b", " 我是[[训练时间]],好?<eop>", "我是2023年，好？"),
        ("llama-3", '{"not": "a call"}<|eot_id|>', '{"not": "a call"}'),
        ("qwen2.5", "use <s> and </s> there<|im_end|>", "use <s> and </s> there"),
    ],
)
def test_plain_replies(generation: str, text: str, content: str) -> None:
    reply = parse_reply(text, generation)
    assert (reply.content, reply.tool_calls, reply.notes) == (content, (), ())


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        ("chatglm3", "f\n ```python\ntool_call(a=__import__('os').system('x'))\n```"),
        ("chatglm3", "f\n ```python\ntool_call(**{'a': 1})\n```"),
        ("chatglm3", "f\n tool_call(" + "[" * 5000),
        ("chatglm3", "f\n tool_call(a=" + "-" * 5000 + "1)"),
        ("chatglm3", "f\n tool_call(a={1, 2})"),
        ("chatglm3", "f\n tool_call(a='\x00')"),
        ("glm-4", 'f\n{"a": 1'),
        ("qwen2.5", "<tool_call>{}</tool_call>"),
        ("qwen2.5", "<tool_call>{"),
        ("llama-3", '{"name": "f", "parameters": '),
    ],
)
def test_malformed_calls_stay_in_the_content(generation: str, text: str) -> None:
    reply = parse_reply(text, generation)
    assert reply.tool_calls == ()
    assert len(reply.notes) == 1
    assert reply.content == text.strip()


def test_several_calls_and_the_text_around_them() -> None:
    reply = parse_reply(
        'look <tool_call>{"name": "f"}</tool_call> <tool_call>{"name": "g"}</tool_call> done', "qwen2.5"
    )
    assert [call["function"]["name"] for call in reply.tool_calls] == ["f", "g"]
    assert reply.content == "look\ndone"
    reply = parse_reply('\nFirst.<|assistant|>f\n{}<|assistant|>g\n{"a": 1}<|observation|>', "glm-4")
    assert [call["function"]["name"] for call in reply.tool_calls] == ["f", "g"]
    assert reply.content == "First."


def test_thoughts() -> None:
    reply = parse_reply("<think>hm, <b>\n</think>\n\nYes.<|user|>", "glm-z1")
    assert (reply.thinking, reply.content) == ("hm, <b>", "Yes.")
    assert reply.to_message() == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm, <b>"}
    cut = parse_reply("still thinking", "glm-z1")
    assert (cut.thinking, cut.content, len(cut.notes)) == ("still thinking", "", 1)


def test_ids_tell_tokens_from_text() -> None:
    tokenizer = small_tokenizer_of("glm-4")
    text = tokenizer.encode("\nsay <|user|> and <|assistant|>", split_special_tokens=True, add_special_tokens=False)
    ends = tokenizer.convert_tokens_to_ids(["<|user|>", "<|endoftext|>"])
    assert parse_reply([*text, *ends], tokenizer).content == "say <|user|> and <|assistant|>"
    with pytest.raises(ConfigError, match="tokenizer"):
        parse_reply(text, "glm-4")
    with pytest.raises(ConfigError, match="row"):
        parse_reply([text, text], tokenizer)
    with pytest.raises(ConfigError, match="glm-5"):
        parse_reply("", "glm-5")


PIECES = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|assistant|>", "<|observation|>", "<|python_tag|>"),
    *("<function=f>", "</function>", "f\n", "tool_call(", "a=", "```python\n", "```", "{", "}", "[", "]", "(", ")"),
    *('"name": "f"', '"parameters": ', '"arguments": ', ": 1", ",", "'", '"', "\\", "1e999", "-", "not ", "lambda: "),
    *("\x00", "\ud800", "9" * 5000, "f'{x}'", "*", "**", "if 1 else "),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GENERATIONS), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=25))
def test_nothing_makes_it_raise(generation: str, pieces: list[str]) -> None:
    reply = parse_reply("".join(pieces), generation)
    message: dict[str, Any] = reply.to_message()
    assert message["role"] == "assistant"
    for call in reply.tool_calls:
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
