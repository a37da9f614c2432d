"""CONTRIBUTING.md: the format that it adds passes the contracts, in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.M | re.S)
HELPERS = ("conftest.py", "specs.py", "released_integers.py", "test_contracts.py")
RUN = """
import sys, glmlike, pytest
assert glmlike.__file__.startswith(sys.argv[1]), glmlike.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_contracts.py", "-k", sys.argv[2]]))
"""


def blocks() -> list[tuple[str, str, str]]:
    """(kind, file, text) of each change that "To add a format" makes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
    (section,) = re.findall(r"^## To add a format\n(.*?)^## ", text, re.M | re.S)
    found = []
    for kind, first, body in BLOCK.findall(section):
        parts = re.split(r"^# (\S+)\n", body, flags=re.M) if kind == "diff" else [body]
        files = [first, *parts[1::2]]
        found += [(kind, file, part) for file, part in zip(files, parts[0::2], strict=True)]
    return found


def apply(kind: str, text: str, path: Path) -> None:
    """Write a new file, or change the one place of an old one that a diff means."""
    if kind == "python":
        assert not path.exists(), f"{path} is there already"
        path.write_text(text, encoding="utf8")
        return
    lines = text.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    whole = path.read_text(encoding="utf8")
    assert whole.count(old) == 1, f"{path}: CONTRIBUTING.md expects once, finds {whole.count(old)} times:\n{old}"
    path.write_text(whole.replace(old, new), encoding="utf8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its contracts with the example applied."""
    folder = tmp_path_factory.mktemp("contributing")
    ignored = shutil.ignore_patterns("__pycache__", "tiny")
    shutil.copytree(ROOT / "src" / "glmlike", folder / "src" / "glmlike", ignore=ignored)
    (folder / "tests").mkdir()
    for name in HELPERS:
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    for kind, file, text in blocks():
        apply(kind, text, folder / file)
    return folder


def contracts(folder: Path, chosen: str) -> str:
    """What pytest says of the contracts of a copy."""
    variables = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-c", RUN, str(folder), chosen]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False).stdout


def test_a_format_is_less_than_40_lines() -> None:
    added = [
        line
        for kind, _, text in blocks()
        for line in text.splitlines()
        if line.strip() and (kind == "python" or line[0] == "+")
    ]
    assert len(added) < 40, len(added)
    assert len({file for _, file, _ in blocks()}) == 6


@pytest.mark.slow
def test_the_format_of_contributing_passes_every_contract(copy: Path) -> None:
    """Those of its own decoder in every format, of every decoder in it, and those on random decoders."""
    said = contracts(copy, "toy or random")
    counted = re.search(r"^(\d+) passed", said.splitlines()[-1])
    assert counted, said[-3000:]
    assert int(counted[1]) > 40, said


@pytest.mark.exhaustive
def test_the_contracts_notice_a_wrong_table(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    table = tmp_path / "src/glmlike/checkpoint/formats/toy.py"
    text = table.read_text(encoding="utf8")
    table.write_text(text.replace('for part in "qkv"', 'for part in "vkq"'), encoding="utf8")  # rows of other sizes
    said = contracts(tmp_path, "test_on_the_fly_is_offline_conversion and toy-toy or random_specs")
    assert re.search(r"\d+ failed", said), said[-3000:]


def test_a_file_that_is_not_as_the_example_expects_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text("a\nb\nb\n", encoding="utf8")
    with pytest.raises(AssertionError, match="expects once, finds 2 times"):
        apply("diff", " b\n+c\n", tmp_path / "rows.py")
    apply("diff", "-a\n+c\n", tmp_path / "rows.py")
    assert (tmp_path / "rows.py").read_text(encoding="utf8") == "c\nb\nb\n"
