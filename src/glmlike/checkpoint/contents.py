"""What a destination will hold, file by file, and where each comes from: known before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmlike.checkpoint.companions import companion_files, files_in
from glmlike.checkpoint.detection import Detection
from glmlike.checkpoint.shards import read_json
from glmlike.checkpoint.tokenizers import PATTERNS, TokenizerStep, class_in_words, kept_vocabulary, tokenizer_step
from glmlike.hub_json import Format

_TEMPLATE = "chat_template.jinja"
_NONE = "none found"


@dataclass(frozen=True)
class Part:
    """One file: its name in the destination and its ``origin`` in words; ``bytes`` where they are known.

    ``certain`` is False of a file that is there only if the tokenizer, which is not read yet, has what it holds.
    """

    file: str
    origin: str
    bytes: int | None = None
    certain: bool = True


@dataclass(frozen=True)
class Contents:
    """Every file of a destination, what becomes of each thing that travels with weights, and what is left behind.

    ``travels`` has a sentence for tokenizer, generation config, chat template, licence and card; ``left`` has, by name,
    why a file of the source is not in the destination.
    """

    files: tuple[Part, ...] = ()
    travels: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What a plan shows."""
        files = [dict(vars(part)) for part in self.files]
        return {"contents": files, "travels": dict(self.travels), "left_behind": dict(self.left)}


def contents_of(found: Detection, to: Format, written: Mapping[str, tuple[str, int | None]]) -> Contents:
    """The contents of a folder in the format ``to``; ``written`` are the files, with origin and size, of its weights.

    Nothing but names and tokenizer_config.json is read.
    """
    source = found.folder
    parts = {name: Part(name, origin, size) for name, (origin, size) in written.items()}
    step = tokenizer_step(source, found.format, to)
    plain = to != "glmlike"
    patterns = kept_vocabulary(plain) if step.how == "anew" else PATTERNS
    for path in _copied(source, patterns):
        name = path.relative_to(source).as_posix()
        without = " without auto_map, which names code" if name == "tokenizer_config.json" else ""
        parts[name] = Part(name, f"copied{without}", None if without else path.stat().st_size)
    if step.how == "anew":
        origin = f"written anew from {', '.join(_vocabulary(source))}"
        parts |= {name: Part(name, origin) for name in ("tokenizer.json", "tokenizer_config.json")}
        parts[_TEMPLATE] = Part(_TEMPLATE, origin, certain=_has_template(source))
    return Contents(tuple(parts.values()), _travels(source, parts, step, plain), dict(_left(found, parts)))


def contents_from_gguf(
    written: Mapping[str, tuple[str, int | None]], names: list[str], lost: tuple[str, ...]
) -> Contents:
    """The contents of a folder made of a GGUF file, whose metadata become files of these ``names``."""
    origin = "written from the file's metadata"
    parts = {name: Part(name, where, size) for name, (where, size) in written.items()}
    parts |= {name: Part(name, origin) for name in names}
    said = {"tokenizer": "tokenizer.json", "generation config": "generation_config.json", "chat template": _TEMPLATE}
    travels = {what: origin if name in names else _NONE for what, name in said.items()}
    if lost:
        travels["tokenizer"] = f"none: {'; '.join(lost)}"
    return Contents(tuple(parts.values()), {**travels, "licence": _NONE, "card": _NONE})


def contents_of_gguf(source: Path, name: str, size: int, tokenizer: str, *, template: bool) -> Contents:
    """The contents of a GGUF file ``name``, whose metadata hold a ``tokenizer`` that is said in words."""
    files = {what: [path.name for path in source.glob(pattern)] for what, pattern in _FILES.items()}
    travels = {what: f"not carried: copy {', '.join(names)} yourself" for what, names in files.items() if names}
    travels["generation config"] = "its stop tokens are in the file's metadata" if files["generation config"] else _NONE
    inside = {"tokenizer": tokenizer, "chat template": "in the file's metadata" if template else _NONE}
    part = Part(name, "weights, and metadata with the decoder, the tokenizer and the record", size)
    return Contents((part,), {**inside, **dict.fromkeys(_FILES, _NONE), **travels})


_FILES = {"generation config": "generation_config.json", "licence": "*LICENSE*", "card": "README*"}


def _copied(source: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for path in companion_files(source, tokenizer=patterns):
        yield from files_in(path)


def _vocabulary(source: Path) -> list[str]:
    names = ("tokenizer.json", *kept_vocabulary(plain=False))
    return sorted({path.name for name in names for path in source.glob(name) if path.is_file()})


def _has_template(source: Path) -> bool:
    """Whether the source's files hold a chat template; the tokenizer's generation may have one where they do not."""
    settings = source / "tokenizer_config.json"
    return any(source.glob("chat_template*")) or bool(settings.is_file() and read_json(settings).get("chat_template"))


def _travels(source: Path, parts: Mapping[str, Part], step: TokenizerStep, plain: bool) -> dict[str, str]:
    """What becomes of each thing that travels with weights, in words."""
    found = {
        what: [path.name for path in sorted(source.glob(pattern)) if path.name in parts]
        for what, pattern in _FILES.items()
    }
    said = {what: f"copied: {', '.join(names)}" if names else _NONE for what, names in found.items()}
    template = "in tokenizer_config.json" if _has_template(source) else _NONE
    if step.how == "anew":
        tokenizer = (
            f"written anew as tokenizer.json of {class_in_words(plain)}, since {step.why}; its ids must be the "
            "source's on some 200 texts before a weight is written (if it cannot be read, its files are copied)"
        )
        template = "written with the tokenizer" + ("" if _has_template(source) else ", if its generation has one")
    else:
        tokenizer = f"copied: {step.why}" if step.how == "copied" else f"{_NONE}: {step.why}"
        copied = [name for name in parts if "chat_template" in name]
        template = f"copied: {', '.join(copied)}" if copied else template
    return {
        "tokenizer": tokenizer,
        "generation config": said.pop("generation config"),
        "chat template": template,
        **said,
    }


def _left(found: Detection, parts: Mapping[str, Part]) -> Iterator[tuple[str, str]]:
    """The files of the source's folder that are not in the destination, and why."""
    read = {path.resolve() for path in found.checkpoint.files}
    for path in sorted(found.folder.iterdir()):
        name = path.name
        if name in parts or name.startswith(".") or path.resolve() in read or path.is_dir():
            continue
        if path.suffix in (".py", ".pyc"):
            yield name, "code"
        elif any(path.match(pattern) for pattern in PATTERNS):
            yield name, "the new tokenizer.json says what it says"
        elif name.endswith(".index.json"):
            yield name, "says where the source's tensors lie"
        else:
            yield name, "no file that glmlike knows to belong to a model"
