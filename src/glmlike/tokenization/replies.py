"""What a model replied, as a message: content, tool calls, thoughts. Nothing a model writes is ever executed.

Each generation calls tools in its own way; :func:`parse_reply` reads them all into one form, OpenAI's. A call that is
malformed stays in the content, and a note says why. No text makes it raise.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmlike.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][\w.\-]{0,127}")
_FENCE = re.compile(r"\A\s*```[\w+]*\n?(.*?)(?:\n?```\s*)?\Z", re.DOTALL)
_QWEN_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_LLAMA_FUNCTION = re.compile(r"<function=([^>\s]{1,128})>(.*?)</function>", re.DOTALL)
_LONGEST_SNIPPET = 20_000
_DEEPEST = 50  # nested brackets in a snippet of Python; the parser's own limit is the stack
_UNARY_RUN = re.compile(r"(?:(?:[-+~]|\bnot\b)\s*){50}")
_ENDS = (
    *("<|user|>", "<|observation|>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<eop>", "</s>"),
)
_TURN = "<|assistant|>"


@dataclass(frozen=True)
class Reply:
    """A reply: ``tool_calls`` are OpenAI's (``arguments`` is JSON); ``notes`` say what was not understood.

    ``thinking`` is None where the generation does not think aloud, or did not.
    """

    content: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking: str | None = None
    notes: tuple[str, ...] = ()

    def to_message(self) -> dict[str, Any]:
        """The assistant's message, which ``apply_chat_template`` takes back."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thinking is not None:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            calls = [
                dict(call["function"], arguments=json.loads(call["function"]["arguments"])) for call in self.tool_calls
            ]
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message


@dataclass
class _Draft:
    """A reply while it is read."""

    content: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    thinking: str | None = None
    notes: list[str] = field(default_factory=list)

    def call(self, name: str, arguments: Any) -> None:
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        self.calls.append({"id": f"call_{len(self.calls)}", "type": "function", "function": function})

    def keep(self, text: str, note: str) -> None:
        self.content.append(text)
        self.notes.append(note)


def parse_reply(reply: Any, generation: Any, tokenizer: Any = None) -> Reply:
    """A reply as a message.

    ``reply`` is text, or ids that ``generate`` returned after the prompt (a list or a tensor of one row); ids keep the
    special tokens apart from text that spells them, so prefer them. ``generation`` is a name or a tokenizer that has
    one; ids need a tokenizer in either place.

    Raises:
        ConfigError: ids without a tokenizer, or a generation that is not known. Never for what the reply says.
    """
    name = generation if isinstance(generation, str) else getattr(generation, "generation", None)
    tokenizer = tokenizer if tokenizer is not None or isinstance(generation, str) else generation
    if name not in _READERS:
        raise ConfigError(f"generation={name!r} is not known; known: {', '.join(sorted(_READERS))}.")
    turns = _turns_of_text(reply) if isinstance(reply, str) else _turns_of_ids(reply, tokenizer)
    draft = _Draft()
    _READERS[name](turns, draft)
    content = "\n".join(part for part in map(str.strip, draft.content) if part)
    return Reply(clean(content, name), tuple(draft.calls), draft.thinking, tuple(draft.notes))


def clean(text: str, generation: str | None) -> str:
    """The text of a reply as the original ``chat`` of a generation hands it over (``process_response``)."""
    text = text.strip().replace("[[训练时间]]", "2023年")
    return full_width_beside_chinese(text) if generation == "chatglm-6b" else text


def full_width_beside_chinese(text: str) -> str:
    """``, ! : ; ?`` next to a Chinese character in their full-width form (ChatGLM-6B: `process_response`)."""
    for half, full in zip(",!:;?", "，！：；？", strict=True):
        text = re.sub(rf"([\u4e00-\u9fff]){re.escape(half)}", rf"\1{full}", text)
        text = re.sub(rf"{re.escape(half)}([\u4e00-\u9fff])", rf"{full}\1", text)
    return text


def _turns_of_text(text: str) -> list[str]:
    """The parts of a reply, one an ``<|assistant|>`` turn, without the tokens that ended it."""
    before = None
    while before != text:
        before = text
        for end in _ENDS:
            text = text.rstrip(" ").removesuffix(end)
    return text.split(_TURN)


def _turns_of_ids(reply: Any, tokenizer: Any) -> list[str]:
    if tokenizer is None:
        raise ConfigError("parse_reply of ids: pass the tokenizer, as generation or as tokenizer=.")
    ids = reply.tolist() if hasattr(reply, "tolist") else list(reply)
    while ids and isinstance(ids[0], list):
        if len(ids) > 1:
            raise ConfigError(f"parse_reply of {len(ids)} rows: pass one row at a time.")
        ids = ids[0]
    known = tokenizer.get_added_vocab()
    ends = {known[end] for end in _ENDS if end in known} | {tokenizer.eos_token_id}
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    turns: list[list[int]] = [[]]
    for token in ids[:stop]:
        if token == known.get(_TURN):
            turns.append([])
        else:
            turns[-1].append(token)
    return [str(tokenizer.decode(turn, skip_special_tokens=False)) for turn in turns]


def _plain(turns: Sequence[str], draft: _Draft) -> None:
    draft.content += [_TURN.join(turns)]


def _glm4(turns: Iterable[str], draft: _Draft) -> None:
    """``name\\n{json}``: GLM-4, GLM-4-0414 (with a blank after the name) and GLM-Edge."""
    for turn in turns:
        name, rest = _header(turn)
        if name is None:
            draft.content.append(turn)
            continue
        arguments = _json(rest)
        if isinstance(arguments, dict):
            draft.call(name, arguments)
        elif rest.lstrip().startswith("{"):
            draft.keep(turn, f"a call of {name!r} whose arguments are no JSON object stays in the content")
        else:
            draft.content.append(turn)


def _z1(turns: Sequence[str], draft: _Draft) -> None:
    """Thoughts up to ``</think>`` (the prompt opened them), then as GLM-4."""
    text = _TURN.join(turns)
    thoughts, closed, rest = text.partition("</think>")
    draft.thinking = thoughts.strip().removeprefix("<think>").strip()
    if closed:
        _glm4(rest.lstrip().split(_TURN), draft)
    else:
        draft.notes.append("the thoughts were cut off before </think>: there is no answer yet")


def _chatglm3(turns: Iterable[str], draft: _Draft) -> None:
    """``name\\n```python\\ntool_call(key='value')\\n````, read as literals."""
    for turn in turns:
        name, rest = _header(turn)
        if name is None or "tool_call" not in rest:
            draft.content.append(turn)
            continue
        try:
            draft.call(name, _python_arguments(rest))
        except ValueError as error:
            draft.keep(turn, f"a call of {name!r} stays in the content: {error}")


def _qwen(turns: Sequence[str], draft: _Draft) -> None:
    """``<tool_call>{"name": .., "arguments": {..}}</tool_call>``, any number of them, with text around."""
    text = _TURN.join(turns)
    place = 0
    for match in _QWEN_CALL.finditer(text):
        draft.content.append(text[place : match.start()])
        place = match.end()
        if not _call(match[1], draft, "arguments"):
            draft.keep(match[0], "a <tool_call> that is no JSON object with a name stays in the content")
    rest = text[place:]
    if "<tool_call>" in rest:
        draft.notes.append("a <tool_call> without its end stays in the content")
    draft.content.append(rest)


def _llama(turns: Sequence[str], draft: _Draft) -> None:
    """JSON ``{"name": .., "parameters": {..}}`` alone, after ``<|python_tag|>`` or not; ``<function=name>{..}``."""
    text = _TURN.join(turns)
    called = text.strip().removeprefix("<|python_tag|>").strip()
    if called.startswith("{") and _call(called, draft, "parameters"):
        return
    found = list(_LLAMA_FUNCTION.finditer(text))
    arguments = [_json(match[2]) for match in found]
    if found and all(isinstance(given, dict) for given in arguments):
        for match, given in zip(found, arguments, strict=True):
            draft.call(match[1], given)
        draft.content.append(_LLAMA_FUNCTION.sub("", text))
    elif called.startswith('{"name"') or found:
        draft.keep(text, "a call that is no JSON object with a name and parameters stays in the content")
    elif text.strip().startswith("<|python_tag|>"):
        draft.keep(called, "code after <|python_tag|> is no call of a function; it stays in the content")
    else:
        draft.content.append(text)


def _header(turn: str) -> tuple[str | None, str]:
    """The tool's name on the first line, if it is one, and what follows."""
    first, line_end, rest = turn.partition("\n")
    name = first.strip()
    return (name if line_end and _NAME.fullmatch(name) else None), rest


def _call(text: str, draft: _Draft, key: str) -> bool:
    """Add the call that a JSON object says; False where it says none."""
    said = _json(text)
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return False
    arguments = said.get(key, said.get("arguments", said.get("parameters", {})))
    arguments = _json(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        return False
    draft.call(said["name"], arguments)
    return True


def _json(text: str) -> Any:
    """The value of a JSON text; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _python_arguments(text: str) -> dict[str, Any]:
    """The keywords of ``tool_call(..)``, each a literal; the text is parsed, never run.

    Raises:
        ValueError: anything else.
    """
    fenced = _FENCE.match(text)
    code = (fenced[1] if fenced else text).strip()
    if len(code) > _LONGEST_SNIPPET or _too_deep(code):
        raise ValueError("its Python is too long or too deep")
    try:
        tree = ast.parse(code, mode="eval").body
        if not isinstance(tree, ast.Call) or getattr(tree.func, "id", None) != "tool_call" or tree.args:
            raise ValueError("it is not one tool_call(key=value, ..)")
        if any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError("it unpacks a value")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
        return dict(json.loads(json.dumps(arguments)))
    except (SyntaxError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"its arguments are no literals ({type(error).__name__})") from error


def _too_deep(code: str) -> bool:
    """Nested so deep, by brackets or unary operators, that parsing it could exhaust the stack."""
    level = deepest = 0
    for char in code:
        level += (char in "([{") - (char in ")]}")
        deepest = max(deepest, level)
    return deepest > _DEEPEST or _UNARY_RUN.search(code) is not None


_Reader = Callable[[Sequence[str], _Draft], None]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(("glm-10b", "glm-10b-chinese", "glm-bert", "glm-roberta", "glm-130b"), _plain),
    **dict.fromkeys(("chatglm-6b", "chatglm2", "codegeex2", "codegeex4"), _plain),
    **dict.fromkeys(("glm-4", "glm-4-0414", "glm-edge"), _glm4),
    "chatglm3": _chatglm3,
    "glm-z1": _z1,
    "llama-3": _llama,
    "qwen2.5": _qwen,
}
