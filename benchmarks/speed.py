"""Prefill, decode and training steps of our decoder against transformers' own classes with the same weights."""

from __future__ import annotations

from functools import partial

from common import child, interleaved, median, report

SETUP = """
import time, torch, glmlike
from transformers import (
    Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM,
    LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM,
)
from glmlike.configuration import as_native
torch.manual_seed(0)
torch.set_num_threads(2)
sizes = dict(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=12,
             num_key_value_heads=2, head_dim=64, pad_token_id=0)
families = dict(glm=(GlmConfig, GlmForCausalLM), glm4=(Glm4Config, Glm4ForCausalLM),
                llama=(LlamaConfig, LlamaForCausalLM), qwen2=(Qwen2Config, Qwen2ForCausalLM))
config_class, model_class = families[argument["family"]]
config = config_class(**sizes)
if argument["ours"]:
    config, model_class = as_native(config), glmlike.GlmLikeForCausalLM
model = model_class(config).to(torch.bfloat16).eval()
tokens = torch.randint(1, 32000, (1, 512))
def prefill():
    with torch.no_grad():
        model(tokens, logits_to_keep=1)
def decode():
    model.generate(tokens[:, :16], attention_mask=tokens[:, :16] * 0 + 1, max_new_tokens=32, min_new_tokens=32,
                   do_sample=False, eos_token_id=None)
def train():
    model.train()
    model(tokens, labels=tokens).loss.backward()
    model.zero_grad()
for task in (prefill, decode, train):
    task()
"""
WORK = """
result = {}
for task in (prefill, decode, train):
    times = []
    for _ in range(5):
        started = time.perf_counter()
        task()
        times.append(time.perf_counter() - started)
    result[task.__name__] = sorted(times)[2]
"""


def main(repeats: int = 3) -> None:
    """Measure and write results/speed.json."""
    rows = []
    for family in ("glm", "glm4", "llama", "qwen2"):
        runs = {
            name: partial(child, WORK, setup=SETUP, argument={"family": family, "ours": ours})
            for name, ours in (("theirs", False), ("ours", True))
        }
        measured = interleaved(runs, repeats)
        row: dict[str, object] = {"family": family}
        for task in ("prefill", "decode", "train"):
            seconds = {name: median([run["extra"] for run in found], task) for name, found in measured.items()}
            row[f"{task}: transformers, ms"] = seconds["theirs"] * 1000
            row[f"{task}: ours / theirs"] = seconds["ours"] / seconds["theirs"]
        rows.append(row)
    note = (
        "12-head, 768-wide, 4-layer decoders, bfloat16, 2 threads: prefill 512 tokens, 32 greedy tokens after 16, one "
        f"forward and backward over 512 tokens. Median of 5 in each of {repeats} processes, interleaved."
    )
    report("speed", rows, note)


if __name__ == "__main__":
    main()
