"""``glmlike merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import glmlike
from glmlike.commands.options import (
    FORMATS_HELP,
    AsJson,
    DryRun,
    Generation,
    MaxMemory,
    Quiet,
    Resume,
    SpecName,
    Workers,
    complete_formats,
)
from glmlike.commands.printing import print_plan, print_report


def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="the base's folder, or user/name[@revision] on the Hub", show_default=False
        ),
    ],
    adapter: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER…", help="LoRA adapters, folders or ids, merged in order", show_default=False),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option("--to", help=FORMATS_HELP, show_default="BASE's own", autocompletion=complete_formats),
    ] = None,
    generation: Generation = None,
    spec: SpecName = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    max_memory: MaxMemory = None,
    workers: Workers = None,
    verify: Annotated[str, typer.Option(help="how the result is read back: none or hash")] = "hash",
    force: Annotated[bool, typer.Option("--force", help="merge an adapter once more that BASE holds already")] = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write BASE with LoRA adapters merged into its weights to the new folder DST, without loading the model."""
    from dataclasses import asdict

    from glmlike.checkpoint.progress import on_terminal
    from glmlike.checkpoint.sources import local_adapter, local_folder

    options: dict[str, Any] = {
        "to": to,
        "generation": generation,
        "spec": spec,
        "max_shard_size": max_shard_size,
        "max_memory": max_memory,
        "workers": workers,
        "verify": verify,
        "force": force,
    }
    ends = local_folder(base), [local_adapter(one) for one in adapter], destination
    if dry_run:
        print_plan(glmlike.merge(*ends, dry_run=True, **options).to_dict(), as_json)
        return
    report = asdict(glmlike.merge(*ends, resume=resume, watch=on_terminal(quiet, "merging"), **options))
    if as_json or not quiet:
        print_report("merged", report, as_json)
