"""Batches of blank infilling a second on one core, beside transformers' collator for masked language modelling."""

from __future__ import annotations

import functools
from typing import Any

from common import child, interleaved, median, report

_SETUP = """
import os
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
import numpy, torch
torch.set_num_threads(1)
from transformers import AutoTokenizer, DataCollatorForLanguageModeling
from glmlike import GlmLikeConfig
from glmlike.data import TINY
from glmlike.infilling import OBJECTIVES, BlankInfillingObjective, DataCollatorForBlankInfilling
tokenizer = AutoTokenizer.from_pretrained(TINY)
vocabulary = tokenizer.get_vocab()
ids = {"mask_token_id": "[MASK]", "smask_token_id": "[sMASK]", "gmask_token_id": "[gMASK]", "sop_token_id": "<sop>"}
config = GlmLikeConfig(
    vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    positions="rotary_2d", attention_mask="prefix", pad_token_id=tokenizer.pad_token_id,
    **{name: vocabulary[token] for name, token in ids.items()},
)
length, kind = argument
rng = numpy.random.default_rng(0)
batches = [
    [{"input_ids": row} for row in rng.integers(300, 4000, (16, length))] for _ in range(1 + 400_000 // (16 * length))
]
if kind == "transformers":
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
else:
    objective = OBJECTIVES["glm-130b"] if kind == "mixed" else BlankInfillingObjective()
    pack = 1024 if kind == "packed" else None
    collate = DataCollatorForBlankInfilling(tokenizer, config, objective, pack_length=pack)
collate(batches[0])
"""
_WORK = "result = sum(len(row['input_ids']) for batch in batches if collate(batch) for row in batch)"
KINDS = {
    "transformers": "transformers, masked language modelling",
    "token": "glmlike, [MASK] alone",
    "mixed": "glmlike, GLM-130B's mix",
    "packed": "glmlike, [MASK] alone, packed into 1024",
}


def main(repeats: int = 5) -> None:
    """Measure and write results/collator.json."""
    rows: list[dict[str, Any]] = []
    for length in (128, 512, 2048):
        runs = {
            kind: functools.partial(child, _WORK, setup=_SETUP, argument=[length, kind])
            for kind in KINDS
            if kind != "packed" or length < 1024
        }
        measured = interleaved(runs, repeats)
        speeds = {kind: found[0]["extra"] / median(found, "seconds") for kind, found in measured.items()}
        rows += [
            {
                "tokens a text": length,
                "collator": KINDS[kind],
                "thousand tokens / s": speed / 1000,
                "ratio to transformers": speed / speeds["transformers"],
            }
            for kind, speed in speeds.items()
        ]
    note = f"Batches of 16 texts, one thread on one core; median of {repeats} new processes each, interleaved."
    report("collator", rows, note)


if __name__ == "__main__":
    main()
