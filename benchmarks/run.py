"""Run every benchmark and rewrite benchmarks/README.md: about ten minutes on two cores."""

from __future__ import annotations

import collator
import import_time
import load
import speed
import tokenization

if __name__ == "__main__":
    for benchmark in (import_time, load, speed, collator, tokenization):
        print(f"== {benchmark.__name__}")
        benchmark.main()
