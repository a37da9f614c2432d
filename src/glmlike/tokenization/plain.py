"""A tokenizer written anew for other readers, and proved the same: the work of ``convert``, in a process of its own.

Reading a vocabulary takes transformers and a few hundred MB, which a conversion promises not to take; so ``convert``
runs :func:`main` in a child, which tells what it did in one line of JSON. What it wrote is read back by a further one,
which has no glmlike.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from glmlike.errors import TokenizerError
from glmlike.tokenization.generations import GENERATIONS
from glmlike.tokenization.probes import probes, sha256_of
from glmlike.tokenization.tokenizer import GlmLikeTokenizer

_INEXACT = ("unigram", "cog-pretrain")
_TALK = [{"role": "user", "content": "a 你好"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
_SHOWN = 60
Ids = tuple[list[list[int]], list[list[int]], list[int]]
"""Of the texts with special tokens parsed, of the texts with special tokens as text, and of a chat."""


def rewrite(source: Path, target: Path, model_type: str, *, plain: bool) -> dict[str, Any]:
    """Write the tokenizer of ``source`` into the new folder ``target``, for a config.json of ``model_type``.

    ``plain`` names transformers' class in it, else it is ``GlmLikeTokenizer``, which transformers alone reads as its
    own. What is written is read back, plain or not, by ``AutoTokenizer`` where there is no glmlike: the ids of
    :func:`probes`, both where special tokens that a text spells are parsed and where they are text, and of a chat must
    be those of ``source``. Where no Rust pipeline is exact (ChatGLM-6B, GLM-130B, GLM-10B-Chinese) the probes that
    differ are counted, and those of ``GlmLikeTokenizer``, if that is the class, must not differ.

    Returns, for ``glmlike.json``: ``generation``, ``files`` (sha256 by name), ``probes`` (how many), ``ids`` (their
    sha256), ``chat`` (whether one was compared), and ``differ``, how many of the probes differ without glmlike.

    Raises:
        TokenizerError: ``source`` cannot be read as a tokenizer; or what was written has other ids, which
            ``error.args`` then say with the first text.
    """
    before = GlmLikeTokenizer.from_pretrained(source)
    before.save_pretrained(target, plain=plain)
    names = sorted(path.name for path in target.iterdir())
    exact = not set(GENERATIONS[before.generation].kinds) & set(_INEXACT)
    expected = _ids(before)
    if not plain:
        _require_same(expected, _ids(GlmLikeTokenizer.from_pretrained(target)), "what was written")
    name, found = _without_glmlike(target, model_type)
    if exact:
        _require_same(expected, found, f"transformers' {name} for model_type={model_type!r}")
    rows = list(zip(expected[0], expected[1], found[0], found[1], strict=True))
    return {
        "generation": before.generation,
        "files": {name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in names},
        "probes": len(probes()),
        "ids": sha256_of([*expected[0], *expected[1]]),
        "chat": bool(before.chat_template),
        "differ": sum((a, b) != (c, d) for a, b, c, d in rows),
    }


def _without_glmlike(folder: Path, model_type: str) -> tuple[str, Ids]:
    """The class that people without glmlike get, and its ids."""
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": model_type}), encoding="utf8")
    start = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
    paths = [str(Path(entry).resolve()) for entry in sys.path]
    asked = {"folder": str(folder.resolve()), "texts": probes(), "chat": _TALK}
    done = subprocess.run(
        [sys.executable, "-c", start, str(Path(__file__).with_name("without_glmlike.py")), *paths],
        input=json.dumps(asked).encode(),
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=False,
    )
    config.unlink()
    if done.returncode:
        error = (done.stderr.decode("utf8", "replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise _DifferenceError(f"transformers alone cannot read what was written ({error})")
    found = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found["class"], (found["parsed"], found["spelled"], found["chat"])


def _ids(tokenizer: Any) -> Ids:
    texts = list(probes())
    parsed, spelled = (tokenizer(texts, split_special_tokens=split)["input_ids"] for split in (False, True))
    chat: list[int] = []
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(_TALK, add_generation_prompt=True, return_dict=False)
    return parsed, spelled, chat


def _require_same(expected: Ids, found: Ids, what: str) -> None:
    for mine, theirs in zip(expected[:2], found[:2], strict=True):
        for text, before, after in zip(probes(), mine, theirs, strict=True):
            if before != after:
                raise _DifferenceError(
                    f"{what} gives {text[:_SHOWN]!r} the ids {after[:12]}, the source's are {before[:12]}"
                )
    if expected[2] != found[2]:
        raise _DifferenceError(f"{what} gives a chat other ids: {found[2][:20]}, the source's are {expected[2][:20]}")


class _DifferenceError(TokenizerError):
    """Written, and not the same."""


def main(source: str, target: str, model_type: str, plain: str) -> None:
    """:func:`rewrite`, with its result, or ``differs`` or ``unreadable`` and a sentence, as JSON on standard output."""
    try:
        result = rewrite(Path(source), Path(target), model_type, plain=plain == "plain")
    except _DifferenceError as error:
        result = {"differs": str(error)}
    except Exception as error:  # whatever a damaged vocabulary raises: the weights can be converted all the same
        result = {"unreadable": str(error).strip().split("\n")[0] or type(error).__name__}
    sys.stdout.write("\n" + json.dumps(result) + "\n")
