"""A LoRA adapter with TRL's SFTTrainer and PEFT; with --four-bit on a base model in four bits (QLoRA).

    python examples/lora.py --output adapter                            # the embedded model, seconds, on 1 core
    python examples/lora.py --model chatglm3-6b --data texts.jsonl --output adapter --four-bit

A line of --data is {"text": ...} or {"messages": [...]}; without it the clauses of the bundled text are read. LoRA
needs no target modules: q, k, v and their like are separate matrices, whatever files the model came from. Printed: the
loss on held-out texts before and after. Load the result with peft's AutoPeftModelForCausalLM, or `glmlike merge` it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import CONSTITUTION, TINY


def clauses() -> Dataset:
    """The clauses of the bundled text that have at least six words."""
    found = [clause.strip() for clause in re.split(r"[.;:\n]+", CONSTITUTION.read_text(encoding="utf8"))]
    return Dataset.from_dict({"text": [clause for clause in found if len(clause.split()) >= 6]})


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, save the adapter, and return the loss on texts that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id")
    parser.add_argument("--data", help="texts or chats, a JSON object a line")
    parser.add_argument("--output", required=True, help="the adapter's folder")
    parser.add_argument("--four-bit", action="store_true", help="the base model in nf4 (needs bitsandbytes)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--push", metavar="USER/NAME", help="push the adapter to the Hub")
    options = parser.parse_args(argv)

    set_seed(0)
    texts = load_dataset("json", data_files=options.data, split="train") if options.data else clauses()
    parts = texts.train_test_split(test_size=0.1, seed=0)
    loading = {"dtype": "float32"}
    if options.four_bit:
        loading["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = SFTTrainer(
        model=options.model,
        args=SFTConfig(
            output_dir=options.output,
            model_init_kwargs=loading,
            max_length=512,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
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
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=options.rank, lora_alpha=2 * options.rank),
    )
    trainer.train()
    # Measured last: some CPUs' four-bit weights are repacked by the first evaluation, and do not train after it.
    with trainer.model.disable_adapter():
        measured = {"loss before": trainer.evaluate()["eval_loss"]}
    measured["loss after"] = trainer.evaluate()["eval_loss"]
    trainer.save_model()  # and pushes it, if it is to be pushed
    return measured


if __name__ == "__main__":
    print(main())
