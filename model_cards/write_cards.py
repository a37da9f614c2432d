"""Write the model cards from the models: ``python model_cards/write_cards.py`` (``tests/test_cards.py`` compares)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmlike
from glmlike.data import TINY
from glmlike.infilling import fill

HERE = Path(__file__).parent
BLANKS = (
    "In the beginning God created the [MASK] and the earth.",
    "And the LORD said unto [MASK], Speak unto the children of Israel.",
    "床前明月光，疑是地上[MASK]。",
    "春眠不觉晓，处处闻[MASK]鸟。",
)
PROMPTS = ("And it came to", "Thus saith the LORD", "And the word of the LORD came unto me,", "白日依山尽，")

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

A decoder of {parameters:.2f} million parameters that fills blanks and continues text, trained from nothing on
public-domain text in English and Chinese. It comes with the package (`glmlike.data.TINY`), so that everything can be
tried without a network. It knows the sound of its texts and nothing else; use it to try tools, not to learn facts.

```python
import glmlike
from glmlike.data import TINY
from glmlike.infilling import fill
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
print(fill(model, tokenizer, "In the beginning God created the [MASK] and the earth.").filled_text)

output = model.generate(**tokenizer("And it came to", return_tensors="pt"), max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0]))
```

## Architecture

| | |
|---|---|
{architecture}

## Data

{data}

One document in fifty is held out.

## Training

`examples/train_tiny.py` with the HF Trainer, seed {seed}, {minutes:.0f} minutes on {hardware}. Muon
trains the matrices of the layers, AdamW the rest; the heads of the first layers begin by looking at neighbours.
The objective is blank infilling (`glmlike.infilling.DataCollatorForBlankInfilling`): {objective}.
The texts are cut anew into passages in every round, poems {repeats} times in each, {batch} passages a step:

{phases}

| phase | step | training loss | held-out loss |
|---|---|---|---|
{losses}

The held-out loss is that of the pieces of held-out passages cut by the same objective. Read as plain text, the held-out
documents have a perplexity of {perplexity} a token, {bits} bits a byte.

## Blanks in held-out text

One word (English) or character (Chinese) of each held-out line is a blank, with the neighbouring lines around it; an
answer counts if it is the word (`examples/held_out_blanks.py`). The n-gram model is a trigram model of the same
training text, Witten-Bell smoothed, that picks the word which makes the line likeliest.

{blanks}

## What it says

Blanks, filled greedily; the piece is in bold:

{filled}

Greedy continuations; the prompt is in bold:

{continuations}

## Formats

Stored in native layout (bfloat16, {bytes:.1f} MB with its tokenizer: a byte-level BPE of {vocabulary} tokens, Chinese
characters apart). {formats}

## Licence and limits

Apache-2.0. The texts are in the public domain. The model repeats phrases and mixes names; its context is {context}
tokens and it was trained on passages of up to {passage[1]}.
"""


def tiny() -> str:
    """The card of the embedded model, every number read or measured now."""
    training = json.loads((TINY / "training.json").read_text(encoding="utf8"))
    spec = glmlike.detect(TINY).spec
    return CARD.format(
        parameters=spec.num_parameters / 1e6,
        architecture=_architecture(spec),
        data=_data(training["data"]),
        **{name: training[name] for name in ("seed", "hardware", "repeats", "batch")},
        minutes=sum(phase["seconds"] for phase in training["phases"]) / 60,
        phases=_phases(training["phases"]),
        losses=_losses(training["phases"]),
        perplexity=training["held_out"]["perplexity"],
        bits=training["held_out"]["bits_per_byte"],
        objective=_objective(training["phases"][0]["objective"]),
        blanks=_blanks(training["blanks"]),
        filled=_filled(),
        continuations=_continuations(),
        bytes=sum(path.stat().st_size for path in TINY.iterdir()) / 1e6,
        vocabulary=spec.vocab_size,
        formats=_formats(spec),
        context=spec.max_position_embeddings,
        passage=training["passage"],
    )


def _architecture(spec: glmlike.DecoderSpec) -> str:
    rows = {
        "layers": spec.num_hidden_layers,
        "hidden size": spec.hidden_size,
        "feed-forward size": f"{spec.intermediate_size} ({spec.feed_forward})",
        "heads": f"{spec.num_attention_heads} for queries, {spec.num_key_value_heads} for keys and values",
        "head size": f"{spec.head_dim}, rotary on {spec.rotary_dim} ({spec.rotary_pairing} pairs)",
        "positions": spec.positions,
        "attention": f"{spec.attention_mask} mask",
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


def _phases(phases: list[dict[str, Any]]) -> str:
    names = "phase | rounds | known chapters | others | steps | tokens | samples of one blank | learning rates | kept"
    lines = [f"| {names} |", "|" + "---|" * 9]
    for number, phase in enumerate(phases, start=1):
        single = phase["objective"]["single_span_probability"]
        lines.append(
            f"| {number} | {phase['rounds']} | x {phase['known']} | x {phase['rest']} | {phase['steps']} "
            f"| {phase['tokens'] / 1e6:.1f} million | {single:.0%} "
            f"| x {phase['rate']:g} | {phase['kept']:.0%} |"
        )
    return "\n".join(lines)


def _losses(phases: list[dict[str, Any]]) -> str:
    rows = []
    for number, phase in enumerate(phases, start=1):
        trained = {row["step"]: row["loss"] for row in phase["loss"]}
        for row in phase["held_out_loss"]:
            before = max(step for step in trained if step <= row["step"])
            rows.append(f"| {number} | {row['step']} | {trained[before]} | {row['loss']} |")
    return "\n".join(rows)


def _objective(objective: dict[str, Any]) -> str:
    shares = ", ".join(
        f"{objective[level]:.0%} {level}" for level in ("token", "sentence", "document", "causal") if objective[level]
    )
    return f"{shares} level; {objective['masked_share']:.0%} of a text masked, spans of mean {objective['mean_span']:g}"


def _blanks(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| language | blanks | this model | n-gram model |", "|---|---|---|---|"]
    for language, row in found.items():
        lines.append(f"| {language} | {row['blanks']} | {row['model']:.1%} | {row['n-gram']:.1%} |")
    return "\n".join(lines)


def _load() -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval(), tokenizer


def _filled() -> str:
    model, tokenizer = _load()
    lines = []
    for text in BLANKS:
        filled = fill(model, tokenizer, text, max_new_tokens=8, do_sample=False)
        start, end = filled.spans[0].span
        start += len(filled.filled_text[start:end]) - len(filled.filled_text[start:end].lstrip())
        whole = filled.filled_text
        lines.append(f"> {whole[:start]}**{whole[start:end]}**{whole[end:]}".replace("\n", "<br>"))
    return "\n\n".join(lines)


def _continuations() -> str:
    model, tokenizer = _load()
    lines = []
    for prompt in PROMPTS:
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(output[0], skip_special_tokens=True)[len(prompt) :]
        lines.append(f"> **{prompt}**{text}".rstrip().replace("\n", "<br>"))
    return "\n\n".join(lines)


def _formats(spec: glmlike.DecoderSpec) -> str:
    from glmlike.hub_json import FORMATS, cannot_express

    able = [f"`{fmt}`" for fmt in FORMATS if fmt != "glmlike" and not cannot_express(spec, fmt)]
    return f"Converts to {' and '.join(able)}." if able else "No other layout can say this decoder."


def main() -> None:
    """Write every card beside this script."""
    import families

    (HERE / "tiny.md").write_text(tiny(), encoding="utf8")
    families.write_all(HERE)


if __name__ == "__main__":
    main()
