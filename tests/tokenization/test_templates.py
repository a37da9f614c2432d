"""Chat templates give the ids of the original chat code, and the texts published for the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import GENERATIONS_THAT_CHAT, small_tokenizer_of, tokenizer_of
from transformers.utils.chat_template_utils import render_jinja_template

from glmlike.errors import ConfigError
from glmlike.tokenization.templates import GENERATIONS, chat_template

GOLDEN = {
    "chatglm-6b": "chatglm-6b-v1.1",
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "glm-4": "glm-4-9b-chat",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look the weather up",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "北京", "days": 2, "now": True}}}
WITH_TOOLS = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"temp": 21}'},
    {"role": "assistant", "content": "21 degrees"},
]
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def render(generation: str, messages: list[dict[str, Any]], prompted: bool = False, tools: Any = None) -> str:
    return str(
        small_tokenizer_of(generation).apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompted, tokenize=False
        )
    )


def as_messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """A golden conversation as messages, whichever way it was written down."""
    if "messages" in case:
        return list(case["messages"])
    past = [((("user", q), ("assistant", a))) for q, a in case["history"]]
    turns = [{"role": role, "content": said} for pair in past for role, said in pair]
    return [*turns, {"role": "user", "content": case["query"]}]


@pytest.mark.slow
@pytest.mark.parametrize("generation", GOLDEN)
def test_ids_of_the_original_chat_code(generation: str, shared: Path) -> None:
    cases = json.loads((shared / "originals/golden_chat.json").read_text(encoding="utf-8"))[GOLDEN[generation]]
    tokenizer = tokenizer_of(generation)
    for case in cases:
        ids = tokenizer.apply_chat_template(as_messages(case), add_generation_prompt=True, return_dict=False)
        assert ids == case["input_ids"]


@pytest.mark.parametrize("generation", ["chatglm-6b", "chatglm2"])
def test_rounds_are_the_original_prompts(generation: str, shared: Path) -> None:
    cases = json.loads((shared / "originals/golden_chat.json").read_text(encoding="utf-8"))[GOLDEN[generation]]
    around = {"chatglm-6b": ("", "[gMASK]<sop>"), "chatglm2": ("[gMASK]sop", "")}[generation]
    for case in cases:
        assert render(generation, as_messages(case), prompted=True) == case["prompt"].join(around)


def test_every_generation_is_known() -> None:
    assert sorted(g for g in GENERATIONS if chat_template(g) is not None) == sorted(GENERATIONS_THAT_CHAT)
    with pytest.raises(ConfigError, match="glm-5"):
        chat_template("glm-5")


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        ("chatglm3", "[gMASK]sop<|user|>\n a<|assistant|>\n b<|user|>\n c<|assistant|>\n d<|user|>"),
        ("glm-4", "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\nd<|user|>"),
        ("glm-4-0414", "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\nd<|user|>"),
        ("glm-edge", "<|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\nd<|user|>"),
        ("chatglm-6b", "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答：[gMASK]<sop>d<eop>"),
        ("chatglm2", "[gMASK]sop[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答：d</s>"),
    ],
)
def test_a_conversation_ends_with_what_stops_the_reply(generation: str, text: str) -> None:
    assert render(generation, TALK) == text


@pytest.mark.parametrize(
    "generation", [g for g in GENERATIONS_THAT_CHAT if g not in ("chatglm-6b", "chatglm2", "glm-z1")]
)
def test_a_rendering_begins_every_later_one(generation: str) -> None:
    """What training on single turns needs, and what a cache of the conversation needs."""
    talks = [(TALK, None)] + ([(WITH_TOOLS, TOOLS)] if generation not in ("glm-edge", "codegeex4") else [])
    for talk, tools in talks:
        whole = render(generation, talk, tools=tools)
        for count in range(1, len(talk)):
            assert whole.startswith(render(generation, talk[:count], tools=tools))
            if talk[count]["role"] == "assistant":
                assert whole.startswith(render(generation, talk[:count], prompted=True, tools=tools))


def test_chatglm_6b_says_a_first_query_alone() -> None:
    assert render("chatglm-6b", TALK[:1], prompted=True) == "a[gMASK]<sop>"
    assert render("chatglm-6b", TALK[:2]) == "a[gMASK]<sop>b<eop>"


GLM4_TOOLS = (
    "# 可用工具\n\n## get_weather\n\n"
    + json.dumps(TOOLS[0]["function"], indent=4, ensure_ascii=False)
    + "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
)


def test_tools_of_glm_4() -> None:
    called = '\n{"city": "北京", "days": 2, "now": true}<|observation|>\n{"temp": 21}<|assistant|>\n21 degrees<|user|>'
    turns = "<|user|>\nweather?<|assistant|>get_weather"
    by_argument = render("glm-4", WITH_TOOLS, tools=TOOLS)
    assert by_argument.endswith(f"\n\n{GLM4_TOOLS}{turns}{called}")
    assert by_argument.startswith("[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。")
    in_message = [{"role": "system", "content": "", "tools": TOOLS}, *WITH_TOOLS]
    assert render("glm-4", in_message) == by_argument
    said = [{"role": "system", "content": "Be brief.", "tools": TOOLS}, *WITH_TOOLS]
    assert render("glm-4", said) == by_argument.replace("<|user|>\nw", "<|system|>\nBe brief.<|user|>\nw")
    assert render("glm-4-0414", WITH_TOOLS, tools=TOOLS) == f"[gMASK]<sop><|system|>\n{GLM4_TOOLS}{turns} {called}"


def test_the_published_form_of_calls_is_the_same() -> None:
    """``metadata`` names the tool in the originals' messages."""
    published = [dict(m) for m in WITH_TOOLS]
    published[1] = {
        "role": "assistant",
        "metadata": "get_weather",
        "content": json.dumps(CALL["function"]["arguments"], ensure_ascii=False),
    }
    published[2]["role"] = "observation"
    for generation in ("glm-4", "glm-4-0414"):
        assert render(generation, published) == render(generation, WITH_TOOLS)


def test_tools_of_chatglm3() -> None:
    functions = json.dumps([TOOLS[0]["function"]], indent=4, ensure_ascii=False)
    assert render("chatglm3", WITH_TOOLS, tools=TOOLS) == (
        "[gMASK]sop<|system|>\n Answer the following questions as best as you can. You have access to the following "
        f"tools:\n{functions}<|user|>\n weather?<|assistant|>get_weather\n ```python\ntool_call(city='北京', days=2, "
        'now=True)\n```<|observation|>\n {"temp": 21}<|assistant|>\n 21 degrees<|user|>'
    )


def test_z1_forgets_earlier_thoughts() -> None:
    thought = [*TALK[:1], {"role": "assistant", "content": "<think>hm</think>\n b "}, *TALK[2:3]]
    assert render("glm-z1", thought, prompted=True) == (
        "[gMASK]<sop><|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\n<think>"
    )
    assert render("glm-z1", thought[:2]) == "[gMASK]<sop><|user|>\na<|assistant|>\n<think>hm</think>\nb<|user|>"


def test_llama_3_and_codegeex4() -> None:
    head = "<|begin_of_text|><|start_header_id|>{}<|end_header_id|>\n\n"
    assert render("llama-3", TALK[:1], prompted=True) == (
        head.format("user") + "a<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    tools = render("llama-3", WITH_TOOLS, tools=TOOLS)
    assert '{"name": "get_weather", "parameters": {"city": "北京", "days": 2, "now": true}}<|eot_id|>' in tools
    assert "<|start_header_id|>ipython<|end_header_id|>" in tools
    assert tools.index("Environment: ipython") < tools.index('"get_weather"')
    asked = render("codegeex4", TALK[:1], prompted=True)
    assert asked.startswith("<|system|>\n你是一位智能编程助手")
    assert asked.endswith("<|user|>\na<|assistant|>\n")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_qwen_is_the_published_template(shared: Path, data: st.DataObject) -> None:
    config = json.loads((shared / "originals/qwen2.5/tokenizer_config.json").read_text(encoding="utf-8"))
    text = st.text(min_size=1, max_size=8)
    message = st.one_of(
        st.builds(
            lambda role, said: {"role": role, "content": said}, st.sampled_from(["user", "tool", "system"]), text
        ),
        st.builds(lambda said: {"role": "assistant", "content": said}, text),
        st.builds(
            lambda said, count: {"role": "assistant", "content": said, "tool_calls": [CALL] * count},
            st.one_of(st.just(""), text),
            st.integers(1, 2),
        ),
    )
    arguments = {
        "conversations": [data.draw(st.lists(message, min_size=1, max_size=5))],
        "tools": data.draw(st.sampled_from([None, TOOLS])),
        "add_generation_prompt": data.draw(st.booleans()),
    }
    published, _ = render_jinja_template(chat_template=config["chat_template"], **arguments)
    ours, _ = render_jinja_template(chat_template=chat_template("qwen2.5"), **arguments)
    assert ours == published


@pytest.mark.parametrize("generation", GENERATIONS_THAT_CHAT)
def test_unknown_roles_and_parts_are_named(generation: str) -> None:
    with pytest.raises(Exception, match="clown"):
        render(generation, [{"role": "user", "content": "a"}, {"role": "clown", "content": "b"}])
    with pytest.raises(Exception, match="image"):
        render(generation, [{"role": "user", "content": [{"type": "image", "url": "x"}]}])
