"""What the package brings along: a small trained checkpoint, and a public-domain text to fine-tune it on."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
"""The embedded model's folder, in native layout with its tokenizer; ``from_pretrained(TINY)`` loads it."""

CONSTITUTION = Path(__file__).parent / "constitution.txt"
"""The United States' Declaration of Independence and Constitution (public domain), UTF-8."""
