"""The command line as a whole: its help, its exit codes, completion, and that a mistake is a sentence."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from glmlike.cli import EXAMPLES, EXIT_CODES, app, main
from glmlike.commands import convert, exec_
from glmlike.data import TINY
from glmlike.hub_json import FORMATS

COMMANDS = sorted(str(command.name) for command in app.registered_commands)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_alone_it_says_what_it_can_do_and_that_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    for panel in ("Look", "Convert", "Fine-tunes and adapters", "Use", "Hub", "Help"):
        assert f"─ {panel} ─" in out
    assert all(f" {command} " in out for command in COMMANDS)
    assert all(line in out for line in EXAMPLES)
    words = " ".join(out.split())
    assert all(f"{code} {meaning}" in words for code, meaning in EXIT_CODES.items())
    assert run(capsys, "--help")[1].strip() == out.strip()


def test_every_example_is_a_command_that_exists() -> None:
    assert len(EXAMPLES) == 3
    for line in EXAMPLES:
        program, command, *_ = shlex.split(line)
        assert (program, command in COMMANDS) == ("glmlike", True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_panel_and_help_in_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (registered,) = [found for found in app.registered_commands if found.name == command]
    assert isinstance(registered.rich_help_panel, str)
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out
    assert registered.callback is not None
    assert (registered.callback.__doc__ or "").strip().split()[0] in out


# What a user may get wrong, for each command; {taken} is a folder that exists, {text} a file that is no checkpoint.
MISTAKES = {
    "inspect": ("nowhere", "{text}", "{empty}"),
    "verify": ("nowhere nowhere", "{tiny} nowhere", "{empty} {tiny}"),
    "convert": (
        "nowhere out --to glm",
        "{tiny} {taken} --to glmlike",
        "{tiny} {text}/out --to glmlike",
        "{tiny} out --to x",
    ),
    "quantize": ("nowhere out -m nf4", "{tiny} {taken} -m nf4", "{tiny} out -m x", "{empty} out -m nf4"),
    "merge": ("nowhere nowhere out", "{tiny} nowhere out", "{tiny} {empty} out"),
    "convert-adapter": ("nowhere out --to glm", "{empty} out --to glm"),
    "card": ("nowhere", "{empty}", "{text}"),
    "push": ("nowhere user/name", "{empty} user/name", "{tiny} no-name"),
    "fill": ("a[MASK] --model nowhere", "a[MASK] --model {empty}", "no-blank", "a[MASK] --order x"),
    "chat": ("nowhere", "{empty}", "{text}"),
    "demo": ("--out {taken}",),
    "doctor": ("unwanted",),
    "eval": ("nowhere", "{empty}"),
    "exec": ("",),
}


def test_mistakes_are_listed_for_every_command() -> None:
    # One that another module's tests make: add a line above, or say here where they are.
    assert MISTAKES.keys() == set(COMMANDS)


@pytest.mark.parametrize(("command", "given"), [(name, given) for name, all_of in MISTAKES.items() for given in all_of])
def test_a_mistake_is_one_sentence_and_changes_nothing(
    command: str, given: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"taken": "taken", "empty": "empty", "text": "text", "tiny": str(TINY)}
    for name in ("taken", "empty"):
        Path(name).mkdir()
    Path("taken", "mine").write_text("kept")
    Path("text").write_text("no checkpoint")
    code, out, err = run(capsys, command, *shlex.split(given.format(**places)))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    sentence = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentence) == 1 or "Usage: glmlike" in err, err
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"taken", "empty", "text", "taken/mine"}
    assert Path("taken", "mine").read_text() == "kept"


def complete(words: str) -> list[str]:
    environment = {
        **os.environ,
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_GLMLIKE_COMPLETE": "complete_bash",
        "PYTHONPATH": str(exec_.STARTUP.parents[1]),
    }
    command = [sys.executable, "-X", "importtime", "-m", "glmlike"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("glmlike ", COMMANDS),
        ("glmlike convert-", ["convert-adapter"]),
        ("glmlike convert src dst --to ", [*FORMATS, "gguf"]),
        ("glmlike merge base adapter dst --to chat", ["chatglm-6b", "chatglm"]),
        ("glmlike push folder user/name --as re", ["remote-code"]),
        ("glmlike eval model --tasks glmlike_cl", ["glmlike_cloze_en", "glmlike_cloze_zh"]),
    ],
)
def test_the_shell_completes_commands_and_formats(words: str, offered: list[str]) -> None:
    assert sorted(complete(words)) == sorted(offered)


def test_inspect_loads_neither_torch_nor_transformers() -> None:
    code = (
        f"import sys\nfrom glmlike.cli import main\ntry: main(['inspect', {str(TINY)!r}, '--json'])\n"
        "except SystemExit: pass\nprint({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "set()\n"
    assert json.loads(done.stdout)["format"] == "glmlike"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-c", "from glmlike.cli import main; main(['--help'])"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_errors_of_several_lines_become_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("first line\n\n  second line\n")

    monkeypatch.setattr(convert.glmlike, "convert", fail)
    monkeypatch.setattr("glmlike.checkpoint.sources.local_folder", lambda *_: TINY)
    assert run(capsys, "convert", "a", "b", "--to", "glm") == (2, "", "Error: first line second line\n")


def test_control_c_is_exit_code_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glmlike.checkpoint.sources.local_folder", interrupted)
    code, out, err = run(capsys, "convert", "a", "b", "--to", "glm")
    assert (code, out, "Traceback" in err) == (130, "", False)
