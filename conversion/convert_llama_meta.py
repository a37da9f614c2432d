"""Meta's own LLaMA files (consolidated.NN.pth and params.json, any number of ranks) as transformers' ``llama``.

    python conversion/convert_llama_meta.py Llama-3.1-8B/original Llama-3.1-8B-hf --spec llama-3.1-8b

Ranks are joined, and the rows of q and k are put in the order of transformers' rotation. tokenizer.model is copied as
it is: for tokenizer.json, take the one of the same model's repository. Without params.json pass --spec.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--spec", help="the decoder by name, such as llama-3-8b")
    arguments.add_argument("--to", choices=("llama", "glmlike"), default="llama")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("meta",), to=options.to)


if __name__ == "__main__":
    command.start(main)
