"""``glmlike quantize``: a checkpoint of any known format, quantized to a folder that loads like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from glmlike.commands.options import AsJson, DryRun, Generation, Quiet, SpecName
from glmlike.commands.printing import print_report

_METHODS = (
    "nf4, nf4-double, fp4, int8 (bitsandbytes); torchao-int8-wo, torchao-int8-dyn, torchao-int4, float8 (torchao); "
    "gguf-q8_0, gguf-q5_1, gguf-q5_0, gguf-q4_1, gguf-q4_0; glm-int8, glm-int4"
)


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="the checkpoint's folder, or its id on the Hub", show_default=False)
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="a new folder; for gguf-…, a new file", show_default=False)
    ],
    method: Annotated[str, typer.Option("--method", "-m", help=_METHODS, show_default=False)],
    skip: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="a part of module names that stay floats as well; may be repeated",
            show_default="embeddings and head stay floats anyway",
        ),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of what stays floats: float32, float16 or bfloat16", show_default="the source's"),
    ] = None,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of SRC on the Hub: a commit, a tag or a branch", show_default="its newest"),
    ] = None,
    generation: Generation = None,
    spec: SpecName = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write SRC quantized to the new folder DST, a matrix at a time; DST loads by AutoModel.from_pretrained.

    DST appears whole or not at all.
    """
    from glmlike.checkpoint.progress import on_terminal
    from glmlike.checkpoint.sources import local_folder
    from glmlike.quantizing import quantize as run

    options: dict[str, Any] = {
        "method": method,
        "skip": skip or (),
        "dtype": dtype,
        "generation": generation,
        "spec": spec,
        "max_shard_size": max_shard_size,
        "dry_run": dry_run,
    }
    done = run(local_folder(source, revision), destination, watch=on_terminal(quiet or as_json), **options)
    if as_json or not quiet:
        print_report("to be quantized" if dry_run else "quantized", done.to_dict(), as_json)
