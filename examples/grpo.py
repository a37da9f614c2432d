"""Reinforcement learning with TRL's GRPOTrainer: the model answers, a function scores, better answers get likelier.

    python examples/grpo.py --output rewarded                           # the embedded model, seconds, on 1 core
    python examples/grpo.py --model chatglm3-6b --data prompts.jsonl --output rewarded --reward-model judge

A line of --data is {"prompt": [message, ...]}; a message has a role and a content. Without it, prompts are made up
from names. The reward is a function of yours (``stays_with_the_prompt`` below) or a model from examples/reward.py.
Printed: the mean reward of sampled answers to held-out prompts, before and after.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import TINY

NAMES = ("Moses", "David", "Aaron", "Saul", "Joshua", "Jacob", "Abraham", "Isaac", "Samuel", "Joseph", "Judah", "Peter")


def made_up() -> Dataset:
    """A prompt for every ordered pair of names."""
    pairs = [(first, second) for first in NAMES for second in NAMES if first != second]
    random.shuffle(pairs)
    prompts = [f"And {first} said unto {second}, Speak unto the children of Israel" for first, second in pairs]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])


def stays_with_the_prompt(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Of each answer, the share of its different words that its prompt has too."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        asked = set(re.findall(r"\w+", prompt[-1]["content"].lower()))
        said = set(re.findall(r"\w+", completion[-1]["content"].lower()))
        scores.append(len(said & asked) / len(said) if said else 0.0)
    return scores


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the mean reward on prompts that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="prompts, a JSON object a line")
    parser.add_argument("--output", required=True, help="the tuned model's folder")
    parser.add_argument("--reward-model", help="a folder that examples/reward.py wrote, instead of the function here")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    prompts = load_dataset("json", data_files=options.data, split="train") if options.data else made_up()
    parts = prompts.train_test_split(test_size=0.2, seed=0)
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=options.reward_model or stays_with_the_prompt,
        args=GRPOConfig(
            output_dir=options.output,
            model_init_kwargs={"dtype": "float32"},
            num_generations=8,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            max_completion_length=options.tokens,
            max_steps=options.steps,
            learning_rate=options.rate,
            gradient_checkpointing=torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"].select(range(min(32, len(parts["test"])))),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )
    measured = {"reward before": trainer.evaluate()["eval_reward"]}
    trainer.train()
    measured["reward after"] = trainer.evaluate()["eval_reward"]
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
