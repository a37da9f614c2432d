"""Run every benchmark and rewrite benchmarks/README.md: about three quarters of an hour on two cores."""

from __future__ import annotations

import collator
import convert
import import_time
import load
import loss
import pruning
import quantization
import speed
import tokenization

if __name__ == "__main__":
    for benchmark in (import_time, load, speed, collator, loss, convert, tokenization, quantization, pruning):
        print(f"== {benchmark.__name__}")
        benchmark.main()
