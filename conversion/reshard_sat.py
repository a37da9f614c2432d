"""GLM-130B's rank files cut for another tensor-parallel degree: 8 ranks as published, 4 for four devices.

    python conversion/reshard_sat.py /data/glm-130b-sat /data/glm-130b-sat-tp4 --tensor-parallel 4

The result is a folder that SwissArmyTransformer reads: ``latest``, rank files, model_config.json. The degree must
divide the heads (96), the rows of the vocabulary and the feed-forward. Each rank's file is held in memory while it is
written. int8 and int4 ranks become floating point, since their scales belong to one cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import command

import glmlike


def main(argv: Sequence[str] | None = None) -> glmlike.ConversionReport:
    """Convert and verify; the report. Raises what :func:`command.run` raises."""
    arguments = command.parser(__doc__)
    arguments.add_argument("--tensor-parallel", type=int, required=True, metavar="RANKS", help="rank files to write")
    arguments.add_argument("--spec", help="the decoder where model_config.json is not there, such as glm-130b")
    options = arguments.parse_args(argv)
    return command.run(options, reads=("glm-130b",), to="glm-130b")


if __name__ == "__main__":
    command.start(main)
