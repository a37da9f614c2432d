"""``glmlike chat``: turns, streaming, tools that are shown and not run, interruption, pipes."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glmlike.cli import main
from glmlike.data import TINY
from glmlike.errors import ConfigError
from glmlike.terminal_chat import HELP, Chat, read_tools
from tokenization.tokenizers_for_tests import small_tokenizer_of

TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object"}}}


class Scripted:
    """A model that says given texts, token by token as ``generate`` does, and remembers what it was asked."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, tokenizer: Any, replies: Iterable[str]) -> None:
        self.tokenizer, self.replies, self.asked, self.options = tokenizer, iter(replies), [], {}

    def generate(
        self, input_ids: Any, attention_mask: Any, streamer: Any, stopping_criteria: Any, **options: Any
    ) -> Any:
        self.asked.append(self.tokenizer.decode(input_ids[0]))
        self.options = options
        streamer.put(input_ids)
        said = self.tokenizer(next(self.replies), add_special_tokens=False)["input_ids"]
        for count, token in enumerate(said, 1):
            streamer.put(torch.tensor([token]))
            if bool(stopping_criteria[0](input_ids, None)[0]):
                said = said[:count]
                break
        streamer.end()
        return torch.cat((input_ids, torch.tensor([said])), dim=1)


@pytest.fixture
def chat() -> Callable[..., tuple[Chat, list[str]]]:
    def build(*replies: str, generation: str = "glm-4", **options: Any) -> tuple[Chat, list[str]]:
        tokenizer = small_tokenizer_of(generation)
        written: list[str] = []
        return Chat(Scripted(tokenizer, replies), tokenizer, written.append, **options), written

    return build


def test_turns_are_remembered_reset_and_saved(chat: Any, tmp_path: Path) -> None:
    talk, written = chat("\nhello", "\nfine", "\nwho?", system="be kind")
    assert all(talk.answer(line) for line in ("hi", "", "how are you"))
    assert "".join(written).split() == ["hello", "fine"]
    assert talk.model.asked[1].endswith("<|user|>\nhi<|assistant|>\nhello<|user|>\nhow are you<|assistant|>")
    assert "be kind" in talk.model.asked[1]
    file = tmp_path / "chat.json"
    assert talk.answer(f"/save {file}")
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]
    for line in ("/reset", "/system", "//slash"):
        assert talk.answer(line)
    assert "be kind" not in talk.model.asked[2]
    assert talk.model.asked[2].endswith("<|user|>\n/slash<|assistant|>")
    written.clear()
    assert talk.answer(f"/save {file}")
    assert talk.answer("/save")
    assert talk.answer(f"/save {tmp_path / 'none' / 'x'}")
    assert "exists already" in written[0]
    assert "the name is missing" in written[1]
    assert "not written" in written[2]
    assert not talk.answer("/quit")


def test_without_history_each_line_is_the_first(chat: Any) -> None:
    talk, _ = chat("\none", "\ntwo", history=False)
    talk.answer("a")
    talk.answer("b")
    assert "a<|assistant|>" not in talk.model.asked[1]


def test_a_tool_call_is_shown_and_its_result_typed(chat: Any) -> None:
    call = 'weather\n{"city": "Paris"}'
    talk, written = chat(call, "\nIt is warm.", tools=[TOOL])
    talk.answer("Is it warm in Paris?")
    assert '[call] weather({"city": "Paris"})\n' in "".join(written)
    assert talk.awaited == ["weather"]
    talk.answer("/help")
    talk.answer("31 degrees")
    assert talk.model.asked[1].endswith("<|observation|>\n31 degrees<|assistant|>")
    assert "".join(written).endswith("It is warm.\n")
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool", "assistant"]


def test_what_is_written_never_holds_half_a_character(chat: Any) -> None:
    said = "\n你好，世界 🎉🎊 naïve — ok"
    talk, written = chat(said)
    talk.answer("hi")
    assert "�" not in "".join(written)
    assert all("�" not in piece for piece in written)
    assert len([piece for piece in written if piece]) > 4
    assert "".join(written) == said + "\n"


def test_control_c_ends_the_reply_and_not_the_chat(chat: Any) -> None:
    talk, written = chat("\n" + "word " * 50, "\nyes")

    interrupted: list[bool] = []

    def write(text: str) -> None:
        written.append(text)
        if "".join(written).count("word") == 3 and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    talk.write = write
    before = signal.getsignal(signal.SIGINT)
    assert talk.answer("talk")
    assert 0 < "".join(written).count("word") < 10
    assert talk.messages[-1]["content"].startswith("word")
    assert talk.answer("go on")
    assert talk.messages[-1]["content"] == "yes"
    assert signal.getsignal(signal.SIGINT) is before

    def twice(text: str) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    talk, _ = chat("\n" + "word " * 50)
    talk.write = twice
    with pytest.raises(KeyboardInterrupt):
        talk.answer("talk")
    assert signal.getsignal(signal.SIGINT) is before


def test_published_sampling_values_under_what_is_given(chat: Any) -> None:
    talk, _ = chat("\na", "\nb", options={"max_new_tokens": 9, "temperature": 0.3, "do_sample": True})
    talk.answer("x")
    known = talk.tokenizer.get_vocab()
    assert {known["<|user|>"], known["<|observation|>"]} <= set(talk.model.options["eos_token_id"])
    assert (talk.model.options["temperature"], talk.model.options["max_new_tokens"]) == (0.3, 9)
    assert "max_length" not in talk.model.options


def test_a_base_model_is_told_how_to_go_on(chat: Any) -> None:
    with pytest.raises(ConfigError, match="no chat template, as base models have none. Pass --raw"):
        chat("x", generation="glm-10b")
    talk, _ = chat(" the end", " and more", generation="glm-10b", raw=True)
    talk.answer("This is")
    talk.answer(",")
    assert talk.text == "This is the end, and more"


def piped(text: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(SystemExit) as ended:
        main(["chat", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_over_a_pipe_each_line_is_a_turn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32")
    lines = "In the beginning God\n\n/reset\nIn the beginning God\n/quit\nnot read\n"
    assert piped(lines, TINY, "--raw", *options, monkeypatch=monkeypatch) == 0
    first, *others = capsys.readouterr().out.rstrip("\n").split("\n")
    assert first.split()
    assert others[-1] == first
    assert piped("Who made the heaven?\n/nothing\n", TINY, *options, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"/nothing: no such command.\n{HELP}\n")
    assert len(out.split("/nothing")[0].split()) > 2


def test_on_a_terminal_the_end_of_input_leaves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    lines = iter(["/help"])

    def typed(prompt: str) -> str:
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", typed)
    with pytest.raises(SystemExit) as ended:
        main(["chat", str(TINY)])
    assert not ended.value.code
    assert HELP in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ('["weather"]', "describes no tool"),
        ('[{"function": {"name": 3}}]', "describes no tool"),
    ],
)
def test_files_that_describe_no_tools(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(content)
    assert piped("", TINY, "--tools", file, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_one_description_alone_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOL["function"]))
    assert read_tools(file) == [TOOL["function"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "Error: nowhere: cannot be loaded (OSError: "),
        ((TINY, "--dtype", "int3"), "--dtype int3: expected auto"),
        ((TINY, "--device", "nothing"), "--device nothing: cannot be used"),
        ((TINY, "--tools", "nowhere.json"), "No such file or directory: 'nowhere.json'"),
        ((TINY, "--temperature", "-1"), "--temperature"),
    ],
)
def test_mistakes_are_sentences(
    arguments: tuple[object, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert piped("hi\n", *arguments, monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 or "Usage" in err
