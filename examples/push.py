"""Push a model and its tokenizer to the Hub in native layout, whatever layout it was in, and load it back from there.

python examples/push.py user/name --model path/or/hub-id --private     # log in first: hf auth login
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import glmlike  # noqa: F401  (registers the classes)
from glmlike.data import TINY


def main(argv: Sequence[str] | None = None) -> Any:
    """Push, and return the model loaded from the Hub again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="user/name")
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args(argv)

    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model.push_to_hub(options.repo, private=options.private, commit_message="Model in glmlike's native layout")
    tokenizer.push_to_hub(options.repo, commit_message="Tokenizer")
    return AutoModelForCausalLM.from_pretrained(options.repo)


if __name__ == "__main__":
    print(type(main()).__name__)
