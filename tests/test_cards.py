"""The embedded model's card is what its script writes, and its front matter is valid; the families' are in cards/."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from glmlike.cards import check_card
from test_examples import script

CARDS = Path(__file__).parents[1] / "model_cards"


def test_cards_are_what_the_script_writes() -> None:
    written = script("model_cards/write_cards.py").tiny()
    assert (CARDS / "tiny.md").read_text(encoding="utf8") == written


def test_front_matter() -> None:
    for path in [CARDS / "tiny.md"]:
        assert check_card(path.read_text(encoding="utf8")) == []
        matter = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf8"), re.DOTALL)
        assert matter, path
        fields = yaml.safe_load(matter[1])
        assert fields["license"] == "apache-2.0"
        assert (fields["library_name"], fields["pipeline_tag"]) == ("transformers", "text-generation")
        assert all(re.fullmatch("[a-z]{2}", code) for code in fields["language"])
        assert {"glm", "glmlike"} <= set(fields["tags"])


def test_code_in_cards_runs() -> None:
    for path in [CARDS / "tiny.md"]:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf8"), re.DOTALL)
        assert blocks, path
        for block in blocks:
            exec(compile(block, str(path), "exec"), {})
