"""Fine-tune an infilling decoder on blanks with the HF Trainer, by a published objective or a mix of your own.

    python examples/blanks.py --output filler                           # the embedded model, seconds, on 1 core
    python examples/blanks.py --model glm-10b --data texts.jsonl --output filler --objective glm-10b

A line of --data is {"text": ...}; without it the clauses of the bundled text are read. Printed: the perplexity of
blanks of held-out texts, the same blanks before and after.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY
from glmlike.infilling import BlankInfillingObjective, DataCollatorForBlankInfilling

SHORT = BlankInfillingObjective(token=1.0, sentence=0.0, document=0.0, masked_share=0.15, mean_span=1.5, longest_span=6)
"""Blanks of a word or two, as people leave them."""


def clauses() -> Dataset:
    """The clauses of the bundled text that have at least six words."""
    found = [clause.strip() for clause in re.split(r"[.;:\n]+", CONSTITUTION.read_text(encoding="utf8"))]
    return Dataset.from_dict({"text": [clause for clause in found if len(clause.split()) >= 6]})


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the perplexity on blanks of texts that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="texts, a JSON object a line")
    parser.add_argument("--output", required=True, help="the tuned model's folder")
    parser.add_argument("--objective", help="a published one, such as glm-10b or glm-130b; by default short blanks")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    texts = load_dataset("json", data_files=options.data, split="train") if options.data else clauses()
    rows = texts.map(lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]}, remove_columns=texts.column_names)
    parts = rows.train_test_split(test_size=0.2, seed=0)
    collator = DataCollatorForBlankInfilling(
        tokenizer, model.config, options.objective or SHORT, max_length=256, pack_length=256
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            learning_rate=options.rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=10,
            bf16=torch.cuda.is_available(),
            prediction_loss_only=True,
            save_strategy="no",
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    measured = {"perplexity before": math.exp(trainer.evaluate()["eval_loss"])}
    trainer.train()
    measured["perplexity after"] = math.exp(trainer.evaluate()["eval_loss"])
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
