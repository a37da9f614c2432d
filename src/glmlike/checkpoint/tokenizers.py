"""The tokenizer of a conversion: which files it is, whether readers of the target can take them, and if not, anew.

What transformers alone must read is written as tokenizer.json with transformers' own class; the vocabulary that only
code of the source's repository reads is then left out, so that nothing contradicts it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.shards import read_json
from glmlike.checkpoint.tokenizer_processes import DifferenceError, UnreadableError
from glmlike.checkpoint.tokenizer_processes import rewrite as write_and_prove
from glmlike.errors import TokenizerError
from glmlike.hub_json import Format

_FILES = ("*.model", "vocab*", "merges.txt")
PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", *_FILES)
"""The files of a tokenizer, whichever it is."""

_PLAIN: tuple[Format, ...] = ("glm", "glm4", "llama", "qwen2")
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json")
_FOLDER = ".tokenizer-"
_TRANSFORMERS = 70 * 10**6  # a process that has imported its tokenizers
_GROWTH = (
    *(("tokenizer.json", 13), ("vocab*", 55), ("ice_text.model", 140), ("cog-pretrain.model", 190)),
    ("tokenizer.model", 109),
)
# Names of classes that transformers alone does not have, or that decide nothing: the files decide.
_OURS = ("GlmLike", "ChatGLM", "GLM")


@dataclass(frozen=True)
class NewTokenizer:
    """A tokenizer written anew: where its files are, until they are moved, and what is on record of it.

    ``folder`` is None where the source's files are copied as they are; ``copied`` are patterns of those that are
    copied, ``note`` is for the report.
    """

    folder: Path | None = None
    copied: tuple[str, ...] = PATTERNS
    record: dict[str, Any] = field(default_factory=dict)
    note: str | None = None

    def move_into(self, target: Path) -> None:
        """Put the files into ``target``."""
        if self.folder is not None:
            for path in sorted(self.folder.iterdir()):
                path.replace(target / path.name)
            self.folder.rmdir()


@dataclass(frozen=True)
class TokenizerStep:
    """What a conversion does about the tokenizer: "none" is there, it is "copied", or written "anew"; and ``why``."""

    how: Literal["none", "copied", "anew"]
    why: str


def tokenizer_step(source: Path, source_format: Format, to: Format) -> TokenizerStep:
    """Whether a conversion writes the tokenizer anew: readers of ``to`` could not, or not surely, take its files.

    They take a tokenizer.json whose class is transformers' own, and whatever transformers' class read in the same
    format. Formats whose readers bring code of their own (chatglm and older) get the files as they are.
    """
    found = [path.name for name in _VOCABULARIES for path in sorted(source.glob(name)) if path.is_file()]
    if not found:
        return TokenizerStep("none", f"the source has none of {', '.join(_VOCABULARIES)}")
    if to not in (*_PLAIN, "glmlike"):
        return TokenizerStep("copied", f"readers of {to!r} bring what reads {found[0]}")
    said = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    name = said.get("tokenizer_class")
    fast = "tokenizer.json" in found
    if to == "glmlike" and name == "GlmLikeTokenizer":
        if fast:
            return TokenizerStep("copied", "GlmLikeTokenizer is the class of the native format")
        return TokenizerStep("anew", f"transformers alone reads no {found[0]} of a GlmLikeTokenizer")
    if not isinstance(name, str) or name.startswith(_OURS):
        class_of = f"{name}, a class that transformers alone has not" if name else "of no class that is named"
        return TokenizerStep("anew", f"{found[0]} is {class_of}")
    if fast or source_format == to:
        return TokenizerStep("copied", f"transformers reads it as {name}")
    return TokenizerStep("anew", f"{found[0]} is read by {name} in {source_format!r}, by another class maybe in {to!r}")


def is_rewritten(source: Path, source_format: Format, to: Format) -> bool:
    """Whether :func:`tokenizer_step` is to write it anew."""
    return tokenizer_step(source, source_format, to).how == "anew"


def files_of(source: Path) -> list[Path]:
    """The files of the tokenizer in a folder.

    Raises:
        CheckpointError: one of them is a link that leads out of ``source``.
    """
    found = {path for pattern in PATTERNS for path in source.glob(pattern) if path.is_file()}
    return [require_inside(path, source) and path for path in sorted(found)]


@contextmanager
def written_anew(source: Path, source_format: Format, to: Format, room: Path) -> Iterator[NewTokenizer]:
    """The tokenizer of a conversion, in a hidden folder of ``room`` that is gone when the block ends.

    Raises:
        TokenizerError: what would be written gives other ids than the source; the first text that differs is named.
        CheckpointError: a file of the tokenizer is a link that leads out of ``source``.
    """
    for left in room.glob(f"{_FOLDER}*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not is_rewritten(source, source_format, to):
        yield NewTokenizer()
        return
    files_of(source)
    folder = room / f"{_FOLDER}{os.getpid()}"
    try:
        yield rewrite(source, folder, to, plain=to != "glmlike")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rewrite(source: Path, folder: Path, to: str, *, plain: bool) -> NewTokenizer:
    """Have child processes write the tokenizer of ``source`` into ``folder`` for ``to``, and prove it the same.

    Raises:
        TokenizerError: see :func:`written_anew`.
    """
    try:
        found = write_and_prove(source, folder, to, plain=plain)
    except DifferenceError as error:
        raise TokenizerError(
            f"{source}: its tokenizer cannot be written for readers of {to!r}: {error}. Convert to a format "
            "whose tokenizers transformers reads as they are (glm, llama), or move the tokenizer's files elsewhere."
        ) from None
    except UnreadableError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return NewTokenizer(note=f"the tokenizer could not be read, so its files are copied as they are: {error}")
    return NewTokenizer(folder, kept_vocabulary(plain), {"tokenizer": found}, _note(found, plain))


def kept_vocabulary(plain: bool) -> tuple[str, ...]:
    """Patterns of the source's files that are copied beside a tokenizer that is written anew.

    Who reads a native folder takes tokenizer.json first; the way back to the source's format needs the vocabulary.
    """
    return () if plain else _FILES


def memory_of_rewriting(source: Path) -> int:
    """The most bytes that a process takes which reads the tokenizer of ``source``, by the sizes of its files.

    What a byte of each kind of vocabulary becomes was measured on the published ones; it is the merges of ranks, the
    pieces and their tree in Python of what SentencePiece cuts, and what JSON is parsed to.
    """
    return _TRANSFORMERS + max(
        (path.stat().st_size * times for name, times in _GROWTH for path in source.glob(name)), default=0
    )


def _note(found: dict[str, Any], plain: bool) -> str:
    """What a reader of the report should know of a tokenizer that was written."""
    same = f"{found['probes']} texts"
    if found["differ"]:
        same += f" (without glmlike, {found['differ']} of them are cut otherwise: no fast tokenizer is exact there)"
    said = class_in_words(plain)
    return f"the tokenizer is written anew, as tokenizer.json of {said}; its ids are the source's on {same}"


def class_in_words(plain: bool) -> str:
    """The class that a tokenizer.json that is written names."""
    return "transformers' own class" if plain else "GlmLikeTokenizer, which transformers alone reads as its own"
