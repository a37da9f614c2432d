"""A chat on a terminal, or over a pipe: lines in, replies out as they grow. Nothing that a model writes is executed."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import StoppingCriteria, TextStreamer

from glmlike.errors import ConfigError, GlmLikeError
from glmlike.generation_defaults import chat_arguments
from glmlike.tokenization.replies import Reply, parse_reply

_TURN_ENDS = ("<|user|>", "<|observation|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")
HELP = """\
/reset        forget what was said
/system TEXT  what the model is told first; without TEXT, nothing
/save FILE    write the chat to a new JSON file
/help         these lines
/quit         leave (so does the end of the input)
//text        a line that begins with a slash"""


@dataclass
class Chat:
    """A chat with ``model``. ``write`` takes pieces of text as they come; ``options`` are those of ``generate``.

    ``raw`` has no roles: the text so far, lines and continuations, is one text. Without ``history`` every line is the
    first.
    """

    model: Any
    tokenizer: Any
    write: Callable[[str], Any]
    options: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    tools: list[dict[str, Any]] | None = None
    history: bool = True
    raw: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    awaited: list[str] = field(default_factory=list)
    """Names of the tools whose results the model waits for."""

    def __post_init__(self) -> None:
        if not self.raw and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: its tokenizer has no chat template, as base models have none. Pass "
                "--raw to continue texts, or use `glmlike fill` if it fills blanks."
            )

    def answer(self, line: str) -> bool:
        """Do what a line says; whether the chat goes on.

        Raises:
            GlmLikeError: a chat that the model has no room for.
        """
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line)
        line = line[1:] if line.startswith("//") else line
        if self.raw:
            self._continue(line)
        elif self.awaited:
            self.messages.append({"role": "tool", "name": self.awaited.pop(0), "content": line})
            if not self.awaited:
                self._reply()
        elif line.strip():
            if not self.history:
                self.messages = []
            self.messages.append({"role": "user", "content": line})
            self._reply()
        return True

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/reset":
            self.messages, self.text, self.awaited = [], "", []
        elif name == "/system":
            self.system = rest.strip() or None
        elif name == "/save":
            self._save(rest.strip())
        else:
            self.write(HELP + "\n" if name == "/help" else f"{name}: no such command.\n{HELP}\n")
        return True

    def _save(self, name: str) -> None:
        if not name or Path(name).exists():
            self.write(f"{name}: exists already.\n" if name else "/save FILE: the name is missing.\n")
            return
        said: Any = self.text if self.raw else self._told()
        try:
            with Path(name).open("x", encoding="utf8") as file:
                json.dump(said, file, ensure_ascii=False, indent=2)
        except OSError as error:
            self.write(f"{name}: not written ({error.strerror}).\n")

    def _told(self) -> list[dict[str, Any]]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def _reply(self) -> None:
        inputs = self.tokenizer.apply_chat_template(
            self._told(), tools=self.tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = self._generate(inputs)
        reply = self._read(ids)
        self.messages.append(reply.to_message())
        for call in reply.tool_calls:
            function = call["function"]
            self.awaited.append(function["name"])
            self.write(f"[call] {function['name']}({function['arguments']})\n")
        if reply.tool_calls:
            self.write("[nothing was run: type what it returns, a line for each call]\n")

    def _read(self, ids: list[int]) -> Reply:
        if getattr(self.tokenizer, "generation", None):
            return parse_reply(ids, self.tokenizer)
        return Reply(str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip())

    def _continue(self, line: str) -> None:
        self.text = (self.text if self.history else "") + line
        ids = self._generate(self.tokenizer([self.text], return_tensors="pt"))
        self.text += str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _generate(self, inputs: Any) -> list[int]:
        """The new ids, written as they come; Ctrl-C ends them early."""
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        with interruptible() as stop:
            output = self.model.generate(
                **inputs,
                **self._arguments(),
                stopping_criteria=[stop],
                streamer=_Writer(self.tokenizer, self.write),
            )
        return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]

    def _arguments(self) -> dict[str, Any]:
        generation = getattr(self.tokenizer, "generation", None)
        arguments = dict(self.options) if self.raw or generation is None else chat_arguments(generation, self.options)
        known = self.model.generation_config.eos_token_id
        stops = set(known if isinstance(known, list) else [] if known is None else [known])
        vocabulary = self.tokenizer.get_vocab()
        stops |= {vocabulary[name] for name in _TURN_ENDS if name in vocabulary}
        stops |= {self.tokenizer.eos_token_id} - {None}
        return {**arguments, "eos_token_id": sorted(stops) or None}


class _Writer(TextStreamer):
    """transformers' streamer (which never writes half a character), into a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text + ("\n" if stream_end else ""))


class _Stop(StoppingCriteria):
    asked = False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        return torch.full((input_ids.shape[0],), self.asked, dtype=torch.bool, device=input_ids.device)


@contextmanager
def interruptible() -> Iterator[_Stop]:
    """Inside, the first Ctrl-C ends the reply after the token at hand; a second is the usual KeyboardInterrupt."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield stop
        return

    def asked(number: int, frame: Any) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Descriptions of tools from a JSON file: a list of functions in OpenAI's form, or one.

    Raises:
        GlmLikeError: another content.
    """
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise GlmLikeError(f"{path}: no JSON ({error}).") from None
    tools = found if isinstance(found, list) else [found]
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise GlmLikeError(
                f"{path}: {json.dumps(tool)[:80]} describes no tool. Expected a list of "
                '{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}.'
            )
    return tools
