"""GLM-130B's SwissArmyTransformer folder, of any tensor-parallel degree, as one native checkpoint.

    python conversion/convert_sat_to_glmlike.py /data/glm-130b-sat /data/glm-130b

The source is the folder with the file ``latest``; the ranks' pieces are joined, int8 and int4 ranks become floating
point. One tensor is held at a time. The decoder is read from model_config.json, else from --spec, else from the shapes.
Verifying reads both folders once more: 2 x 257 GB for the published one; --no-verify leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--spec", help="the decoder where model_config.json is not there, such as glm-130b")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("glm-130b",), to="glmlike")


if __name__ == "__main__":
    command.start(main)
