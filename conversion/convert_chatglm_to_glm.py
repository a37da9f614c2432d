"""ChatGLM2, ChatGLM3 or GLM-4-9B as transformers' own ``glm``: afterwards neither remote code nor glmlike is needed.

    python conversion/convert_chatglm_to_glm.py THUDM/glm-4-9b-chat glm-4-9b-chat-hf

The two layouts say the same decoder: the fused q, k, v matrix is cut in three, every number keeps its bits. vLLM,
llama.cpp's converter and everything else that knows ``GlmForCausalLM`` can read the result. Tokenizer files are copied
as they are. ChatGLM2-32k divides positions by rope_ratio where ChatGLM3 multiplies the base; where config.json does not
say which it is, pass --generation chatglm2 (a recipe says it as well).
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--generation", choices=("chatglm2", "chatglm3"), help="what rope_ratio means")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("chatglm",), to="glm")


if __name__ == "__main__":
    command.start(main)
