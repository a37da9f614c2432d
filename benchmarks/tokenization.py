"""Megabytes of text a second through the tokenizer's own call, beside the published Python tokenizers; and loading."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, child, interleaved, median, report
from slow_tokenizers import ORIGINALS

SHARED = Path(os.environ.get("GLMLIKE_SHARED", Path(__file__).parents[2] / "shared")) / "originals"
HERE = Path(__file__).parent
_SETUP = """
import math, os, random, sys, sysconfig, time
from pathlib import Path
here, folder, name, cores, language = argument
os.environ["TOKENIZERS_PARALLELISM"] = "true" if cores > 1 else "false"
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
sys.path.append(here)
def sized(text, size=1_000_000):  # texts of some 3000 bytes, together `size`
    step = max(1, 3000 * len(text) // len(text.encode()))
    texts, total = [], 0
    for at in range(0, len(text), step):
        texts.append(text[at : at + step])
        total += len(texts[-1].encode())
        if total >= size:
            break
    return texts
def text_of(language):
    if language == "english":
        import pydoc_data.topics
        return "\\n".join(pydoc_data.topics.topics.values())
    if language == "code":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        return "".join(file.read_text(encoding="utf8") for file in files)
    from glmlike.tokenization.sentencepiece_model import read_model
    model, rng = read_model(Path(folder).parent / "chatglm-6b-v1.1" / "ice_text.model"), random.Random(0)
    pairs = [(p.strip("\\u2581"), math.exp(s)) for p, s in zip(model.pieces, model.scores)]
    words = [pair for pair in pairs if pair[0] and all("\\u4e00" <= c <= "\\u9fa5" for c in pair[0])]
    chosen = rng.choices([word for word, _ in words], [weight for _, weight in words], k=500_000)
    marks = rng.choices(("", "\\uff0c", "\\u3002", "\\u3001", "\\uff01\\n"), (85, 8, 4, 1, 2), k=len(chosen))
    return "".join(word + mark for word, mark in zip(chosen, marks))
text = text_of(language)
half = len(text) // 2
first, second = sized(text[:half]), sized(text[half:])
if name == "original":
    from slow_tokenizers import ORIGINALS
    tokenizer = ORIGINALS[Path(folder).name](Path(folder))
else:
    from glmlike import GlmLikeTokenizer
    tokenizer = GlmLikeTokenizer.from_pretrained(folder)
from transformers.utils import logging
logging.set_verbosity_error()
tokenizer("a \\u4e2d", padding=True)
started = time.perf_counter()
found = tokenizer(first, padding=True)
seconds_first = time.perf_counter() - started
"""
_WORK = "again = tokenizer(second, padding=True)"
_AFTER = """
import hashlib
total = lambda texts: sum(len(text.encode()) for text in texts) / 1e6
ids = hashlib.sha256(repr([found["input_ids"], again["input_ids"]]).encode()).hexdigest()
result = [total(first) / seconds_first, total(second) / seconds_next, ids]
"""
_TIMED = f"begun = time.perf_counter()\n{_WORK}\nseconds_next = time.perf_counter() - begun\n{_AFTER}"
_LOAD_SETUP = """
from glmlike import GlmLikeTokenizer
import glmlike.tokenization.tokenizer
"""
_LOAD = "GlmLikeTokenizer.from_pretrained(argument)"


def main(repeats: int = 1, folders: tuple[str, ...] = tuple(ORIGINALS)) -> None:
    """Measure and write results/tokenization.json; rows of other folders that are there stay."""
    asked = [(folder, text, 1) for folder in folders for text in ("english", "code", "chinese")]
    asked += [(folder, "code", 2) for folder in folders]
    rows = [_row(*each, repeats) for each in sorted(asked)]
    path = RESULTS / "tokenization.json"
    before = json.loads(path.read_text(encoding="utf8"))["rows"] if path.is_file() else []
    rows += [row for row in before if row["vocabulary"] not in folders]
    note = (
        "Calls with padding=True on texts of 3000 bytes, together 1 MB (0.25 MB of English: there is no more). first:"
        " the first batch of a process, nothing remembered; next: as much text of the same kind after that, no text"
        " twice. original: the published Python tokenizers with the masks and positions they make, restated in"
        " slow_tokenizers.py. English is Python's manual, code its library, Chinese is drawn from ChatGLM-6B's Chinese"
        f" pieces as often as its model has them. New processes, {repeats} of each."
    )
    report("tokenization", sorted(rows, key=lambda row: (list(ORIGINALS).index(row["vocabulary"]), row["cores"])), note)


def _row(folder: str, language: str, cores: int, repeats: int) -> dict[str, Any]:
    runs = {
        name: functools.partial(
            child, _TIMED, setup=_SETUP, argument=[str(HERE), str(SHARED / folder), name, cores, language]
        )
        for name in ("original", "ours")
    }
    measured = interleaved(runs, repeats)
    same = {each["extra"][2] for found in measured.values() for each in found}
    speed = {
        (name, at): sorted(each["extra"][at] for each in found)[len(found) // 2]
        for name, found in measured.items()
        for at in (0, 1)
    }
    return {
        "vocabulary": folder,
        "text": language,
        "cores": cores,
        "original, MB/s": speed["original", 1],
        "first, MB/s": speed["ours", 0],
        "next, MB/s": speed["ours", 1],
        "first / original": speed["ours", 0] / speed["original", 0],
        "next / original": speed["ours", 1] / speed["original", 1],
        "ids": "equal" if len(same) == 1 else "DIFFERENT",
    }


def loading(repeats: int = 3) -> None:
    """Measure seconds of ``from_pretrained``, from published files and from what was saved."""
    from glmlike import GlmLikeTokenizer

    rows = []
    for folder in ORIGINALS:
        with tempfile.TemporaryDirectory() as saved:
            GlmLikeTokenizer.from_pretrained(SHARED / folder).save_pretrained(saved)
            places = {"published files": str(SHARED / folder), "tokenizer.json as saved": saved}
            runs = {
                name: functools.partial(child, _LOAD, setup=_LOAD_SETUP, argument=each) for name, each in places.items()
            }
            measured = interleaved(runs, repeats)
        rows.append({"vocabulary": folder, **{f"{k}, s": median(v, "seconds") for k, v in measured.items()}})
    note = f"Seconds of the call in new processes, imports not counted; median of {repeats}."
    report("tokenization_load", rows, note)


if __name__ == "__main__":
    if sys.argv[1:] != ["load"]:
        main(folders=tuple(sys.argv[1:]) or tuple(ORIGINALS))
    if sys.argv[1:] in ([], ["load"]):
        loading()
