"""``glmlike verify``."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

import glmlike
from glmlike.commands.options import AsJson, Generation, Source, SpecName
from glmlike.commands.printing import print_report
from glmlike.errors import GlmLikeError


def verify(
    left: Source,
    right: Source,
    logits: Annotated[
        bool, typer.Option("--logits", help="run both decoders, a layer at a time, and compare what they compute")
    ] = False,
    layers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="with --logits: the first so many layers only", show_default="all, and the head"),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="with --logits: the difference allowed to a layer")] = 1e-4,
    generation: Generation = None,
    spec: SpecName = None,
    as_json: AsJson = False,
) -> None:
    """Check that two folders, of the same or of different formats, hold the same decoder and the same numbers.

    With --logits, that they compute the same: for folders whose numbers were rounded, quantized or trained on.
    """
    from glmlike.checkpoint.sources import local_folder

    mine, theirs = local_folder(left), local_folder(right)
    if not logits:
        count = glmlike.verify(mine, theirs, generation=generation, spec=spec)  # type: ignore[arg-type]
        said = f"equal: {count} tensors of {left} and {right} have the same dtype, shape and bytes"
        print(json.dumps({"equal": True, "tensors": count}) if as_json else said)
        return
    from dataclasses import asdict

    from glmlike.parity import parity

    report = parity(mine, theirs, layers=layers, tolerance=tolerance, generation=generation, spec=spec)  # type: ignore[arg-type]
    print_report("computed", {"equal": report.equal, **asdict(report)}, as_json)
    if not report.equal:
        raise GlmLikeError(
            f"layer {report.first_divergent_layer} of {right} is the first that differs from {left} by more than "
            f"{tolerance:g}: convert again, or pass the --tolerance that the rounding explains."
        )
