"""Write the model cards from the models: ``python model_cards/write_cards.py`` (``tests/test_cards.py`` compares)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmlike
from glmlike.data import TINY

HERE = Path(__file__).parent
PROMPTS = ("And it came to", "Thus saith the LORD", "And the word of the LORD came unto me,", "《静夜思》\n作者：")

CARD = """---
license: apache-2.0
language:
- en
- zh
library_name: transformers
pipeline_tag: text-generation
tags:
- glm
- glmlike
---

# The embedded model

A decoder of {parameters:.2f} million parameters of the GLM recipe, trained from nothing on public-domain text. It comes
with the package (`glmlike.data.TINY`), so that everything can be tried without a network. It knows the sound of its
texts and nothing else; use it to try tools, not to learn facts.

```python
import glmlike
from glmlike.data import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY)
output = model.generate(**tokenizer("And it came to", return_tensors="pt"), max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0]))
```

## Architecture

| | |
|---|---|
{architecture}

## Data

{data}

{repeats}

## Training

`examples/train_tiny.py` with the HF Trainer: {steps} steps of {batch} rows of {block} tokens ({seen:.1f} million),
learning rate {learning_rate}, AdamW, cosine schedule, seed {seed}; {minutes:.0f} minutes on {hardware}.

| step | training loss | held-out loss |
|---|---|---|
{losses}

On the held-out documents: perplexity {perplexity} a token, {bits} bits a byte.

## What it says

Greedy continuations; the prompt is in bold:

{continuations}

## Formats

Stored in native layout (bfloat16, {bytes:.1f} MB with its tokenizer: a byte-level BPE of {vocabulary} tokens).
Converts to {formats}.

## Licence and limits

Apache-2.0. The texts are in the public domain. The model repeats phrases and mixes names; its context is {context}
tokens and it was trained on rows of {block}.
"""


def tiny() -> str:
    """The card of the embedded model, every number read or measured now."""
    training = json.loads((TINY / "training.json").read_text(encoding="utf8"))
    spec = glmlike.detect(TINY).spec
    how = training["hyperparameters"]
    return CARD.format(
        parameters=spec.num_parameters / 1e6,
        architecture=_architecture(spec),
        data=_data(training["data"]),
        repeats=f"One document in fifty is held out. {_repeats(training['data']['repeats'])}",
        seen=training["tokens"]["seen"] / 1e6,
        minutes=training["seconds"] / 60,
        hardware=training["hardware"],
        losses=_losses(training),
        perplexity=training["held_out"]["perplexity"],
        bits=training["held_out"]["bits_per_byte"],
        continuations=_continuations(),
        bytes=sum(path.stat().st_size for path in TINY.iterdir()) / 1e6,
        vocabulary=spec.vocab_size,
        formats=" and ".join(f"`{fmt}`" for fmt in _formats(spec)),
        context=spec.max_position_embeddings,
        **how,
    )


def _architecture(spec: glmlike.DecoderSpec) -> str:
    rows = {
        "layers": spec.num_hidden_layers,
        "hidden size": spec.hidden_size,
        "feed-forward size": f"{spec.intermediate_size} ({spec.feed_forward})",
        "heads": f"{spec.num_attention_heads} for queries, {spec.num_key_value_heads} for keys and values",
        "head size": f"{spec.head_dim}, rotary on {spec.rotary_dim} ({spec.rotary_pairing} pairs)",
        "norm": f"{spec.norm}, {spec.residual}",
        "bias": "on q, k, v only" if spec.qkv_bias and not spec.output_bias else "see config.json",
        "head": "tied to the embedding" if spec.tie_word_embeddings else "its own",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _data(data: dict[str, Any]) -> str:
    lines = ["| collection | training documents | training bytes | held-out documents |", "|---|---|---|---|"]
    held_out = {row["collection"]: row["documents"] for row in data["held_out"]}
    for row in data["training"]:
        count = held_out.get(row["collection"], 0)
        lines.append(f"| {row['collection']} | {row['documents']} | {row['bytes']:,} | {count} |")
    return "\n".join(lines)


def _repeats(repeats: dict[str, int]) -> str:
    return " ".join(f"{name} are seen {times} times in each epoch." for name, times in repeats.items())


def _losses(training: dict[str, Any]) -> str:
    trained = {row["step"]: row["loss"] for row in training["loss"]}
    rows = []
    for row in training["held_out_loss"]:
        before = max(step for step in trained if step <= row["step"])
        rows.append(f"| {row['step']} | {trained[before]} | {row['loss']} |")
    return "\n".join(rows)


def _continuations() -> str:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    lines = []
    for prompt in PROMPTS:
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(output[0], skip_special_tokens=True)[len(prompt) :]
        lines.append(f"> **{prompt}**{text}".rstrip().replace("\n", "<br>"))
    return "\n\n".join(lines)


def _formats(spec: glmlike.DecoderSpec) -> list[str]:
    from glmlike.hub_json import FORMATS, cannot_express

    return [fmt for fmt in FORMATS if fmt != "glmlike" and not cannot_express(spec, fmt)]


def main() -> None:
    """Write every card beside this script."""
    (HERE / "tiny.md").write_text(tiny(), encoding="utf8")


if __name__ == "__main__":
    main()
