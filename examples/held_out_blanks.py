"""How often a model finds the word behind a blank in held-out text, beside an n-gram model of the same training text.

    python examples/held_out_blanks.py src/glmlike/data/tiny      # measures, and writes what it found to training.json

In every line of the held-out documents one word (English) or character (Chinese) is a blank; its neighbouring lines
stand around it. The model fills it with ``glmlike.infilling.fill``; the n-gram model picks the word that makes the line
likeliest. An answer counts if it is the word.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from train_tiny import POEMS, Document, debian_corpus, split, text_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmlike.infilling import fill

WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z]")
CHINESE = re.compile("[\u4e00-\u9fff]")


class Blank(NamedTuple):
    """One word of a line, with the lines before and after it."""

    before: str
    line: str
    after: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The word that is hidden."""
        return self.line[self.start : self.end]

    @property
    def text(self) -> str:
        """The lines with [MASK] in its place."""
        masked = f"{self.line[: self.start]}[MASK]{self.line[self.end :]}"
        return "\n".join(line for line in (self.before, masked, self.after) if line)


def blanks(documents: Sequence[Document], seed: int) -> list[Blank]:
    """A blank for every line that has a word, the first two lines of a poem (title, poet) left out."""
    rng = random.Random(seed)
    found = []
    for document in documents:
        lines = document.text.split("\n")
        body = lines[2:] if document.collection in POEMS else lines
        for before, line, after in zip(["", *body], body, [*body[1:], ""], strict=False):
            words = [match for match in WORD.finditer(line) if match[0].isalpha()]
            if words:
                chosen = rng.choice(words)
                found.append(Blank(before, line, after, chosen.start(), chosen.end()))
    return found


class NGrams:
    """A trigram model of words, smoothed as Witten and Bell do (1991): no number in it is tuned."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(3)]
        self.followers: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
        self.totals: Counter[tuple[str, ...]] = Counter()
        self.before: defaultdict[str, set[str]] = defaultdict(set)
        for line in lines:
            words = self.words(line)
            for index in range(2, len(words)):
                for order in range(3):
                    history, word = tuple(words[index - order : index]), words[index]
                    self.counts[order][(*history, word)] += 1
                    self.totals[history] += 1
                    self.followers[history].add(word)
                self.before[words[index]].add(words[index - 1])
        self.frequent = [word for (word,), _ in self.counts[0].most_common(200) if word.isalpha()]

    @staticmethod
    def words(line: str) -> list[str]:
        """The words and signs of a line, between marks of its begin and its end."""
        return ["<s>", "<s>", *WORD.findall(line), "</s>", "</s>"]

    def probability(self, word: str, history: tuple[str, ...]) -> float:
        """P(word | the last two words), interpolated with shorter histories."""
        total, kinds = self.totals[history], len(self.followers[history])
        if not history:
            return (self.counts[0][word,] + 1) / (total + kinds + 1)
        shorter = self.probability(word, history[1:])
        if not total:
            return shorter
        return (self.counts[len(history)][(*history, word)] + kinds * shorter) / (total + kinds)

    def answer(self, blank: Blank) -> str:
        """The word that makes the line likeliest."""
        left = self.words(blank.line[: blank.start])[:-2][-2:]
        right = self.words(blank.line[blank.end :])[2:][:2]
        near = self.followers[tuple(left)] | self.before[right[0]]
        candidates = [word for word in near | self.followers[left[-1],] | set(self.frequent) if word.isalpha()]
        return max(sorted(candidates), key=lambda word: self._score([*left, word, *right]))

    def _score(self, words: Sequence[str]) -> float:
        return sum(
            math.log(self.probability(words[index], tuple(words[index - 2 : index]))) for index in range(2, len(words))
        )


def measure(folder: Path, training: Sequence[Document], held_out: Sequence[Document], seed: int) -> dict[str, Any]:
    """Exact matches of the model in ``folder`` and of the n-gram model, for each language."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ngrams = NGrams(line for document in training for line in document.text.split("\n"))
    found = {}
    for language, wanted in (("English", False), ("Chinese", True)):
        cases = [blank for blank in blanks(held_out, seed) if bool(CHINESE.search(blank.line)) == wanted]
        if not cases:
            continue
        filled = fill(
            model, tokenizer, [blank.text for blank in cases], batch_size=32, max_new_tokens=8, do_sample=False
        )
        answers = [result.spans[0].text.strip() for result in filled]
        found[language] = {
            "blanks": len(cases),
            "model": round(sum(a == b.word for a, b in zip(answers, cases, strict=True)) / len(cases), 4),
            "n-gram": round(sum(ngrams.answer(b) == b.word for b in cases) / len(cases), 4),
        }
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure a checkpoint that train_tiny.py wrote, and add the result to its training.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--text", type=Path, nargs="*", help="what the model was trained on, if not the Debian packages"
    )
    options = parser.parse_args(argv)
    folder = options.folder
    summary = json.loads((folder / "training.json").read_text(encoding="utf8"))
    seed = summary["seed"]
    training, held_out = split(text_corpus(options.text) if options.text else debian_corpus(), seed)
    summary["blanks"] = measure(folder, training, held_out, seed)
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (folder / "training.json").write_text(text + "\n", encoding="utf8")
    return dict(summary["blanks"])


if __name__ == "__main__":
    print(json.dumps(main()))
