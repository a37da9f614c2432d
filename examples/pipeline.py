"""A text-generation pipeline over a folder or Hub id: the embedded model, unless you name another.

python examples/pipeline.py "In the beginning" --model path/or/hub-id
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers import pipeline

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import TINY


def main(argv: Sequence[str] | None = None) -> str:
    """Continue the prompt; the text, prompt included."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="In the beginning God")
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args(argv)

    generate = pipeline("text-generation", model=options.model)
    (answer,) = generate(options.prompt, max_new_tokens=options.tokens, do_sample=False)
    return str(answer["generated_text"])


if __name__ == "__main__":
    print(main())
