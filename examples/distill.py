"""Distillation with TRL's DistillationTrainer: a student writes, and learns to give its words the teacher's odds.

    python examples/distill.py --output student                         # the embedded model, seconds, on 1 core
    python examples/distill.py --teacher glm-4-9b-chat --layers 20 --data prompts.jsonl --output student

The student is the teacher with only --layers of its layers, spread evenly, or --student, a model with the same tokens.
A line of --data is {"prompt": [message, ...]}; a message has a role and a content. Without it, prompts are beginnings
of clauses of the bundled text. Printed: the Kullback-Leibler divergence of the student from the teacher in nats a
token, on what the teacher answers to held-out prompts, before and after.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DistillationConfig, DistillationTrainer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY


def made_up() -> Dataset:
    """The first six words of each clause of the bundled text."""
    clauses = [clause.split() for clause in re.split(r"[.;:\n]+", CONSTITUTION.read_text(encoding="utf8"))]
    prompts = sorted({" ".join(words[:6]) for words in clauses if len(words) >= 6})
    return Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])


def with_fewer_layers(teacher: Any, count: int) -> Any:
    """A copy of the teacher with ``count`` of its layers, the first and the last among them."""
    depth = teacher.config.num_hidden_layers
    kept = sorted({round(index * (depth - 1) / max(1, count - 1)) for index in range(count)})
    student = copy.deepcopy(teacher)
    student.model.layers = torch.nn.ModuleList(student.model.layers[index] for index in kept)
    student.model.layer_types = [student.model.layer_types[index] for index in kept]
    for number, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = number  # its place in the key-value cache
    student.config.num_hidden_layers = len(kept)
    return student


@torch.no_grad()
def divergence(student: Any, teacher: Any, tokenizer: Any, prompts: Dataset, tokens: int) -> float:
    """Nats a token of KL(teacher, student) on the teacher's greedy answers."""
    student.eval()
    teacher.to(student.device).eval()
    total, count = 0.0, 0
    for row in prompts:
        inputs = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(student.device)
        start = inputs["input_ids"].shape[1] - 1
        ids = teacher.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        theirs, ours = (model(ids).logits[0, start:-1].float().log_softmax(-1) for model in (teacher, student))
        total += float((theirs.exp() * (theirs - ours)).sum())
        count += len(theirs)
    return total / count


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save, and return the divergence from the teacher on prompts that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--student", help="a folder or Hub id; by default the teacher with --layers layers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--data", help="prompts, a JSON object a line")
    parser.add_argument("--output", required=True, help="the student's folder")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    parser.add_argument("--push", metavar="USER/NAME", help="push the result to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    prompts = load_dataset("json", data_files=options.data, split="train") if options.data else made_up()
    parts = prompts.train_test_split(test_size=0.2, seed=0)
    teacher = AutoModelForCausalLM.from_pretrained(options.teacher, dtype="float32")
    if options.student:
        student = AutoModelForCausalLM.from_pretrained(options.student, dtype="float32")
    else:
        student = with_fewer_layers(teacher, options.layers)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=options.output,
            max_completion_length=options.tokens,
            max_steps=options.steps,
            per_device_train_batch_size=min(16, len(parts["train"])),  # what is left of a batch is left out
            learning_rate=options.rate,
            lr_scheduler_type="cosine",
            gradient_checkpointing=torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            push_to_hub=options.push is not None,
            hub_model_id=options.push,
        ),
        train_dataset=parts["train"],
        processing_class=tokenizer,
    )
    sample = parts["test"].select(range(min(32, len(parts["test"]))))
    measured = {"divergence before": divergence(trainer.model, teacher, tokenizer, sample, options.tokens)}
    trainer.train()
    measured["divergence after"] = divergence(trainer.model, teacher, tokenizer, sample, options.tokens)
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
