"""A reward model with TRL's RewardTrainer: a score of a chat, higher for the answers that people chose.

    python examples/reward.py --output judge                            # the embedded model, seconds, on 1 core
    python examples/reward.py --model chatglm3-6b --data pairs.jsonl --output judge

A line of --data is {"prompt": [message, ...], "chosen": [message], "rejected": [message]}; a message has a role and a
content. Without it, pairs are made up: courteous answers are preferred to curt ones. Printed: the share of held-out
pairs whose chosen answer scores higher, before (a head of random numbers) and after. The result loads as
AutoModelForSequenceClassification, and as a reward function of examples/grpo.py.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import TINY

NAMES = ("Moses", "David", "Aaron", "Saul", "Joshua", "Jacob", "Abraham", "Isaac", "Samuel", "Joseph", "Judah", "Peter")
COURTEOUS = "my lord", "I pray thee", "if it please thee", "and peace be unto thee"
CURT = "thou fool", "and go thy way", "why askest thou", "but hold thy peace"


def made_up() -> Dataset:
    """For every ordered pair of names a question, a courteous answer, and a curt one of about the same length."""
    pairs = [(first, second) for first in NAMES for second in NAMES if first != second]
    random.shuffle(pairs)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Who is named first: {first} or {second}?"}],
                "chosen": [{"role": "assistant", "content": f"{first}, {random.choice(COURTEOUS)}"}],
                "rejected": [{"role": "assistant", "content": f"{first}, {random.choice(CURT)}"}],
            }
            for first, second in pairs
        ]
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the accuracy on pairs that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="pairs, a JSON object a line")
    parser.add_argument("--output", required=True, help="the reward model's folder")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    pairs = load_dataset("json", data_files=options.data, split="train") if options.data else made_up()
    parts = pairs.train_test_split(test_size=0.2, seed=0)
    trainer = RewardTrainer(
        model=options.model,
        args=RewardConfig(
            output_dir=options.output,
            model_init_kwargs={"dtype": "float32"},
            max_length=512,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=8,
            learning_rate=options.rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            gradient_checkpointing=torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )
    measured = {"accuracy before": trainer.evaluate()["eval_accuracy"]}
    trainer.train()
    measured["accuracy after"] = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
