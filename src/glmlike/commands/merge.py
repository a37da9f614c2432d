"""``glmlike merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import glmlike
from glmlike.commands.options import FORMATS_HELP, AsJson, Generation, SpecName, complete_formats
from glmlike.commands.printing import print_report


def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="the base model's folder", show_default=False)],
    adapter: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER…", help="LoRA adapters, merged in this order", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option("--to", help=FORMATS_HELP, show_default="BASE's own", autocompletion=complete_formats),
    ] = None,
    generation: Generation = None,
    spec: SpecName = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="merge an adapter once more that BASE holds already")] = False,
    as_json: AsJson = False,
) -> None:
    """Write BASE with LoRA adapters merged into its weights to the new folder DST, without loading the model."""
    from dataclasses import asdict

    report = glmlike.merge(
        base,
        adapter,
        destination,
        to=to,  # type: ignore[arg-type]
        generation=generation,  # type: ignore[arg-type]
        spec=spec,
        max_shard_size=max_shard_size,
        force=force,
    )
    print_report("merged", asdict(report), as_json)
