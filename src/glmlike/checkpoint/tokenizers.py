"""The tokenizer of a conversion: which files it is, whether readers of the target can take them, and if not, anew.

What transformers alone must read is written as tokenizer.json with transformers' own class; the vocabulary that only
code of the source's repository reads is then left out, so that nothing contradicts it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.shards import read_json
from glmlike.errors import TokenizerError
from glmlike.hub_json import Format

_FILES = ("*.model", "vocab*", "merges.txt")
PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", *_FILES)
"""The files of a tokenizer, whichever it is."""

_PLAIN: tuple[Format, ...] = ("glm", "glm4", "llama", "qwen2")
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json")
_FOLDER = ".tokenizer-"
_CHILD = "import sys; sys.path[:] = sys.argv[5:]; from glmlike.tokenization.plain import main; main(*sys.argv[1:5])"
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


def is_rewritten(source: Path, source_format: Format, to: Format) -> bool:
    """Whether a conversion writes the tokenizer anew: readers of ``to`` could not, or not surely, take its files.

    They take a tokenizer.json whose class is transformers' own, and whatever transformers' class read in the same
    format. Formats whose readers bring code of their own (chatglm and older) get the files as they are.
    """
    if to not in (*_PLAIN, "glmlike") or not any(p.is_file() for name in _VOCABULARIES for p in source.glob(name)):
        return False
    said = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    name = said.get("tokenizer_class")
    own = not isinstance(name, str) or name.startswith(_OURS)
    if to == "glmlike" and name == "GlmLikeTokenizer":
        return not (source / "tokenizer.json").is_file()
    return own or not ((source / "tokenizer.json").is_file() or source_format == to)


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
    """Have a child process write the tokenizer of ``source`` into ``folder`` for ``to``, and prove it the same.

    Raises:
        TokenizerError: see :func:`written_anew`.
    """
    found = _run_child(source, folder, to, "plain" if plain else "own")
    if "differs" in found:
        raise TokenizerError(
            f"{source}: its tokenizer cannot be written for readers of {to!r}: {found['differs']}. Convert to a format "
            "whose tokenizers transformers reads as they are (glm, llama), or move the tokenizer's files elsewhere."
        )
    if "unreadable" in found:
        shutil.rmtree(folder, ignore_errors=True)
        what = f"the tokenizer could not be read, so its files are copied as they are: {found['unreadable']}"
        return NewTokenizer(note=what)
    # Who reads a native folder takes tokenizer.json first; the way back to the source's format needs the vocabulary.
    return NewTokenizer(folder, () if plain else _FILES, {"tokenizer": found}, _note(found, plain))


def _note(found: dict[str, Any], plain: bool) -> str:
    """What a reader of the report should know of a tokenizer that was written."""
    same = f"{found['probes']} texts"
    if found["differ"]:
        same += f" (without glmlike, {found['differ']} of them are cut otherwise: no fast tokenizer is exact there)"
    said = "transformers' own class" if plain else "GlmLikeTokenizer, which transformers alone reads as its own"
    return f"the tokenizer is written anew, as tokenizer.json of {said}; its ids are the source's on {same}"


def _run_child(source: Path, folder: Path, to: str, how: str) -> dict[str, Any]:
    """What the child says. It imports from where this process does, so no file of the working folder counts more."""
    arguments = [str(source.resolve()), str(folder.resolve()), to, how]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", _CHILD, *arguments, *(str(Path(entry).resolve()) for entry in sys.path)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    lines = done.stdout.decode("utf8", "replace").strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        errors = done.stderr.decode("utf8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return {"unreadable": errors[-1]}
    return dict(found)
