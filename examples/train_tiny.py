"""Train the embedded model: a tokenizer and a small infilling decoder on public-domain text, with the HF Trainer.

    python examples/train_tiny.py --output tiny        # the Bible and Chinese poems: an hour on 2 cores with bfloat16
    python examples/train_tiny.py --output mine --text a.txt b.txt --steps 100

Without --text the corpus is read from Debian's packages: apt-get install bible-kjv bible-kjv-text fortunes-zh.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    set_seed,
)

import glmlike
from glmlike.infilling import BlankInfillingObjective, DataCollatorForBlankInfilling

END, PAD, SOP, EOP = "<|endoftext|>", "<|pad|>", "<sop>", "<eop>"
BLANKS = ["[MASK]", "[gMASK]", "[sMASK]"]
# Reserved for chat, so that the vocabulary of the embedded model does not change when they are used.
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONTEXT = 1024
PASSAGE = (8, 160)  # tokens of a passage: from, to; mostly short, as what people ask to be filled is
PACKED = 192  # tokens of a row of samples
BLOCK = 256  # tokens scored at a time on held-out text
# The family's ideas in one recipe: RMSNorm, SwiGLU of 10/3, grouped queries, bias on q, k, v only (GLM-4 report), and
# prefix attention with two-dimensional rotary positions (GLM paper, ChatGLM-6B).
RECIPE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "attention_mask": "prefix",
    "positions": "rotary_2d",
}
# Blanks of a word or two, and many of them: where what stands after a blank says most, and a step teaches most.
OBJECTIVE = BlankInfillingObjective(
    token=0.8,
    sentence=0.02,
    document=0.08,
    causal=0.1,
    masked_share=0.2,
    mean_span=1.0,
    longest_span=6,
    shortest_document_share=0.25,
    level_per="sample",
)
BIBLE = "King James Bible"
KNOWN = ("Ge1", "Exo20", "Psa23", "Eccl3", "Isa53", "Mat5", "Mat6", "Luke2", "John1", "1Cor13")
POEMS = {
    "Tang poems": Path("/usr/share/games/fortunes/tang300"),
    "Song poems": Path("/usr/share/games/fortunes/song100"),
}
REPEATS = 8  # of a poem in a round: poems are a fortieth of the text; seen more often, they are learnt at all
BATCH = 72  # passages a step
MUON_RATE = 0.02  # of the matrices of the layers, which Muon trains
ADAM_RATE = 3e-3  # of the rest
# Where heads look at first, by position and by place in a piece (None: anywhere); the sixth head anywhere at all.
LOOKS: tuple[tuple[int | None, int | None], ...] = ((-1, None), (1, None), (0, -1), (-2, None), (2, None))
LOOKING_LAYERS = 4


class Phase(NamedTuple):
    """One cosine schedule over so many rounds through the texts, cut anew in each; rates are a share of the above."""

    rounds: int
    objective: BlankInfillingObjective
    rate: float
    known: int = 1
    """How often a chapter that people know by heart is seen in a round."""
    rest: int = 1
    """How often other chapters are."""
    kept: float = 1.0
    """How much of the way from the weights before it to those after it the phase goes in the end."""


# With many blanks a step teaches more; later phases also have samples of one blank alone, as people write them.
ONE_BLANK = replace(OBJECTIVE, single_span_probability=0.5)
PHASES = (
    Phase(rounds=6, objective=OBJECTIVE, rate=1.0),
    Phase(rounds=1, objective=ONE_BLANK, rate=0.5),
    Phase(rounds=2, objective=ONE_BLANK, rate=0.4, known=REPEATS),
    # What people know by heart, once more; averaged with the weights before it (WiSE-FT, 2021), which know the rest.
    Phase(rounds=2, objective=ONE_BLANK, rate=0.25, known=REPEATS, rest=0, kept=0.4),
)


class Document(NamedTuple):
    """One chapter, poem or passage: the collection it is of, its name there, its text."""

    collection: str
    name: str
    text: str


def debian_corpus() -> list[Document]:
    """One document a chapter of the King James Bible and a poem of the Tang and Song collections."""
    if shutil.which("bible") is None or not all(path.exists() for path in POEMS.values()):
        raise SystemExit("The corpus is missing: apt-get install bible-kjv bible-kjv-text fortunes-zh, or pass --text.")
    lines = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    verses = [line.partition(" ") for line in lines.splitlines()]
    documents = [
        Document(BIBLE, chapter, "\n".join(text for _, _, text in group))
        for chapter, group in groupby(verses, key=lambda verse: verse[0].partition(":")[0])
    ]
    for collection, path in POEMS.items():
        plain = re.sub(r"\x1b\[\d*m", "", path.read_text(encoding="utf8"))
        poems = [poem.strip() for poem in re.split(r"^%$", plain, flags=re.MULTILINE)]
        documents += [Document(collection, poem.partition("\n")[0], poem) for poem in poems if poem]
    return documents


def text_corpus(paths: Sequence[Path]) -> list[Document]:
    """Passages of about 2000 characters, whole paragraphs each, of UTF-8 files."""
    documents = []
    for path in paths:
        passage = ""
        for paragraph in [*re.split(r"\n\s*\n", path.read_text(encoding="utf8")), ""]:
            passage += paragraph.strip() + "\n\n"
            if passage.strip() and (len(passage) > 2000 or not paragraph):
                documents.append(Document(path.name, f"passage {len(documents) + 1}", passage.strip()))
                passage = ""
    return documents


def split(documents: Sequence[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents: one in fifty is held out."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    held_out = max(1, len(order) // 50)
    return order[held_out:], order[:held_out]


def repeated(documents: Sequence[Document], repeats: int, known: int = 1, rest: int = 1) -> list[str]:
    """The texts of documents: poems ``repeats`` times, ``KNOWN`` chapters ``known`` times, others ``rest`` times."""

    def times(document: Document) -> int:
        if document.collection in POEMS:
            return repeats
        return known if document.name in KNOWN else rest

    return [document.text for document in documents for _ in range(times(document))]


def passages(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[dict[str, Any]]:
    """Each text cut into runs of whole lines of random length; the last passage of a text ends with the end token."""
    found = []

    def draw() -> float:
        return math.exp(rng.uniform(*map(math.log, PASSAGE)))

    for text in texts:
        lines = tokenizer([line + "\n" for line in text.split("\n")], verbose=False)["input_ids"]
        lines[-1] = [*lines[-1][:-1], tokenizer.eos_token_id]  # a text does not end with its last line's break
        passage: list[int] = []
        wanted = draw()
        for line in lines:
            if passage and len(passage) + len(line) > wanted:
                found.append(passage)
                passage, wanted = [], draw()
            passage = passage + line
        found.append(passage)
    rng.shuffle(found)
    return [{"input_ids": passage[: 2 * PASSAGE[1]]} for passage in found if len(passage) > 2]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text encodes, and decodes to itself. Chinese characters and signs stand alone.

    A blank takes the white space before it, so that the piece that fills it brings its own, as every word here does.
    """
    tokenizer = Tokenizer(models.BPE())
    alone = pre_tokenizers.Split(Regex("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]|\n"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    blanks = [AddedToken(blank, lstrip=True, special=True) for blank in BLANKS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, *blanks, SOP, EOP, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        mask_token=blanks[0],
        extra_special_tokens=[*blanks[1:], SOP, EOP, *ROLES],
        padding_side="left",
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@torch.no_grad()
def score(model: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> dict[str, float]:
    """Perplexity per token and bits per UTF-8 byte of texts, each scored alone after an end token."""
    nats = tokens = size = 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, verbose=False)["input_ids"]]])
        for start in range(0, ids.shape[1] - 1, BLOCK):
            block = ids[:, start : start + BLOCK + 1]
            nats += float(model(block, labels=block).loss) * (block.shape[1] - 1)
            tokens += block.shape[1] - 1
        size += len(text.encode("utf8"))
    return {"perplexity": round(math.exp(nats / tokens), 3), "bits_per_byte": round(nats / math.log(2) / size, 4)}


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained decoder of the recipe for this tokenizer."""
    ids = dict(
        zip(("mask_token_id", "gmask_token_id", "smask_token_id"), tokenizer.convert_tokens_to_ids(BLANKS), strict=True)
    )
    ids |= dict(zip(("sop_token_id", "pad_token_id"), tokenizer.convert_tokens_to_ids([SOP, PAD]), strict=True))
    ends = tokenizer.convert_tokens_to_ids([END, EOP])
    config = glmlike.GlmLikeConfig(
        vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, eos_token_id=ends, **RECIPE, **ids
    )
    model = AutoModelForCausalLM.from_config(config)
    look_around(model)
    return model


@torch.no_grad()
def look_around(model: Any, strength: float = 3.0) -> None:
    """Set the biases of q and k so that heads of the first layers begin by looking at neighbours, as ``LOOKS`` says.

    Rotary positions turn a constant q and k into a function of distance alone: q is k turned by the distance wanted, in
    the three fastest pairs. Untouched heads take thousands of steps to find that a blank's neighbours matter.
    """
    config = model.config
    half, pairs, fastest = config.head_dim // 2, config.head_dim // 4, 3
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(fastest) / pairs)
    key = torch.zeros(config.head_dim)
    queries = torch.zeros(config.num_attention_heads, config.head_dim)
    for part in (0, half):  # the half of positions, the half of places in a piece
        key[part : part + fastest] = strength
    for query, look in zip(queries, LOOKS, strict=False):
        for part, distance in zip((0, half), look, strict=True):
            if distance is not None:
                query[part : part + fastest] = strength * torch.cos(distance * angles)
                query[part + pairs : part + pairs + fastest] = strength * torch.sin(distance * angles)
    for layer in model.model.layers[:LOOKING_LAYERS]:
        layer.self_attn.k_proj.bias.copy_(key.repeat(config.num_key_value_heads))
        layer.self_attn.q_proj.bias.copy_(queries.flatten())


class Together(torch.optim.Optimizer):
    """Several optimizers stepped as one, each for its own parameters."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([{**group} for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step each, with the learning rates that a schedule set here."""
        theirs = [group for part in self.parts for group in part.param_groups]
        for mine, group in zip(self.param_groups, theirs, strict=True):
            group["lr"] = mine["lr"]
        for part in self.parts:
            part.step()


def optimizer_for(model: Any, rate: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for embeddings, norms and biases."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    tables = list({id(p): p for p in (model.model.embed_tokens.weight, model.lm_head.weight)}.values())
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return Together(
        torch.optim.Muon(matrices, lr=MUON_RATE * rate, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(groups, lr=ADAM_RATE * rate, betas=(0.9, 0.95)),
    )


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    training: list[dict[str, list[int]]],
    held_out: list[dict[str, list[int]]],
    phase: Phase,
    options: argparse.Namespace,
) -> tuple[Any, float]:
    """Train ``model`` in place for one phase; the trainer's state and the seconds it took."""
    collator = DataCollatorForBlankInfilling(
        tokenizer, model.config, phase.objective, max_length=PASSAGE[1], pack_length=PACKED, seed=options.seed
    )
    optimizer = optimizer_for(model, phase.rate)
    steps = options.steps if options.steps > 0 else math.ceil(len(training) / BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,  # the passages of all rounds are one epoch here
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=min(50, steps),
            eval_strategy="steps" if held_out else "no",
            eval_steps=options.eval_steps,
            save_strategy="no",
            seed=options.seed,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=training,
            eval_dataset=held_out,
            data_collator=collator,
            optimizers=(optimizer, schedule),
        )
        started = time.time()
        trainer.train()
        return trainer.state, time.time() - started


@torch.no_grad()
def go_back(model: Any, before: Sequence[torch.Tensor], kept: float) -> None:
    """Leave ``kept`` of what a phase changed in the weights."""
    for parameter, old in zip(model.parameters(), before, strict=True):
        parameter.copy_(torch.lerp(old.to(parameter), parameter, kept))


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here; without instructions for it, it is many times slower."""
    if torch.cuda.is_available():
        return True
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Any:
    """Write the weights in bfloat16, with the tokenizer; the model as it reloads, in float32 for exact scores."""
    model = model.cpu().to(torch.bfloat16).eval()
    model.config.use_cache = True  # the trainer turns it off
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    return model.float()


def collections(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Name, documents and bytes of each collection."""
    found: dict[str, dict[str, Any]] = {}
    for collection, _, text in documents:
        row = found.setdefault(collection, {"collection": collection, "documents": 0, "bytes": 0})
        row["documents"] += 1
        row["bytes"] += len(text.encode("utf8"))
    return list(found.values())


def samples(model: Any, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[Document]) -> list[dict[str, Any]]:
    """The shortest held-out document of each collection with its score, so that anyone can measure it again."""
    shortest: dict[str, Document] = {}
    for document in sorted(held_out, key=lambda document: len(document.text)):
        shortest.setdefault(document.collection, document)
    return [{**document._asdict(), **score(model, tokenizer, [document.text])} for document in shortest.values()]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, measure on the held-out documents, and save the checkpoint, its tokenizer and training.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--text", type=Path, nargs="*", help="UTF-8 files to train on instead of the Debian packages")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--start", type=Path, help="the folder that an earlier phase wrote, to go on from")
    parser.add_argument("--phases", type=int, default=len(PHASES), help="stop after so many phases")
    parser.add_argument("--steps", type=int, default=-1, help="stop each phase after so many steps")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=has_fast_bfloat16(), help="matrix products in bfloat16"
    )
    parser.add_argument("--eval-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    set_seed(options.seed)
    documents = text_corpus(options.text) if options.text else debian_corpus()
    training, held_out = split(documents, options.seed)
    held_out_texts = [document.text for document in held_out]
    model, tokenizer, history = _begin(options, repeated(training, REPEATS))
    for phase in PHASES[len(history) : options.phases]:
        rng = random.Random(options.seed + len(history))
        texts = repeated(training, REPEATS, phase.known, phase.rest) or repeated(training, REPEATS)
        examples = [passage for _ in range(phase.rounds) for passage in passages(texts, tokenizer, rng)]
        before = [parameter.detach().clone() for parameter in model.parameters()]
        state, seconds = train(model, tokenizer, examples, passages(held_out_texts, tokenizer, rng), phase, options)
        go_back(model, before, phase.kept)
        history.append(_summary(phase, state, seconds, examples))

    model = save(model, tokenizer, options.output)
    summary = {
        "recipe": "RMSNorm, SwiGLU, grouped queries, bias on q, k, v only, prefix attention, 2-D rotary positions",
        "data": {"training": collections(training), "held_out": collections(held_out)},
        "passage": list(PASSAGE),
        "seed": options.seed,
        "hardware": f"{os.cpu_count()} CPU cores, {'bfloat16 products' if options.bf16 else 'float32'}",
        "repeats": REPEATS,
        "batch": BATCH,
        "optimizer": {"matrices of layers": f"Muon, {MUON_RATE:g}", "the rest": f"AdamW, {ADAM_RATE:g}"},
        "phases": history,
        "held_out": score(model, tokenizer, held_out_texts),
        "samples": samples(model, tokenizer, held_out),
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (options.output / "training.json").write_text(text + "\n", encoding="utf8")
    return summary


def _begin(options: argparse.Namespace, texts: Sequence[str]) -> tuple[Any, Any, list[dict[str, Any]]]:
    """An untrained model and its tokenizer, or those of ``--start`` with the phases they have had."""
    if options.start is not None:
        model = AutoModelForCausalLM.from_pretrained(options.start, dtype=torch.float32)
        history = json.loads((options.start / "training.json").read_text(encoding="utf8"))["phases"]
        return model, AutoTokenizer.from_pretrained(options.start), history
    tokenizer = train_tokenizer(texts, options.vocab_size)
    return build_model(tokenizer), tokenizer, []


def _summary(phase: Phase, state: Any, seconds: float, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rounds": phase.rounds,
        "rate": phase.rate,
        "known": phase.known,
        "rest": phase.rest,
        "kept": phase.kept,
        "objective": asdict(phase.objective),
        "steps": state.global_step,
        "tokens": sum(len(passage["input_ids"]) for passage in examples[: state.global_step * BATCH]),
        "seconds": round(seconds),
        "loss": _curve(state.log_history, "loss"),
        "held_out_loss": _curve(state.log_history, "eval_loss"),
    }


def _curve(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, float]]:
    return [{"step": row["step"], "loss": round(row[name], 4)} for row in rows if name in row]


if __name__ == "__main__":
    print(json.dumps(main()["held_out"]))
