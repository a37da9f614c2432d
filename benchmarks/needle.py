"""Needles found beyond the trained length, by scaling of rotary positions: examples/needle.py with several seeds."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import report

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import needle as example

TRAINED = 64
LENGTHS = (64, 128, 256, 512)
SCALINGS = ("none", "linear", "dynamic", "yarn", "llama3")


def main(seeds: int = 3, count: int = 512) -> None:
    """Train a decoder for each seed, stretch it, ask it, and write results/needle.json."""
    lengths = [str(length) for length in LENGTHS]
    runs = [
        example.main(
            [*("--seed", str(seed), "--count", str(count)), *("--trained", str(TRAINED), "--lengths"), *lengths]
        )
        for seed in range(seeds)
    ]
    rows: list[dict[str, Any]] = [
        {
            "tokens": length,
            "times the trained length": length // TRAINED,
            **{scaling: _cell([run[scaling][length][0] for run in runs]) for scaling in SCALINGS},
        }
        for length in LENGTHS
    ]
    note = (
        f"Share of needles found, of {count} at each length: median of {seeds} decoders (lowest to highest), each of "
        f"two layers and trained from another seed on texts of up to {TRAINED} tokens, never a longer one; each "
        "scaling is by length over trained length, and nothing is trained after it. Chance is 1 in 48."
    )
    report("needle", rows, note)


def _cell(shares: list[float]) -> str:
    return f"{statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=512, help="needles of each length")
    options = parser.parse_args()
    main(options.seeds, options.count)
