"""Continued pre-training, or full fine-tuning on plain text, with the Hugging Face Trainer.

    python examples/pretrain.py --output more                           # the embedded model, seconds, on 1 core
    python examples/pretrain.py --model chatglm3-6b --data texts.jsonl --output more --resume

A line of --data is {"text": ...}; without it the bundled text is read. Texts are packed into rows of --length tokens,
an end-of-text token between them. Printed: bits a byte on held-out rows, before and after. --resume goes on from the
last checkpoint in --output, bit for bit as if the run had not been stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY


def rows_of(texts: Dataset, tokenizer: Any, length: int) -> Dataset:
    """The texts one after another, cut into rows of ``length`` tokens; the rest of less is left out."""

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids: list[int] = []
        for text in batch["text"]:
            ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
        rows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
        return {"input_ids": rows, "labels": rows}

    return texts.map(cut, batched=True, batch_size=None, remove_columns=texts.column_names)


def bits_per_byte(trainer: Trainer, rows: Dataset, tokenizer: Any) -> float:
    """What the model needs for the held-out rows: comparable between tokenizers, unlike the loss."""
    tokens = sum(len(row) - 1 for row in rows["input_ids"])
    size = sum(len(tokenizer.decode(row[1:]).encode("utf8")) for row in rows["input_ids"])
    return float(trainer.evaluate()["eval_loss"]) * tokens / size / math.log(2)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the bits a byte on rows that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="texts, a JSON object a line")
    parser.add_argument("--output", required=True, help="the folder of the model and of its checkpoints")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.data:
        texts = load_dataset("json", data_files=options.data, split="train")
    else:
        texts = Dataset.from_dict({"text": [CONSTITUTION.read_text(encoding="utf8")]})
    rows = rows_of(texts, tokenizer, options.length)
    parts = rows.train_test_split(test_size=0.1, shuffle=False)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=8,
            learning_rate=options.rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=10,
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=torch.cuda.is_available(),
            prediction_loss_only=True,
            save_strategy="epoch",
            save_total_limit=1,
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    measured = {"bits a byte before": bits_per_byte(trainer, parts["test"], tokenizer)}
    trainer.train(resume_from_checkpoint=get_last_checkpoint(options.output) if options.resume else None)
    measured["bits a byte after"] = bits_per_byte(trainer, parts["test"], tokenizer)
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
