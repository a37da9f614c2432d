"""STAND-IN for the integrator to replace: a deterministic mixed corpus from the standard library and random unicode."""

from __future__ import annotations

import random
from pathlib import Path


def mixed_corpus(size: int, seed: int) -> list[str]:
    """Texts of ``size`` characters in all: code and prose, Chinese, emoji, control characters, random unicode."""
    rng = random.Random(seed)
    sources = sorted(Path(random.__file__).parent.glob("*.py"))
    texts: list[str] = []
    left = size
    while left > 0:
        kind = rng.random()
        if kind < 0.5:
            whole = rng.choice(sources).read_text(encoding="utf8", errors="replace")
            start = rng.randrange(max(len(whole) - 400, 1))
            text = whole[start : start + rng.randint(1, 800)]
        elif kind < 0.8:
            text = "".join(
                rng.choice("的一是在不了有和人这中大为上个国我以要他，。！？ \nabc１２")
                for _ in range(rng.randint(1, 200))
            )
        else:
            ranges = ((0, 0x2FFF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 32))
            text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 80)))
        texts.append(text)
        left -= len(text)
    return texts
