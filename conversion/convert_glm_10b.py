"""GLM-10B, GLM-2B, GLM-515M, GLM-large and the Chinese ones as glmlike's own layout.

    python conversion/convert_glm_10b.py THUDM/glm-10b glm-10b-native

Their config says model_type ``glm``, which today is the name of another decoder of transformers. The result says
``glmlike``, and the ids of blanks and of the start of a piece, which the original config leaves out, are in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    options = arguments.parse_args(argv)
    return command.run(options, reads=("glm-10b",), to="glmlike")


if __name__ == "__main__":
    command.start(main)
