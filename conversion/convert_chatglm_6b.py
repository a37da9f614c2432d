"""ChatGLM-6B, any version: v1.0 becomes v1.1's rows and ids, or either becomes glmlike's own layout.

    python conversion/convert_chatglm_6b.py chatglm-6b-v1.0 chatglm-6b-rows-of-v1.1 --recipe chatglm-6b-v1.0
    python conversion/convert_chatglm_6b.py THUDM/chatglm-6b chatglm-6b-native --to glmlike

v1.0 (March 2023) begins both tables with 20000 rows of image tokens. They are left out, every id is 20000 less, and the
token ids of config.json become v1.1's; the weights stay v1.0's. The vocabulary does not convert: put ice_text.model and
tokenizer_config.json of v1.1 in the place of the copies. int8 and int4 files become floating point.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--to", choices=("chatglm-6b", "glmlike"), default="chatglm-6b")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("chatglm-6b",), to=options.to)


if __name__ == "__main__":
    command.start(main)
