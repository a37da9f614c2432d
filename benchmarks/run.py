"""Run every benchmark and rewrite benchmarks/README.md: about twenty minutes on two cores."""

from __future__ import annotations

import collator
import convert
import import_time
import load
import speed

if __name__ == "__main__":
    for benchmark in (import_time, load, speed, collator, convert):
        print(f"== {benchmark.__name__}")
        benchmark.main()
