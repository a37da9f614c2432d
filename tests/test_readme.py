"""Every command and every code block of the README runs, on small stand-ins of the checkpoints it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glmlike
from glmlike.cli import main
from stand_ins import write_stand_ins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")


@pytest.fixture
def folders(make: Callable[..., Any], golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small checkpoint under each name the README uses."""
    write_stand_ins(tmp_path, make, golden)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_code_blocks_run_one_after_another(folders: Path) -> None:
    scope: dict[str, Any] = {}
    assert len(blocks("python")) >= 6
    for block in blocks("python"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 6
        exec(compile(block, "README.md", "exec"), scope)
    assert type(scope["model"]).__name__ == "GlmLikeForCausalLM"
    assert 5 < scope["filled"].shape[1] <= 9
    assert glmlike.verify("glm-4-9b-chat", "glm-4-9b-chat-hf") > 0
    assert glmlike.verify("glm-130b-sat", "glm-130b") > 0
    assert scope["base"].config.prefix_length == 4
    assert Path("peft-adapter", "adapter_config.json").exists()
    assert scope["qwen"].config.spec.rotary_pairing == "halves"


def test_commands_run(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.startswith("glmlike ")
    ]
    assert [command[1] for command in commands] == ["fill", "inspect", "convert", "verify", "quantize", "doctor"]
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main(command[1:])
        assert not ended.value.code
    out = capsys.readouterr().out
    assert "In the beginning God created the heaven and the earth." in out
    assert "equal: " in out


def test_the_two_commands_are_targets_that_ci_calls() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    commands = re.findall(r"^(make \w+)", "".join(blocks("sh")), re.MULTILINE)
    assert commands == ["make demo", "make test"]
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
    assert "make test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf8") + "\n"


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def _tables(text: str) -> list[list[list[str]]]:
    """Every table: rows of cells, without the head and its rule."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()[2:]] for table in found]


def test_the_chinese_readme_says_the_same() -> None:
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf8")
    assert re.findall(r"```.*?```", chinese, re.DOTALL) == re.findall(r"```.*?```", README, re.DOTALL)
    assert len(re.findall(r"^## ", chinese, re.MULTILINE)) == len(re.findall(r"^## ", README, re.MULTILINE))
    ours, theirs = _tables(README), _tables(chinese)
    assert [[len(row) for row in table] for table in ours] == [[len(row) for row in table] for table in theirs]
    effects = [[(row[1:2], re.findall(r"\d[\d.]*", "".join(row[1:]))) for row in table[0]] for table in (ours, theirs)]
    assert effects[0] == effects[1]
    yes = [[cell.strip().replace("是", "yes") for cell in row] for row in theirs[1]]
    assert yes == [[cell.strip() for cell in row] for row in ours[1]]
    codes = [[re.findall(r"``.+?``|`[^`]+`", row[0]) for row in table[2]] for table in (ours, theirs)]
    assert codes[0] == codes[1]
    assert len(re.findall(r"^\* ", chinese, re.MULTILINE)) == len(re.findall(r"^\* ", README, re.MULTILINE))


@pytest.mark.parametrize("kind", ["link", "code"])
def test_the_chinese_readme_has_every_link_and_name(kind: str) -> None:
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf8")
    pattern = r"\]\(([^)]+)\)" if kind == "link" else r"(?<!`)`([^`\n]+)`(?!`)"
    outside = [re.sub(r"```[\s\S]*?```|^\|.*$", "", text, flags=re.MULTILINE) for text in (README, chinese)]
    found = [set(re.findall(pattern, text)) - {"README.md", "README.zh.md"} for text in outside]
    assert found[0] == found[1]
