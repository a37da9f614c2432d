"""ChatGLM2, ChatGLM3 or GLM-4-9B as transformers' own ``glm``: afterwards neither remote code nor glmlike is needed.

    python conversion/convert_chatglm_to_glm.py glm-4-9b-chat glm-4-9b-chat-hf

The two layouts say the same decoder: the fused q, k, v matrix is cut in three, every number keeps its bits. vLLM,
llama.cpp's converter and everything else that knows ``GlmForCausalLM`` can read the result. Tokenizer files are copied
as they are. ChatGLM2-32k divides positions by rope_ratio where ChatGLM3 multiplies the base; where config.json does not
say which it is, pass --generation chatglm2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert, then compare both folders tensor by tensor; the report of the conversion.

    Raises:
        ConfigError, CheckpointError: the source is not what it says it is, or the destination exists.
        CannotExpressError: the source is no decoder that ``glm`` can say.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the ChatGLM folder: config.json and weights, .bin or .safetensors")
    parser.add_argument("destination", type=Path, help="a new folder")
    parser.add_argument("--generation", choices=("chatglm2", "chatglm3"))
    parser.add_argument("--max-shard-size", default="5GB")
    options = parser.parse_args(argv)

    report = glmlike.convert(
        options.source,
        options.destination,
        to="glm",
        generation=options.generation,
        max_shard_size=options.max_shard_size,
    )
    glmlike.verify(options.source, options.destination, generation=options.generation)
    return report


if __name__ == "__main__":
    try:
        done = main()
    except glmlike.GlmLikeError as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{done.destination}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB, {done.seconds:.1f} s, verified")
