"""Any checkpoint that glmlike can read, as its own layout: separate q, k, v and gate, up, one name each.

    python conversion/convert_to_native.py THUDM/chatglm2-6b chatglm2-6b-native
    python conversion/convert_to_native.py /data/some-checkpoint /data/native

The format is found in the fields of config.json and the shapes of the tensors, never in a name. The result loads with
``AutoModelForCausalLM`` once glmlike is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--generation", choices=("chatglm2", "chatglm3"), help="what rope_ratio means")
    arguments.add_argument("--spec", help="the decoder of rank files that do not say it, such as glm-130b")
    options = arguments.parse_args(argv)
    return command.run(options, to="glmlike")


if __name__ == "__main__":
    command.start(main)
