"""The Hub end to end, over LFS and over Xet; each in a process whose huggingface_hub is told of a Hub on this machine.

What is tested stands in tests/hub_cases, whose files an ordinary run does not collect, by their names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "mode"),
    [
        ("hub_session.py", "lfs"),
        ("packed_session.py", "lfs"),
        pytest.param("hub_session.py", "xet", marks=pytest.mark.exhaustive),
        ("push_session.py", "lfs"),
        ("push_session.py", "xet"),
        ("examples_session.py", "lfs"),
    ],
)
def test_in_a_process_of_its_own(mode: str, cases: str) -> None:
    if mode == "xet" and importlib.util.find_spec("hf_xet") is None:
        pytest.skip("hf_xet is not installed here")
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "GLMLIKE_TEST_HUB": mode, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "hub_server.environment", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(TESTS / "hub_cases" / cases)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout
