"""``glmlike convert-adapter``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

import glmlike
from glmlike.commands.options import FORMATS_HELP, AsJson, Generation, complete_formats
from glmlike.commands.printing import print_report


def convert_adapter(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="a LoRA adapter's folder, or user/name[@revision]", show_default=False),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[str, typer.Option("--to", help=FORMATS_HELP, show_default=False, autocompletion=complete_formats)],
    base: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the base's folder or id (its config.json is read)", show_default="what the adapter names"),
    ] = None,
    base_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="what the new adapter names as its base", show_default="as before"),
    ] = None,
    generation: Generation = None,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter for the modules of another format, exactly: fused query_key_value to q, k, v and back."""
    from dataclasses import asdict

    from glmlike.checkpoint.sources import local_adapter, local_config

    report = glmlike.convert_adapter(
        local_adapter(source),
        destination,
        to=to,  # type: ignore[arg-type]
        base=None if base is None else local_config(base),
        base_name=base_name,
        generation=generation,  # type: ignore[arg-type]
    )
    print_report("converted", asdict(report), as_json)
