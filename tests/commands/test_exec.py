"""``glmlike exec``: the plugin is in every Python process of a command, and the command is otherwise left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from glmlike.commands.exec_ import STARTUP, find_program, plugin_environment
from glmlike.data import TINY

SOURCE = STARTUP.parents[1]
_KNOWN = f"from transformers import AutoConfig\nprint(type(AutoConfig.from_pretrained({str(TINY)!r})).__name__)\n"


def execute(*command: str, launcher: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-m", "glmlike", "exec", *launcher, *command]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **(options.pop("env", {}))}  # type: ignore[dict-item]
    return subprocess.run(started, capture_output=True, text=True, env=environment, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def test_a_script_knows_the_models_and_keeps_its_arguments_and_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\n{_KNOWN}print(sys.argv[1:], 'glmlike' in sys.modules)\nsys.exit(7)\n")
    done = execute(sys.executable, str(script), "--help", "-x", launcher=("--",))
    assert (done.stdout, done.returncode) == ("GlmLikeConfig\n['--help', '-x'] True\n", 7)


@pytest.mark.slow
def test_workers_and_children_know_them_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, os, subprocess, sys
        def work(path):
            from transformers import AutoConfig
            return type(AutoConfig.from_pretrained(path)).__name__
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(work, ({str(TINY)!r},)))
            print(subprocess.run([sys.executable, "-c", {_KNOWN!r}], capture_output=True, text=True).stdout)
        """)
    )
    done = execute(sys.executable, str(script))
    assert done.stdout.split() == ["GlmLikeConfig", "GlmLikeConfig"], done.stderr
    alone = subprocess.run([sys.executable, "-c", _KNOWN], capture_output=True, text=True)
    assert "does not recognize this architecture" in alone.stderr


def test_a_command_beside_the_python_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is not activated: its own commands are found all the same."""
    monkeypatch.setenv("PATH", "")
    assert find_program(Path(sys.executable).name) == sys.executable
    assert find_program("no-such-command") is None


def test_a_command_that_never_imports_transformers_does_not_pay_for_it() -> None:
    code = "import sys; print({'glmlike', 'transformers', 'torch', 'contextlib'} & set(sys.modules), sys.meta_path[0])"
    done = execute(sys.executable, "-c", code)
    assert done.stdout.startswith("set() <class"), done.stdout


def test_the_sitecustomize_that_is_hidden_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.own_customization = 'here'; marker = 1")
    code = "import sys, sitecustomize; print(sys.own_customization, sitecustomize.marker)"
    done = execute(sys.executable, "-c", code, env={"PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"})
    assert done.stdout.split() == ["here", "1"], done.stderr


def test_a_python_without_glmlike_gets_the_one_that_launched_it(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("name = 'of the other environment'")
    code = "import sitecustomize, transformers, glmlike; print(glmlike.__file__, transformers.name, sep=';')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(STARTUP), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{SOURCE / 'glmlike' / '__init__.py'};of the other environment\n", done.stderr


def test_where_glmlike_cannot_be_imported_the_command_runs_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "glmlike.py").write_text("raise SyntaxError('too old a Python')")
    (tmp_path / "transformers.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(STARTUP), str(tmp_path)])}
    command = [sys.executable, "-c", "import transformers; print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "ran\n"
    assert done.stderr == f"glmlike exec: glmlike cannot be imported by {sys.executable}: too old a Python\n"


def test_a_command_that_is_not_there_is_a_sentence() -> None:
    done = execute("no-such-command", "--option")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "Error: no-such-command: no such command. Install it, or give its path.\n"
    done = execute()
    assert (done.returncode, "Missing argument" in done.stderr) == (2, True)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_reaches_the_command() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('up', flush=True); "
        "signal.pause()"
    )
    command = [sys.executable, "-m", "glmlike", "exec", "--", sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 9
        assert process.returncode == 9


def test_the_environment_is_the_users_own_but_for_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/a{os.pathsep}/b")
    once = plugin_environment()
    assert once["PYTHONPATH"].split(os.pathsep) == [str(STARTUP), "/a", "/b"]
    monkeypatch.setenv("PYTHONPATH", once["PYTHONPATH"])
    assert plugin_environment() == once
    monkeypatch.delenv("PYTHONPATH")
    assert plugin_environment()["PYTHONPATH"] == str(STARTUP)
    assert {path.name for path in STARTUP.iterdir() if path.suffix == ".py"} == {"sitecustomize.py"}
