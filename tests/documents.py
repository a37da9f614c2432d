"""Pages of Markdown that run: their Python and shell blocks, one after another, and the output they show.

A ``text`` block is what the block before it prints: each of its lines must be in the output, in this order; ``…``
stands for anything, alone on a line or within one. Shell lines are commands of glmlike, in this process; those with
pipes or of programs it starts run in a shell that finds ``glmlike`` and ``python`` as this environment has them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glmlike
from glmlike.cli import main

NOT_RUN = ("pip install ", "make ", "python -m venv", ". .venv", "git clone")
"""Commands that set a machine up: the one kind that a page shows and a test does not run."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its content, and the line of the page it begins at."""

    language: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, top to bottom, also those inside tabs and admonitions."""
    found = []
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", page, re.DOTALL | re.MULTILINE):
        code = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(match[2], code, page[: match.start()].count("\n") + 1))
    return found


def run_page(path: Path) -> dict[str, Any]:
    """Run every block of a page in the working directory; what its Python blocks left is returned."""
    scope: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(path.read_text(encoding="utf8")):
        where = f"{path.name}:{block.line}"
        if block.language == "python":
            code = compile("\n" * block.line + block.code, str(path), "exec")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, scope)
            printed = out.getvalue()
        elif block.language == "sh":
            printed = "".join(_command(line, where) for line in _lines(block.code))
        elif block.language == "text":
            require_shown(block.code, printed, where)
        else:
            assert block.language in ("json", "toml", "error"), f"{where}: a block of {block.language!r} runs nowhere"
    return scope


def _lines(code: str) -> list[str]:
    """Commands, a line each, without comments; a line that ends in a backslash goes on."""
    joined = code.replace("\\\n", " ")
    return [line for raw in joined.splitlines() if (line := re.sub(r"(^|\s)#\s.*$", "", raw).strip())]


def _command(line: str, where: str) -> str:
    if line.startswith(NOT_RUN):
        return ""
    words = shlex.split(line)
    if words[0] == "glmlike" and words[1] != "exec" and not {"|", "<", ">"} & set(words):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                main(words[1:])
            except SystemExit as ended:
                assert not ended.code, f"{where}: {line} ended with {ended.code}"
        return out.getvalue()
    return _in_a_shell(line, where)


def _in_a_shell(line: str, where: str) -> str:
    tools = Path(".bin")
    tools.mkdir(exist_ok=True)
    for name, begins in (("glmlike", f"{sys.executable} -m glmlike"), ("python", sys.executable)):
        (tools / name).write_text(f'#!/bin/sh\nexec {begins} "$@"\n')
        (tools / name).chmod(0o755)
    source = Path(glmlike.__file__).parents[1]
    places = [str(tools.resolve()), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "PYTHONPATH": str(source)}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
    return done.stdout


def require_shown(shown: str, printed: str, where: str) -> None:
    """Fail unless the lines of ``shown`` are in ``printed``, in this order."""
    rest = printed
    for line in filter(None, (line.strip() for line in shown.splitlines())):
        if line == "…":
            continue
        pattern = ".*?".join(map(re.escape, line.split("…")))
        found = re.search(pattern, rest)
        assert found, f"{where}: the page shows {line!r}, which is not printed. Printed:\n{printed}"
        rest = rest[found.end() :]
