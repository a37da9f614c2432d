"""What people install: the wheel holds the package and nothing else, nothing it needs is left out, and it runs."""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import check_package  # noqa: E402

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel; that the sdist makes the same wheel, below the limit, is checked on the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("package"))
        return check_package.build_all(Path("dist"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(check_package.files_of(wheel))


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


def test_no_tests_examples_or_tools(names: set[str]) -> None:
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"glmlike"}
    assert not [name for name in names if re.search(r"(^|/)(tests?|examples|tools|benchmarks|__pycache__)/", name)]


def test_the_sdist_is_the_package_and_how_to_build_it(built: tuple[Path, Path], names: set[str]) -> None:
    found = set(check_package.files_of(built[0]))
    package = {f"src/{name}" for name in names if ".dist-info/" not in name}
    assert found == package | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore"}


def test_the_version_is_said_in_one_place(wheel: Path) -> None:
    """In ``glmlike/__init__.py``; the wheel's name, its metadata and the commands have it from there."""
    said = re.findall(r'^__version__ = "(.+)"$', (ROOT / "src/glmlike/__init__.py").read_text(encoding="utf8"), re.M)
    assert said == [check_package.version_of(wheel)]
    assert wheel.name.split("-")[1] == said[0]
    sources = [ROOT / "pyproject.toml", *(ROOT / "src").rglob("*.py")]
    quoted = [path.name for path in sources if f'"{said[0]}"' in path.read_text(encoding="utf8")]
    assert quoted == ["__init__.py"]


@pytest.mark.slow
def test_the_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script, ``python -m glmlike`` and the embedded model, from the installed wheel."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # must not be what runs
    monkeypatch.chdir(tmp_path)
    found = check_package.require_runs(wheel, Path(), Path(sysconfig.get_path("purelib")))
    assert found["filled"].startswith("the")
    assert found["filled"].endswith("and the earth")


def test_what_is_too_large_is_told(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_package, "LARGEST", 1000)
    with pytest.raises(SystemExit, match="expected at most 1,000 bytes; the largest files: .*safetensors"):
        check_package.require_small(wheel)


def test_what_is_required_is_what_is_imported() -> None:
    assert metadata("glmlike")["License-Expression"] == "Apache-2.0"
    assert metadata("glmlike")["Requires-Python"] == ">=3.10"
    needed = {re.match(r"[\w-]+", line)[0] for line in requires("glmlike") or () if "extra ==" not in line}  # type: ignore[index]
    assert needed == {
        "torch",
        "transformers",
        "safetensors",
        "huggingface-hub",
        "tokenizers",
        "typer",
        "rich",
        "xxhash",
    }
