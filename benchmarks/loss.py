"""The training loss of a large vocabulary: seconds and memory of ours, of the plain one and of torch's chunked one."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from common import child, interleaved, median, report

_SETUP = """
import os, time, torch
import torch.nn.functional as F
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
torch.set_num_threads(1)
from glmlike.loss import linear_cross_entropy
kind, dtype, frozen, T, H, V = argument
torch.manual_seed(0)
hidden = torch.randn(T, H).to(getattr(torch, dtype)).requires_grad_()
weight = torch.empty(V, H, dtype=hidden.dtype)
for rows in weight.split(2048):
    rows.copy_(0.02 * torch.randn(rows.shape))
weight.requires_grad_(not frozen)
labels = torch.randint(V, (T,))
def loss(hidden, weight, labels):
    if kind == "glmlike":
        return linear_cross_entropy(hidden, weight, labels)
    if kind == "torch":
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
        return F.linear_cross_entropy(hidden, weight, labels, options=options)
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)
loss(hidden[:8], weight[:64], labels[:8] % 64).backward()
hidden.grad = weight.grad = None
def status(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))
before, started = status("VmRSS"), time.process_time()
"""
_WORK = """
loss(hidden, weight, labels).backward()
grads = sum(x.numel() * x.element_size() for x in (hidden.grad, weight.grad) if x is not None) / 2**20
result = [time.process_time() - started, status("VmHWM") - before - grads]
"""
KINDS = {"plain": "plain", "glmlike": "glmlike", "torch": "torch, chunks of 128"}
VOCABULARY = 151_936
SIZES = ((1024, 896, 3), (1024, 2048, 3), (4096, 896, 1))  # tokens, hidden, runs


def _rows(tokens: int, hidden: int, repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for dtype, frozen in (("bfloat16", False), ("float32", False), ("bfloat16", True)):
        case = (dtype, frozen, tokens, hidden, VOCABULARY)
        runs = {kind: functools.partial(child, _WORK, setup=_SETUP, argument=[kind, *case]) for kind in KINDS}
        measured = {
            kind: [{"s": row["extra"][0], "mib": row["extra"][1]} for row in found]
            for kind, found in interleaved(runs, repeats).items()
        }
        plain = {field: median(measured["plain"], field) for field in ("s", "mib")}
        rows += [
            {
                "tokens": tokens,
                "hidden": hidden,
                "type": dtype + (", frozen head" if frozen else ""),
                "loss": KINDS[kind],
                "CPU s": median(found, "s"),
                "to plain": median(found, "s") / plain["s"],
                "extra peak, MiB": median(found, "mib"),
                "share of plain": median(found, "mib") / plain["mib"],
            }
            for kind, found in measured.items()
        ]
    return rows


def main(sizes: Any = SIZES, beside: str = "nothing else") -> None:
    """Measure and write results/loss.json."""
    rows = [row for size in sizes for row in _rows(*size)]
    counts = ", ".join(f"{repeats} at {tokens} x {hidden}" for tokens, hidden, repeats in sizes)
    note = (
        f"{VOCABULARY} rows of vocabulary, forward and backward, processor seconds of one thread; extra peak is beyond "
        f"inputs and gradients. Median of new processes ({counts}), interleaved; beside it ran {beside}."
    )
    report("loss", rows, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("TOKENS", "HIDDEN", "RUNS"))
    parser.add_argument("--beside", default="nothing else", help="what else the machine was doing, for the note")
    options = parser.parse_args()
    main(options.size or SIZES, options.beside)
