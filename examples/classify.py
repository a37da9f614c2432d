"""Fine-tune the embedded model as a sentence classifier with the HF Trainer: are the words in their order?

    python examples/classify.py --output classifier      # about a minute, 2 cores

Half of the sentences of the bundled text have their words shuffled; the classifier must tell which.
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


def sentences() -> list[dict[str, Any]]:
    """Clauses of at least six words of the bundled text, every other one shuffled: ``{"text", "label"}``."""
    words = [clause.split() for clause in re.split(r"[.;:\n]+", CONSTITUTION.read_text(encoding="utf8"))]
    rows = []
    for number, clause in enumerate(clause[:40] for clause in words if len(clause) >= 6):
        label = number % 2
        rows.append({"text": " ".join(clause if label else random.sample(clause, len(clause))), "label": label})
    random.shuffle(rows)
    return rows


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of sentences told right."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def main(argv: Sequence[str] | None = None) -> float:
    """Train on four fifths of the sentences, save, and return the accuracy on the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=6)
    options = parser.parse_args(argv)

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, dtype="float32", id2label=LABELS, label2id={name: number for number, name in LABELS.items()}
    )
    rows = [{**tokenizer(row["text"]), "labels": row["label"]} for row in sentences()]
    held_out = len(rows) // 5
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
    print(f"accuracy on held-out sentences: {main():.3f}")
