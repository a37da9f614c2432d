"""Fine-tune the embedded model as a sentence classifier with the HF Trainer: are the words in their order?

    python examples/classify.py --output classifier      # under a minute, 2 cores

Each clause of the bundled text appears as it is and with its words shuffled; the classifier must tell which is which,
on clauses it has not seen.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY

LABELS = {0: "shuffled", 1: "in order"}


def clauses() -> list[list[str]]:
    """The words of each clause of the bundled text that has at least six, in random order of clauses."""
    words = [clause.split()[:40] for clause in re.split(r"[.;:\n]+", CONSTITUTION.read_text(encoding="utf8"))]
    found = [clause for clause in words if len(clause) >= 6]
    random.shuffle(found)
    return found


def examples(words: list[str], tokenizer: Any) -> list[dict[str, Any]]:
    """A clause as it is and shuffled: two rows of token ids with their labels."""
    shuffled = random.sample(words, len(words))
    return [{**tokenizer(" ".join(row)), "labels": label} for label, row in ((1, words), (0, shuffled))]


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of clauses told right."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def main(argv: Sequence[str] | None = None) -> float:
    """Train on four fifths of the clauses, save, and return the accuracy on the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=4)
    options = parser.parse_args(argv)

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, dtype="float32", id2label=LABELS, label2id={name: number for number, name in LABELS.items()}
    )
    rows = [row for words in clauses() for row in examples(words, tokenizer)]
    held_out = len(rows) // 10 * 2
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=16,
                learning_rate=5e-4,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                save_strategy="no",
                report_to="none",
                seed=0,
            ),
            train_dataset=rows[held_out:],
            eval_dataset=rows[:held_out],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        trainer.train()
        score = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(options.output))
    tokenizer.save_pretrained(options.output)
    return float(score)


if __name__ == "__main__":
    print(f"accuracy on held-out clauses: {main():.3f}")
