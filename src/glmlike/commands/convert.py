"""``glmlike convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

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


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="the checkpoint's folder, or user/name[@revision] on the Hub", show_default=False
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help=f"{FORMATS_HELP}; or gguf, a file for llama.cpp",
            show_default=False,
            autocompletion=complete_formats,
        ),
    ],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of SRC on the Hub: a commit, a tag or a branch", show_default="its newest"),
    ] = None,
    generation: Generation = None,
    spec: SpecName = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    tensor_parallel: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="with --to glm-130b or meta: the number of rank files to write", show_default="1"),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="round every floating-point tensor to float32, float16 or bfloat16; with --to gguf also q8_0, q5_1, "
            "q5_0, q4_1, q4_0",
            show_default="the source's",
        ),
    ] = None,
    max_memory: MaxMemory = None,
    workers: Workers = None,
    verify: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="roundtrip: SRC made again from the written files is SRC, bit for bit; hash: every tensor reads back "
            "as it was computed; none: nothing is read back or hashed, and an interrupted run cannot be resumed",
            show_default="roundtrip where nothing is rounded or dropped, else hash",
        ),
    ] = None,
    sha256: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--sha256/--no-sha256",
            help="hash SRC's files, into the records, and compare with what the Hub said they are",
            show_default="what the Hub said is believed, files it said nothing of are hashed",
        ),
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write SRC in another format to the new folder DST, every number kept bit for bit; DST appears whole or not.

    Integers of a pre-quantized SRC (ChatGLM's own, GPTQ, AWQ, compressed-tensors) become floats; the report's notes say
    so.
    """
    from dataclasses import asdict

    from glmlike.checkpoint.progress import on_terminal
    from glmlike.checkpoint.sources import local_folder

    folder = local_folder(source, revision)
    options: dict[str, Any] = {
        "to": to,
        "generation": generation,
        "spec": spec,
        "max_shard_size": max_shard_size,
        "tensor_parallel": tensor_parallel,
        "dtype": dtype,
        "max_memory": max_memory,
        "workers": workers,
        "verify": verify,
        "sha256": sha256,
    }
    if dry_run:
        plan = glmlike.convert(folder, destination, dry_run=True, **options)
        print_plan(plan.to_dict(), as_json)
        return
    report = asdict(glmlike.convert(folder, destination, resume=resume, watch=on_terminal(quiet), **options))
    if as_json or not quiet:
        print_report("converted", report, as_json)
