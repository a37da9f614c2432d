"""README.md on disk: written beside a model, a user's own text kept whatever was there before."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmlike.cards.checks import FRONT_MATTER, front_matter
from glmlike.cards.eval_results import require_ours
from glmlike.cards.finetune import About, Card, card_for, to_yaml
from glmlike.errors import ConfigError

_BEGIN = "<!-- glmlike card {digest}: written by `glmlike card`; text before and after it is kept -->"
_END = "<!-- end of the glmlike card -->"
_BLOCK = re.compile(
    re.escape(_BEGIN).replace(r"\{digest\}", "([0-9a-f]{16})") + r"\n(.*?)" + re.escape(_END) + r"\n?", re.DOTALL
)
_FRAMEWORK = re.compile(r"#+ Framework versions|- PEFT \S+")


def write_card(folder: str | Path, about: About | None = None, *, force: bool = False, plot: bool = True) -> list[Path]:
    """Write ``card_for(folder)`` as README.md, its picture beside it; the files written are returned.

    Scores on data sets of the Hub are also written as ``.eval_results/TASK.yaml``, which its leaderboards read.

    A README.md that is there is left alone unless ``force``. With it, the part that an earlier call wrote is replaced;
    front matter and text of the user's own are kept to the letter, the new part before them. Only the empty template
    that PEFT and the Hub's libraries leave is dropped.

    Raises:
        ConfigError: README.md is there and not ``force``; it cannot be read; or the text inside the marks of an earlier
            card was edited, and would be lost. Nothing is written then.
    """
    place = Path(folder)
    card = card_for(place, about, plot=plot)
    path = place / "README.md"
    old = _read(path, force) if path.exists() else ""
    ours = bool(_BLOCK.search(old))
    text = merged(old, card, str(path))
    for name, content in card.pictures.items():
        if (place / name).exists() and not ours and (place / name).read_bytes() != content:
            raise ConfigError(f"{place / name}: is there, and not of an earlier card. Rename it, or pass plot=False.")
    require_ours(place, list(card.eval_results))
    beside = {**card.pictures, **card.eval_results}
    for name, content in beside.items():
        (place / name).parent.mkdir(exist_ok=True)
        _replace(place / name, content)
    _replace(path, text.encode("utf8"))
    return [path, *(place / name for name in beside)]


def _read(path: Path, force: bool) -> str:
    if not force:
        raise ConfigError(f"{path}: is there already. Pass --force (force=True): what you wrote in it is kept.")
    try:
        return path.read_bytes().decode("utf8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no UTF-8. Save it as UTF-8, or move it away.") from None


def merged(old: str, card: Card, where: str = "README.md") -> str:
    """``card`` put into the text of a README: see ``write_card``.

    Raises:
        ConfigError: damaged front matter, edited or doubled marks.
    """
    if _untouched(old):
        old = ""
    marks = _BLOCK.findall(old)
    if len(marks) != old.count("<!-- glmlike card ") or len(marks) != old.count(_END) or len(marks) > 1:
        raise ConfigError(f"{where}: the marks of an earlier card are damaged. Remove both marks; the text is kept.")
    if marks and _digest(marks[0][1]) != marks[0][0]:
        raise ConfigError(
            f"{where}: the text between the marks of the earlier card was edited. Move your text out of them, or "
            "remove the two marks, which keeps all of it."
        )
    front = FRONT_MATTER.match(old)
    matter, body = (front[1], old[front.end() :]) if front else ("", old)
    matter = _front_matter(matter, card.fields, where, refresh=bool(marks))
    block = f"{_BEGIN.format(digest=_digest(card.body))}\n{card.body}{_END}\n"
    if marks:
        body = _BLOCK.sub(lambda _: block, body)
    else:
        kept = body.lstrip("\r\n")
        body = f"\n\n{block}" + (f"\n{kept}" if kept.strip() else "")
    return f"---\n{matter}\n---{body}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _front_matter(matter: str, fields: Mapping[str, Any], where: str, refresh: bool) -> str:
    """The user's lines as they are, and the fields they do not have.

    Scores are measured anew with every card, so ``model-index`` of an earlier one is replaced (``refresh``).
    """
    try:
        known = front_matter(f"---\n{matter.strip()}\n---\n") if matter.strip() else {}
    except Exception as error:
        raise ConfigError(f"{where}: its front matter cannot be read ({' '.join(str(error).split())}).") from None
    if refresh and "model-index" in fields:
        matter = re.sub(r"^model-index:.*\n(?:(?:[ \-].*)?\n)*", "", matter + "\n", flags=re.MULTILINE)
        known.pop("model-index", None)
    new = {name: value for name, value in fields.items() if name not in known}
    if {"license", "license_name"} & known.keys():
        new = {name: value for name, value in new.items() if not name.startswith("license")}
    lines = matter.strip("\r\n")
    return f"{lines}\n{to_yaml(new)}".lstrip("\n") if new else lines


def _untouched(text: str) -> bool:
    """Whether a README is the empty template that PEFT and transformers write, nothing filled in."""
    front = FRONT_MATTER.match(text)
    lines = [line.strip() for line in text[front.end() if front else 0 :].splitlines() if line.strip()]
    if "[More Information Needed]" not in text or not lines:
        return False
    try:
        import jinja2  # noqa: F401  (huggingface_hub renders its template with it)
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        return False
    template = ModelCard.from_template(ModelCardData()).text
    known = {line.strip() for line in template.splitlines()}
    return all(line in known or _FRAMEWORK.fullmatch(line) for line in lines)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
