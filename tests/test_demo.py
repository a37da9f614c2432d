"""`glmlike demo`: the whole of the main job, in a process without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glmlike


@pytest.mark.slow
def test_the_demo_does_the_main_job(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "glmlike", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "疑是地上霜",
        "greedy: ",
        "sampling, ",
        "beam search, ",
        "before: ",
        "after: ",
        "tokens/s",
        "held-out loss",
    ):
        assert words in done.stdout
    assert "logits equal, bit for bit" in done.stdout
    assert "tensors equal" in done.stdout
    lines = {line.split(": ")[0]: line for line in done.stdout.splitlines()}
    assert lines["before"].removeprefix("before") != lines["after"].removeprefix("after")
    assert done.stdout.index("fill blanks") < done.stdout.index("greedy: ")
    assert glmlike.verify(tmp_path / "demo" / "native", tmp_path / "demo" / "chatglm") > 0
    assert glmlike.detect(tmp_path / "demo" / "chatglm").format == "chatglm"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("Error: ")
    assert "exists already. Choose a new folder." in again.stderr
