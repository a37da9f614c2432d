"""What people install: the wheel holds the package and nothing else, and nothing it needs is left out."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 8_000_000
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_file_of_the_package(names: set[str]) -> None:
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "glmlike").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert {"glmlike/py.typed", "glmlike/data/tiny/model.safetensors", "glmlike/data/tiny/tokenizer.json"} <= names


def test_the_wheel_says_its_licence_and_entry_points(names: set[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)


def test_no_vocabulary_or_weights_of_others(names: set[str]) -> None:
    binaries = {name for name in names if name.endswith((".model", ".bin", ".gguf", ".safetensors", ".txt"))}
    ours = {"glmlike/data/tiny/model.safetensors", "glmlike/data/constitution.txt"}
    assert {name for name in binaries if ".dist-info/" not in name} == ours


def test_what_is_required_is_what_is_imported() -> None:
    assert metadata("glmlike")["License-Expression"] == "Apache-2.0"
    assert metadata("glmlike")["Requires-Python"] == ">=3.10"
    needed = {re.match(r"[\w-]+", line)[0] for line in requires("glmlike") or () if "extra ==" not in line}  # type: ignore[index]
    assert needed == {"torch", "transformers", "safetensors", "huggingface-hub", "tokenizers", "typer", "rich"}
