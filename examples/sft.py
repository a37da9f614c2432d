"""Instruction tuning with TRL's SFTTrainer: the loss is on what the assistant says, through the model's chat template.

    python examples/sft.py --output chat                                # the embedded model, seconds, on 1 core
    python examples/sft.py --model chatglm3-6b --data chats.jsonl --output chat --packing

A line of --data is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}.
Without it, questions are made up: which of two names is said first. Printed: the loss on held-out chats before and
after, and how many of their answers are right, word for word.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import TINY

NAMES = ("Moses", "David", "Aaron", "Saul", "Joshua", "Jacob", "Abraham", "Isaac", "Samuel", "Joseph", "Judah", "Peter")


def made_up() -> Dataset:
    """Every ordered pair of names, as a chat of one question and its answer."""
    pairs = [(first, second) for first in NAMES for second in NAMES if first != second]
    random.shuffle(pairs)
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"Who is named first: {first} or {second}?"},
                    {"role": "assistant", "content": first},
                ]
            }
            for first, second in pairs
        ]
    )


@torch.no_grad()
def right_answers(model: Any, tokenizer: Any, chats: Dataset) -> float:
    """The share of chats whose last message the model writes word for word, greedily."""
    model.eval()
    right = 0
    for messages in chats["messages"]:
        inputs = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer.strip() == messages[-1]["content"].strip()
    return right / len(chats)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return what was measured before and after on chats that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="chats, a JSON object a line")
    parser.add_argument("--output", required=True, help="the tuned model's folder")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--packing", action="store_true", help="several chats in a row, which do not see each other")
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    chats = load_dataset("json", data_files=options.data, split="train") if options.data else made_up()
    parts = chats.train_test_split(test_size=0.2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = SFTTrainer(
        model=options.model,
        args=SFTConfig(
            output_dir=options.output,
            model_init_kwargs={"dtype": "float32"},
            assistant_only_loss=True,
            packing=options.packing,
            eval_packing=False,
            max_length=512,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=1 if options.packing else 8,  # a packed row holds many chats
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
        processing_class=tokenizer,
    )
    sample = parts["test"].select(range(min(50, len(parts["test"]))))
    measured = {"loss before": trainer.evaluate()["eval_loss"]}
    measured["right before"] = right_answers(trainer.model, tokenizer, sample)
    trainer.train()
    measured["loss after"] = trainer.evaluate()["eval_loss"]
    measured["right after"] = right_answers(trainer.model, tokenizer, sample)
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
