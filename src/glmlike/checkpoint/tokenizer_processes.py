"""A tokenizer written anew for other readers, and proved the same: the work of ``convert``, in processes of its own.

Reading a vocabulary takes transformers and a few hundred MB, which the process of a conversion is not to hold. Each
step is a process that ends before the next begins, so what one of them holds is not added to what another does: the
first reads the source's files and writes, the others read what was written. What they found is compared here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmlike.errors import TokenizerError

_TALK = [{"role": "user", "content": "a 你好"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
_SHOWN = 60
_STEP = (  # tokenizers do without torch, which some versions of transformers import
    "import sys; sys.modules['torch'] = None; sys.path[:] = sys.argv[5:]; "
    "from glmlike.tokenization.one_step import main; main(*sys.argv[1:5])"
)
_SCRIPT = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
Ids = tuple[list[list[int]], list[list[int]], list[int]]
"""Of the texts with special tokens parsed, of the texts with special tokens as text, and of a chat."""


class UnreadableError(TokenizerError):
    """The source's files are none of a tokenizer that is known."""


class DifferenceError(TokenizerError):
    """Written, and not the same."""


def rewrite(source: Path, target: Path, model_type: str, *, plain: bool) -> dict[str, Any]:
    """Write the tokenizer of ``source`` into the new folder ``target``, for a config.json of ``model_type``.

    ``plain`` names transformers' class in it, else it is ``GlmLikeTokenizer``, which transformers alone reads as its
    own. What is written is read back, plain or not, by ``AutoTokenizer`` where there is no glmlike: the ids of
    :mod:`glmlike.tokenization.probes`, both where special tokens that a text spells are parsed and where they are text,
    and of a chat must be those of ``source``. Where no Rust pipeline is exact (ChatGLM-6B, GLM-130B, GLM-10B-Chinese)
    the probes that differ are counted, and those of ``GlmLikeTokenizer``, if that is the class, must not differ.

    Returns, for ``glmlike.json``: ``generation``, ``files`` (sha256 by name), ``probes`` (how many), ``ids`` (their
    sha256), ``chat`` (whether one was compared), and ``differ``, how many of the probes differ without glmlike.

    Raises:
        UnreadableError: ``source`` cannot be read as a tokenizer.
        DifferenceError: what was written has other ids; the message says the first text.
    """
    chat = json.dumps(_TALK)
    done = _run(_STEP, ["plain" if plain else "own", str(source.resolve()), str(target.resolve()), chat])
    if "error" in done:
        raise UnreadableError(done["error"])
    names = sorted(path.name for path in target.iterdir())
    expected: Ids = tuple(done["ids"])
    texts: list[str] = done["texts"]
    if not plain:
        again = _run(_STEP, ["read", str(target.resolve()), "", chat])
        if "error" in again:
            raise DifferenceError(f"what was written cannot be read ({again['error']})")
        _require_same(texts, expected, tuple(again["ids"]), "what was written")
    name, found = _without_glmlike(target, model_type, texts)
    if done["exact"]:
        _require_same(texts, expected, found, f"transformers' {name} for model_type={model_type!r}")
    rows = list(zip(expected[0], expected[1], found[0], found[1], strict=True))
    return {
        "generation": done["generation"],
        "files": {name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in names},
        "probes": len(texts),
        "ids": done["sha256"],
        "chat": bool(expected[2]),
        "differ": sum((a, b) != (c, d) for a, b, c, d in rows),
    }


def _without_glmlike(folder: Path, model_type: str, texts: list[str]) -> tuple[str, Ids]:
    """The class that people without glmlike get, and its ids."""
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": model_type}), encoding="utf8")
    asked = {"folder": str(folder.resolve()), "texts": texts, "chat": _TALK}
    found = _run(_SCRIPT, [str(Path(__file__).parents[1] / "tokenization" / "without_glmlike.py")], json.dumps(asked))
    config.unlink()
    if "error" in found:
        raise DifferenceError(f"transformers alone cannot read what was written ({found['error']})")
    return found["class"], (found["parsed"], found["spelled"], found["chat"])


def _run(code: str, arguments: Sequence[str], given: str = "") -> dict[str, Any]:
    """What a process says in its last line, or an ``error``.

    It imports from where this process does, so no file of the working folder counts more.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, *arguments, *(str(Path(entry).resolve()) for entry in sys.path)]
    done = subprocess.run(
        command, input=given.encode(), env={**os.environ, **offline}, capture_output=True, check=False
    )
    try:
        found = json.loads(done.stdout.decode("utf8", "replace").strip().splitlines()[-1])
        return dict(found)
    except (IndexError, ValueError):
        errors = done.stderr.decode("utf8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": errors[-1]}


def _require_same(texts: list[str], expected: Ids, found: Ids, what: str) -> None:
    for mine, theirs in zip(expected[:2], found[:2], strict=True):
        for text, before, after in zip(texts, mine, theirs, strict=True):
            if before != after:
                raise DifferenceError(
                    f"{what} gives {text[:_SHOWN]!r} the ids {after[:12]}, the source's are {before[:12]}"
                )
    if expected[2] != found[2]:
        raise DifferenceError(f"{what} gives a chat other ids: {found[2][:20]}, the source's are {expected[2][:20]}")
