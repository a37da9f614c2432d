"""Preference tuning with TRL's DPOTrainer, full or with a LoRA adapter.

    python examples/dpo.py --output preferred                           # the embedded model, seconds, on 1 core
    python examples/dpo.py --model glm-4-9b-chat --data pairs.jsonl --output preferred --lora

A line of --data is {"prompt": [message, ...], "chosen": [message], "rejected": [message]}; a message has a role and a
content. Without it, pairs are made up: courteous answers are preferred to curt ones. Printed: the share of held-out
pairs of which the model finds the chosen answer more probable, before and after.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

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


@torch.no_grad()
def preferred(model: Any, tokenizer: Any, pairs: Dataset) -> float:
    """The share of pairs of which the model gives the chosen answer more probability than the rejected one."""
    model.eval()

    def score(prompt: list[Any], answer: list[Any]) -> float:
        given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = torch.tensor([tokenizer.apply_chat_template(prompt + answer, return_dict=True)["input_ids"]])
        logits = model(ids.to(model.device)).logits[0, len(given) - 1 : -1].float().cpu()
        return float(logits.log_softmax(-1).gather(1, ids[0, len(given) :, None]).sum())

    wins = [score(row["prompt"], row["chosen"]) > score(row["prompt"], row["rejected"]) for row in pairs]
    return sum(wins) / len(wins)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the preference accuracy on pairs that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="pairs, a JSON object a line")
    parser.add_argument("--output", required=True, help="the folder of the tuned model, or of its adapter")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--beta", type=float, default=0.1, help="how much it costs to leave the model one began with")
    parser.add_argument("--lora", action="store_true", help="train an adapter, and keep the model as the reference")
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    pairs = load_dataset("json", data_files=options.data, split="train") if options.data else made_up()
    parts = pairs.train_test_split(test_size=0.2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    adapter = None
    if options.lora:
        from peft import LoraConfig

        adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32)
    trainer = DPOTrainer(
        model=options.model,
        args=DPOConfig(
            output_dir=options.output,
            model_init_kwargs={"dtype": "float32"},
            beta=options.beta,
            max_length=512,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=8,
            learning_rate=options.rate,
            gradient_checkpointing=torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        peft_config=adapter,
    )
    measured = {"preference accuracy before": preferred(trainer.model, tokenizer, parts["test"])}
    trainer.train()
    measured["preference accuracy after"] = preferred(trainer.model, tokenizer, parts["test"])
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
