"""A needle in a haystack, beyond the trained length: what each stretching of rotary positions finds.

    python examples/needle.py                              # trains a tiny decoder first, about a minute on 1 core

A needle is a key and a value among random tokens; at the end stands the key, and the decoder is to say the value. The
tiny decoder is trained to do so in texts of up to --trained tokens and never sees a longer one. Printed: the share of
needles found at each length, and at the first and the second half of it, by every scaling of glmlike.long_context.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup, set_seed

from glmlike import DecoderSpec, GlmLikeConfig, GlmLikeForCausalLM
from glmlike.long_context import scale

VOCABULARY, KEYS = 64, 16  # tokens; the first KEYS of them stand for keys, and never in the hay
SPEC = DecoderSpec(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    rotary_pairing="halves",
    partial_rotary_factor=1.0,
    qkv_bias=False,
    tie_word_embeddings=True,
)


def haystacks(count: int, length: int, needles: int, high: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Rows [count, length] that end in keys and their values, and the values' places [count] of the first needle.

    Each row has ``needles`` different keys, each followed by a random token, at random places; its end asks for all.
    """
    if length < 4 * needles:
        raise ValueError(f"{length} tokens have no room for {needles} needles and questions: at least {4 * needles}.")
    rows = torch.randint(KEYS, high, (count, length))
    body = (length - 2 * needles) // 2
    places = torch.stack([torch.randperm(body)[:needles] for _ in range(count)]) * 2
    keys = torch.stack([torch.randperm(KEYS)[:needles] for _ in range(count)])
    rows.scatter_(1, places, keys)
    values = rows.gather(1, places + 1)
    rows[:, length - 2 * needles :] = torch.stack((keys, values), dim=-1).flatten(1)
    return rows, places[:, 0]


def train(trained: int, steps: int, needles: int = 8) -> Any:
    """The tiny decoder, which has learnt to answer in texts of up to ``trained`` tokens."""
    model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(SPEC.replace(max_position_embeddings=trained)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    for step in range(steps):
        length = int(torch.randint(trained // 4, trained // 2 + 1, ())) * 2
        rows, _ = haystacks(32, length, needles)
        answers = slice(length - 2 * needles, length, 2)
        logits = model(rows).logits[:, answers]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, answers.start + 1 :: 2].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: {float(loss.detach()):.3f}")
    return model.eval()


@torch.no_grad()
def found(model: Any, length: int, count: int = 256) -> list[float]:
    """The share of needles that the decoder names: in all places, in the first half of the text, in the second."""
    with torch.random.fork_rng():
        torch.manual_seed(length)  # the same needles for every scaling
        rows, places = haystacks(count, length, 1)
    guesses = torch.cat([model(batch[:, :-1], logits_to_keep=1).logits[:, 0].argmax(-1) for batch in rows.split(32)])
    right, early = (guesses == rows[:, -1]).float(), places < length // 2
    return [float(right.mean()), float(right[early].mean()), float(right[~early].mean())]


def main(argv: Sequence[str] | None = None) -> dict[str, dict[int, list[float]]]:
    """Train or load, stretch, measure; return what every scaling found at each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=int, default=64, help="tokens of the longest text in training")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--count", type=int, default=128, help="needles of each length")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    set_seed(options.seed)
    model = train(options.trained, options.steps)
    results: dict[str, dict[int, list[float]]] = {"none": {}}
    for length in options.lengths:
        results["none"][length] = found(model, length, options.count)
        factor = length / options.trained
        for kind in ("linear", "dynamic", "yarn", "llama3"):
            config = scale(model.config, kind, factor) if factor > 1 else model.config  # type: ignore[arg-type]
            stretched = GlmLikeForCausalLM.from_pretrained(None, config=config, state_dict=model.state_dict())
            results.setdefault(kind, {})[length] = found(stretched.eval(), length, options.count)
    return results


if __name__ == "__main__":
    for scaling, by_length in main().items():
        print(f"{scaling:8}", *(f"{length}: {shares[0]:.2f}" for length, shares in by_length.items()), sep="  ")
