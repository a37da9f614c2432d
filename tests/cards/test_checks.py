"""The offline validator names what is wrong with a card, and nothing that is right."""

from __future__ import annotations

import pytest

from glmlike.cards import check_card

GOOD = """---
license: mit
language:
- en
- zh
library_name: transformers
pipeline_tag: text-generation
base_model: owner/base
base_model_relation: finetune
datasets:
- owner/texts
tags:
- glm
---

# A model

```python
# a comment, not a title
```
"""


def test_a_good_card_has_no_problem() -> None:
    assert check_card(GOOD) == []
    assert check_card(GOOD.replace("\n", "\r\n")) == []
    named = "license: other\nlicense_name: glm-4\nlicense_link: LICENSE"
    assert check_card(GOOD.replace("license: mit", named)) == []
    assert check_card(GOOD.replace("- zh", "- yue\n- code\n- multilingual")) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("license: mit\n", "", "license: missing"),
        ("license: mit", "license: apache2.0", "did you mean 'apache-2.0'"),
        ("license: mit", "license: other", "license_name: None"),
        (
            "license: mit",
            "license: other\nlicense_name: My Licence\nlicense_link: LICENSE",
            "license_name: 'My Licence'",
        ),
        (
            "license: mit",
            "license: other\nlicense_name: mine\nlicense_link: see my page",
            "license_link: 'see my page'",
        ),
        ("license: mit", "license: mit\nlicense_name: mit", "only for `license: other`"),
        ("license: mit", "licence: mit\nlicense: mit", ""),
        ("license: mit", "licence: mit", "licence: no field of the Hub; did you mean 'license'"),
        ("- zh", "- Chinese", "language: 'Chinese'"),
        ("- zh", "- zz", "language: 'zz'"),
        ("- zh", "- no", "'no' in quotes"),
        ("language:\n- en\n- zh\n", "", "language: missing"),
        ("text-generation", "text-generations", "did you mean 'text-generation'"),
        ("library_name: transformers\n", "", "library_name: None"),
        ("owner/base", "/home/me/base", "base_model: '/home/me/base'"),
        ("owner/base", "../base", "base_model: '../base'"),
        ("owner/base", "owner/base/more", "base_model: 'owner/base/more'"),
        ("finetune", "child", "base_model_relation: 'child'"),
        ("base_model: owner/base\n", "", "without base_model"),
        ("base_model: owner/base\nbase_model_relation: finetune\n", "", ""),
        ("- owner/texts", "- my texts", "datasets: 'my texts'"),
        ("- glm\n", "- 4\n", "tags: 4"),
        ("tags:\n- glm", "tags: glm", "tags: 'glm'"),
        ("tags:", "tags: [", "cannot be read"),
        ("tags:", "license: gpl\ntags:", "license: given twice"),
        ("tags:", "model-index:\n- name: x\n  results: [{}]\ntags:", "cannot be read"),
        ("# A model", "A model", "no title"),
        ("# A model", "# A model\n\n[More Information Needed]", "was left in the body"),
        ("# a comment, not a title\n```", "x = 1", "not closed"),
        ("---\nlicense", "license", "no front matter"),
    ],
)
def test_a_problem_is_named(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    found = check_card(GOOD.replace(old, new, 1))
    if problem:
        assert any(problem in sentence for sentence in found), found
        assert all(sentence.rstrip()[-1] in ".?" for sentence in found)
    else:
        assert found == []


def test_an_adapter_needs_its_base() -> None:
    card = GOOD.replace("transformers", "peft").replace("base_model: owner/base\nbase_model_relation: finetune\n", "")
    assert any("an adapter is of no use without" in sentence for sentence in check_card(card))


@pytest.mark.parametrize(
    "text", ["", "---", "---\n---\n", "---\n- a\n- b\n---\n# x\n", "---\nplain\n---\n# x\n", "\x00"]
)
def test_what_is_no_card_is_a_sentence(text: str) -> None:
    assert check_card(text)
