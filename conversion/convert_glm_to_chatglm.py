"""transformers' own ``glm`` or ``glm4`` as ChatGLM's remote-code layout, or as glmlike's own.

    python conversion/convert_glm_to_chatglm.py glm-4-9b-chat-hf glm-4-9b-chat-again
    python conversion/convert_glm_to_chatglm.py THUDM/GLM-4-9B-0414 glm-4-9b-0414-native --to glmlike

The way back of convert_chatglm_to_glm.py, for tools that know only the older layout (serving engines of 2023, fastllm).
It has no place for the sandwich norms of GLM-4-0414 and GLM-Z1, nor for GLM-Edge's rotation of whole heads: those go to
glmlike's own layout alone, and are refused in a sentence otherwise. No code is written: the tools that execute a
repository's modeling_chatglm.py need the original's beside the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--to", choices=("chatglm", "glmlike"), default="chatglm")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("glm", "glm4"), to=options.to)


if __name__ == "__main__":
    command.start(main)
