"""The training loss of a large vocabulary: seconds and memory of ours, of the plain one and of torch's chunked one."""

from __future__ import annotations

import argparse
import functools
import json
from typing import Any

from common import RESULTS, child, interleaved, median, report

_SETUP = """
import os, time, torch
import torch.nn.functional as F
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
torch.set_num_threads(1)
from glmlike.loss import linear_cross_entropy
kind, dtype, frozen, compiled, T, H, V = argument
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
if compiled:
    loss = torch.compile(loss, fullgraph=True)
    loss(hidden, weight, labels).backward()
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew: compiling is no part of it
else:
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
TYPES = {  # dtype, frozen head, compiled
    "bfloat16": ("bfloat16", False, False),
    "float32": ("float32", False, False),
    "bfloat16, frozen head": ("bfloat16", True, False),
    "bfloat16, compiled": ("bfloat16", False, True),
    "float32, compiled": ("float32", False, True),
    "bfloat16, frozen head, compiled": ("bfloat16", True, True),
}
VOCABULARY = 151_936
SIZES = ((1024, 896, 3), (1024, 2048, 3), (4096, 896, 1), (4096, 2048, 1))  # tokens, hidden, runs
CASE = ("tokens", "hidden", "type", "loss")
NOTE = (
    f"{VOCABULARY} rows of vocabulary, forward and backward, processor seconds of one thread; extra peak is beyond "
    "inputs and gradients. Median of new processes, interleaved within a type, with what ran beside them on the two "
    "cores; compiled (by inductor) is compared with compiled, and compiling is not counted."
)


def _rows(tokens: int, hidden: int, repeats: int, name: str, kinds: list[str], beside: str) -> list[dict[str, Any]]:
    case = (*TYPES[name], tokens, hidden, VOCABULARY)
    runs = {kind: functools.partial(child, _WORK, setup=_SETUP, argument=[kind, *case]) for kind in kinds}
    measured = {
        kind: [{"s": row["extra"][0], "mib": row["extra"][1]} for row in found]
        for kind, found in interleaved(runs, repeats).items()
    }
    plain = {field: median(measured["plain"], field) for field in ("s", "mib")}
    return [
        {
            **dict(zip(CASE, (tokens, hidden, name, KINDS[kind]), strict=True)),
            "CPU s": median(found, "s"),
            "to plain": median(found, "s") / plain["s"],
            "extra peak, MiB": median(found, "mib"),
            "share of plain": median(found, "mib") / plain["mib"],
            "runs": repeats,
            "beside": beside,
        }
        for kind, found in measured.items()
    ]


def _among_earlier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows``, and those of results/loss.json of other cases, in the order of the tables above."""
    file = RESULTS / "loss.json"
    earlier = json.loads(file.read_text(encoding="utf8"))["rows"] if file.exists() else []
    found = {tuple(row[field] for field in CASE): row for row in [*earlier, *rows]}
    types, losses = list(TYPES), list(KINDS.values())
    return sorted(
        found.values(),
        key=lambda row: (row["tokens"], row["hidden"], types.index(row["type"]), losses.index(row["loss"])),
    )


def main(sizes: Any = SIZES, types: Any = None, beside: str = "nothing", losses: Any = None) -> None:
    """Measure, and write results/loss.json, where cases that are not measured again keep their rows.

    By default what takes minutes a run is left out: compiled ones of the wider heads, torch's loss on the largest size.
    """
    for tokens, hidden, repeats in sizes:
        for name in types or [name for name in TYPES if hidden < 1024 or not TYPES[name][2]]:
            beyond = {"torch"} if TYPES[name][2] or tokens * hidden > 2**22 else set()
            kinds = [kind for kind in KINDS if kind == "plain" or kind in (losses or KINDS.keys() - beyond)]
            report("loss", _among_earlier(_rows(tokens, hidden, repeats, name, kinds, beside)), NOTE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("TOKENS", "HIDDEN", "RUNS"))
    parser.add_argument("--type", choices=TYPES, action="append", help="may be repeated")
    parser.add_argument("--loss", choices=KINDS, action="append", help="beside the plain one; may be repeated")
    parser.add_argument("--beside", default="nothing", help="what else the machine was doing")
    options = parser.parse_args()
    main(options.size or SIZES, options.type, options.beside, options.loss)
