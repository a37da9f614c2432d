"""``glmlike exec``: any other program, with the plugin in every Python process that it starts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

import glmlike

NOT_FOUND = 127
STARTUP = Path(glmlike.__file__).parent / "startup"
"""A folder with nothing but the ``sitecustomize`` that Python runs when it starts."""


def exec_(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND…", help="a command and its arguments", show_default=False)
    ],
) -> None:
    """Run COMMAND (lm_eval, transformers, accelerate, trl, python script.py …) as if it imported glmlike.

    Every Python process it starts has the plugin, workers and launchers' children as well. Its exit code and signals
    are its own.
    """
    program = find_program(command[0])
    if program is None:
        print(f"Error: {command[0]}: no such command. Install it, or give its path.", file=sys.stderr)
        raise typer.Exit(NOT_FOUND)
    arguments, environment = [command[0], *command[1:]], plugin_environment()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there execve returns to the shell before the command ends
        import subprocess

        raise typer.Exit(subprocess.run([program, *command[1:]], env=environment).returncode)
    os.execve(program, arguments, environment)


def find_program(name: str) -> str | None:
    """The file of a command: on PATH, or beside the Python that runs glmlike (an environment that is not activated)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def plugin_environment() -> dict[str, str]:
    """This process's environment, with the start-up folder first on PYTHONPATH."""
    before = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place != str(STARTUP)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(STARTUP), *filter(None, before)])}
