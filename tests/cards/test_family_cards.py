"""The families' cards are what the code makes, and their code blocks run on small stand-ins of the checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import glmlike
from glmlike.cards import check_card
from glmlike.data import TINY
from glmlike.hub_json import cannot_express
from glmlike.published import PUBLISHED
from glmlike.tokenization.templates import GENERATIONS, chat_template
from specs import SPECS

CARDS = Path(__file__).parents[2] / "model_cards"
sys.path.insert(0, str(CARDS))
try:
    from families import FAMILIES
    from families.render import OWN_CLASSES, prompt_of, render
finally:
    sys.path.remove(str(CARDS))

NAMES = [family.name for family in FAMILIES]
SMALL = {
    "glm-10b": "glm-10b",
    "chatglm-6b": "chatglm-6b",
    "chatglm2-6b": "chatglm2",
    "chatglm3-6b": "chatglm2",
    "codegeex2-6b": "chatglm2",
    "glm-4-9b": "glm-4-9b",
    "glm-4-0414": "glm-4-0414",
    "glm-edge": "glm-edge",
    "codegeex4-all-9b": "glm-4-9b",
    "longwriter-longcite": "glm-4-9b",
    "llama-3": "llama-3",
    "qwen2.5": "qwen2.5",
}
"""The small decoder that stands in for each family's first checkpoint; GLM-130B has a golden folder."""


@pytest.fixture(params=FAMILIES, ids=NAMES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_card_is_what_the_code_makes(family: Any) -> None:
    text = render(family)
    assert (CARDS / f"{family.name}.md").read_text(encoding="utf8") == text
    assert check_card(text) == []


def test_every_published_decoder_and_every_template_has_a_card() -> None:
    assert {checkpoint.decoder for family in FAMILIES for checkpoint in family.checkpoints} == set(PUBLISHED)
    assert {name for family in FAMILIES for name in family.generations} == {
        name for name in GENERATIONS if chat_template(name) is not None
    }
    assert sorted(path.stem for path in CARDS.glob("*.md")) == sorted([*NAMES, "tiny"])


def test_sizes_and_layouts_are_the_specs(family: Any) -> None:
    text = render(family)
    for name in {checkpoint.decoder for checkpoint in family.checkpoints}:
        published = PUBLISHED[name]
        assert f"{published.spec.num_parameters:,}" in text
        for fmt in published.converts_to:
            assert f"| `{fmt}` |" in text
    layouts = re.findall(r"^\| `([\w-]+)` \|", text.split("## Formats")[1].split("## Prompt")[0], re.MULTILINE)
    for fmt in layouts:
        assert any(not cannot_express(PUBLISHED[each.decoder].spec, fmt) for each in family.checkpoints)


def test_prompts_are_the_published_ones() -> None:
    """Prompts whose ids the original code was run for (golden_chat.json) or whose text was published."""
    hello = [{"role": "user", "content": "你好"}]
    assert prompt_of("chatglm-6b", hello) == "你好[gMASK]<sop>"
    assert prompt_of("chatglm2", hello) == "[gMASK]sop[Round 1]\n\n问：你好\n\n答："
    assert prompt_of("chatglm3", hello) == "[gMASK]sop<|user|>\n 你好<|assistant|>"
    assert prompt_of("glm-4", hello) == "[gMASK]<sop><|user|>\n你好<|assistant|>"
    assert prompt_of("glm-z1", hello) == "[gMASK]<sop><|user|>\n你好<|assistant|>\n<think>"


def test_a_derivative_names_its_base() -> None:
    derived = {family.name: family.base_model for family in FAMILIES if family.base_model}
    assert derived.keys() == {"codegeex2-6b", "codegeex4-all-9b", "longwriter-longcite"}
    for name in derived:
        text = (CARDS / f"{name}.md").read_text(encoding="utf8")
        assert "base_model_relation: finetune" in text.split("\n---\n")[0]


def stand_in(family: Any, make: Callable[..., Any], place: Path) -> None:
    """A small checkpoint with the embedded model's tokenizer and the family's template, in the published layout."""
    known = json.loads((TINY / "config.json").read_text(encoding="utf8"))
    ids = {name: value for name, value in known.items() if name.endswith("token_id")}
    spec = SPECS[SMALL[family.name]].replace(vocab_size=known["vocab_size"])
    make(spec, **ids).save_pretrained(place / "native")
    folder = place / family.folder
    glmlike.convert(place / "native", folder, to=PUBLISHED[family.checkpoints[0].decoder].format)
    for path in TINY.glob("tokenizer*"):
        shutil.copy(path, folder)
    for generation in family.generations[:1]:
        (folder / "chat_template.jinja").write_text(chat_template(generation) or "", encoding="utf8")


def test_code_blocks_run(
    family: Any, make: Callable[..., Any], golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family.name == "glm-130b":
        shutil.copytree(golden / "glm130b", tmp_path / family.folder)
    else:
        stand_in(family, make, tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (CARDS / f"{family.name}.md").read_text(encoding="utf8"), re.DOTALL)
    assert len(blocks) >= 2
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"{family.name}.md", "exec"), scope)
    assert type(scope["model"]).__name__ == "GlmLikeForCausalLM"
    fmt = PUBLISHED[family.checkpoints[0].decoder].format
    if fmt in OWN_CLASSES:
        assert type(AutoModelForCausalLM.from_pretrained(family.folder)).__name__ == OWN_CLASSES[fmt]
        assert f"`{OWN_CLASSES[fmt]}`; `glmlike.GlmLikeForCausalLM`" in render(family)
    written = [path for path in tmp_path.iterdir() if path.name.startswith(f"{family.folder.removesuffix('-sat')}-")]
    assert any((path / "config.json").exists() for path in written)
