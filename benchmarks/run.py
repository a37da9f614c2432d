"""Run every benchmark and rewrite benchmarks/README.md: about an hour on two cores."""

from __future__ import annotations

import collator
import convert
import examples
import import_time
import load
import loss
import needle
import pruning
import quantization
import speed
import tokenization

if __name__ == "__main__":
    timed = (import_time, load, speed, collator, loss, convert, tokenization)
    for benchmark in (*timed, quantization, pruning, needle, examples):
        print(f"== {benchmark.__name__}")
        benchmark.main()
