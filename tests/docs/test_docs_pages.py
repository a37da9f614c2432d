"""Every block of docs/ runs, what is generated is what the code makes, and the site builds with no warning."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import blocks, require_shown, run_page
from stand_ins import NAMES, write_stand_ins

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))
try:
    import docs_figures
    import pains
    import write_docs
finally:
    sys.path.remove(str(ROOT / "tools"))

PAGES = sorted(DOCS.glob("*.md"))
NEEDS = {"alignment.md": "trl", "evaluate.md": "lm_eval", "adapters.md": "bitsandbytes", "quantize.md": "bitsandbytes"}


@pytest.fixture(scope="session")
def stand_ins(make: Callable[..., Any], golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small checkpoint under every name; pages link to them, and write beside them."""
    place = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(place, make, golden)
    return place


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.stem)
def test_every_block_runs(page: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    text = page.read_text(encoding="utf8")
    for name in NAMES:
        if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.])", text):
            (tmp_path / name).mkdir()
            for path in (stand_ins / name).rglob("*"):
                copy = tmp_path / name / path.relative_to(stand_ins / name)
                copy.mkdir(parents=True) if path.is_dir() else copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_what_a_page_shows_must_be_printed() -> None:
    require_shown("a … c\n…\nd", "a b c\nx\nd\n", "here")
    with pytest.raises(AssertionError, match="'c'"):
        require_shown("d\nc", "c\nd", "here")


def test_blocks_of_a_page_are_all_found() -> None:
    page = "x\n```python\na = 1\n```\n\n    ```sh\n    glmlike doctor\n    ```\n"
    assert [(b.language, b.code, b.line) for b in blocks(page)] == [
        ("python", "a = 1\n", 2),
        ("sh", "glmlike doctor\n", 6),
    ]


def test_generated_parts_are_what_the_code_makes() -> None:
    parts = write_docs.tables()
    texts = {page: page.read_text(encoding="utf8") for page in write_docs.pages()}
    for page, text in texts.items():
        assert write_docs.written(text, parts) == text, f"{page.name}: run python tools/write_docs.py"
    whole = "".join(texts.values())
    assert [name for name in parts if f"<!-- {name}: written by" not in whole] == []


def test_pictures_are_what_the_package_computes() -> None:
    drawn = docs_figures.figures()
    assert {path.name for path in (DOCS / "figures").iterdir()} == set(drawn)
    for name, content in drawn.items():
        assert (DOCS / "figures" / name).read_text(encoding="utf8") == content, "run python tools/docs_figures.py"
    shown = "".join(page.read_text(encoding="utf8") for page in PAGES)
    assert [name for name in drawn if f"(figures/{name})" not in shown] == []


def test_a_picture_of_blanks_shows_a_context_seen_both_ways() -> None:
    grid = docs_figures.grid(docs_figures.PUBLISHED["chatglm-6b"].spec, ["a", "[MASK]", "b", "sop", "x"])
    assert docs_figures.mask_text(grid).split() == [
        "a",
        "###..",
        "[MASK]",
        "###..",
        "b",
        "###..",
        "sop",
        "####.",
        "x",
        "#####",
    ]
    assert grid.coordinates == {"position": [0, 1, 2, 1, 1], "place in the piece": [0, 0, 0, 1, 2]}


def test_the_25_pains_have_their_texts_and_their_tests() -> None:
    assert len(pains.PAINS) == 25
    page = (DOCS / "errors.md").read_text(encoding="utf8")
    shown = [block.code.strip() for block in blocks(page) if block.language == "error"]
    assert shown == [text for pain in pains.PAINS for text in pain.seen]
    for pain in pains.PAINS:
        assert pain.seen or (pain.silent and pain.silent_zh)
        assert f"## {pain.title}\n" in page
        assert pain.tests
        for test in pain.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf8"), test


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.slow
def test_the_site_builds_with_no_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)\"", html)
        loaded += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|preload)\"[^>]+href=\"([^\"]+)\"", html)
        assert loaded
        assert not [place for place in loaded if re.match(r"(?:https?:)?//", place)], page
    assert "convert" in (tmp_path / "site" / "api.html").read_text(encoding="utf8")
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf8"))["theme"]["font"] is False
