"""What is wrong with a card, found without a network: the Hub's own validator is a request to it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from glmlike.cards.identifiers import FIELDS, LANGUAGES, LICENSES, PIPELINES, RELATIONS

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FILE_OR_URL = re.compile(r"https?://[^\s/]+\S*|[\w.-]+(/[\w.-]+)*")
_PLACEHOLDERS = ("[More Information Needed]", "[optional]", "<!-- TODO")


def check_card(text: str) -> list[str]:
    """The problems of a model card, each a sentence with what to do; an empty list for a card without any.

    Checked are the front matter (license, language, pipeline_tag, library_name, base_model and its relation, tags,
    datasets, metrics, model-index, misspelt fields) and that the body has a title, closed code blocks and no
    placeholder left.
    """
    matter = FRONT_MATTER.match(text)
    if matter is None:
        return ["no front matter: begin the card with a line ---, fields such as `license: mit`, and a line ---."]
    try:
        fields = front_matter(text)
    except Exception as error:  # whatever YAML, or huggingface_hub's reading of model-index, finds wrong
        return [f"the front matter cannot be read ({' '.join(str(error).split())}). Correct its YAML."]
    checks = (_license, _language, _names, _base, _lists, _near_misses)
    found = [problem for check in checks for problem in check(fields)]
    return [*_twice(matter[1]), *found, *_body(text[matter.end() :])]


def front_matter(text: str) -> dict[str, Any]:
    """The fields of a card, its ``model-index`` one that huggingface_hub can read.

    Raises:
        ValueError, yaml.YAMLError: no front matter, or a damaged one.
    """
    import yaml
    from huggingface_hub import ModelCard

    matter = FRONT_MATTER.match(text)
    fields = yaml.safe_load(matter[1]) if matter else None
    if not isinstance(fields, dict):
        raise ValueError("expected lines of `field: value`")
    ModelCard(text)
    return fields


def _twice(matter: str) -> Iterator[str]:
    names = re.findall(r"^([A-Za-z][\w-]*)[ \t]*:", matter, re.MULTILINE)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: given twice, and only the last counts. Drop one."


def _license(fields: Mapping[str, Any]) -> Iterator[str]:
    value, name, link = (fields.get(key) for key in ("license", "license_name", "license_link"))
    if value is None:
        yield "license: missing. Give the Hub's identifier of one, or `other` with license_name and license_link."
        return
    if value not in LICENSES:
        near = difflib.get_close_matches(str(value).lower(), LICENSES, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        yield f"license: {value!r} is no identifier of the Hub{hint} One of your own is `other` with license_name."
    if value != "other":
        if name is not None or link is not None:
            yield f"license_name, license_link: only for `license: other`, and license is {value!r}. Drop them."
        return
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"license_name: {name!r}; `license: other` needs a short name in lower case, such as glm-4."
    if not isinstance(link, str) or not _FILE_OR_URL.fullmatch(link):
        yield f"license_link: {link!r}; `license: other` needs an address or a file of the repository, such as LICENSE."


def _language(fields: Mapping[str, Any]) -> Iterator[str]:
    value = fields.get("language")
    for code in value if isinstance(value, list) else [value]:
        if code is None:
            yield "language: missing. Give ISO 639 codes, such as en and zh."
        elif code is False:
            yield "language: YAML reads a bare no as false. Write 'no' in quotes."
        elif code not in (*LANGUAGES, "code", "multilingual") and not re.fullmatch("[a-z]{3}", str(code)):
            yield f"language: {code!r} is no ISO 639 code of two or three letters in lower case."


def _names(fields: Mapping[str, Any]) -> Iterator[str]:
    pipeline, library = fields.get("pipeline_tag"), fields.get("library_name")
    if pipeline not in PIPELINES:
        near = difflib.get_close_matches(str(pipeline), PIPELINES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ", such as text-generation."
        yield f"pipeline_tag: {pipeline!r} is none of the Hub's tasks{hint}"
    if not isinstance(library, str) or not _NAME.fullmatch(library):
        yield f"library_name: {library!r}; expected a library's name in lower case, such as transformers or peft."


def _base(fields: Mapping[str, Any]) -> Iterator[str]:
    base, relation = fields.get("base_model"), fields.get("base_model_relation")
    for name in base if isinstance(base, list) else [base]:
        if name is not None and (not isinstance(name, str) or not _HUB_ID.fullmatch(name) or ".." in name):
            yield f"base_model: {name!r} is no id of the Hub (owner/name). A folder of your machine has no place here."
    if relation is not None and relation not in RELATIONS:
        yield f"base_model_relation: {relation!r}; expected one of {', '.join(sorted(RELATIONS))}."
    if relation is not None and not base:
        yield "base_model_relation: without base_model. Name the model, or drop the relation."
    if fields.get("library_name") == "peft" and not base:
        yield "base_model: missing, and an adapter is of no use without. Name the model it was trained on."


def _lists(fields: Mapping[str, Any]) -> Iterator[str]:
    for key in ("tags", "datasets", "metrics"):
        value = fields.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        wrong = [item for item in items if not isinstance(item, str) or not item.strip()]
        if wrong or (key == "tags" and isinstance(value, str)):
            yield f"{key}: {(wrong or items)[0]!r}; expected a list of texts."
        if key == "datasets" and not wrong:
            yield from (f"datasets: {item!r} is no id of the Hub." for item in items if not _HUB_ID.fullmatch(item))


def _near_misses(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in fields:
        near = difflib.get_close_matches(str(name), FIELDS, 1, 0.8)
        if name not in FIELDS and near and near[0] not in fields:
            yield f"{name}: no field of the Hub; did you mean {near[0]!r}?"


def _body(text: str) -> Iterator[str]:
    fences = re.findall(r"^ {0,3}(`{3,})", text, re.MULTILINE)
    if len(fences) % 2:
        yield "a code block is not closed."
    prose = re.sub(r"^ {0,3}(`{3,}).*?^ {0,3}\1`*[ \t]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    if not re.search(r"^# \S", prose, re.MULTILINE):
        yield "the body has no title: add a line `# name`."
    for placeholder in _PLACEHOLDERS:
        if placeholder in prose:
            yield f"{placeholder} was left in the body. Fill it in, or delete its section."
