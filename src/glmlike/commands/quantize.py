"""``glmlike quantize``: a checkpoint of any known format, quantized to a folder that loads like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

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
    generation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="chatglm2 or chatglm3: what rope_ratio means, where no field of config.json says"),
    ] = None,
    spec: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the decoder of rank files that have no model_config.json or params.json"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and write nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, no table")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
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
        _print("to be quantized" if dry_run else "quantized", done.to_dict(), as_json)


def _print(title: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _said(value))
    Console().print(table)


def _said(value: Any) -> str:
    """One line for a person."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {content}" for name, content in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
