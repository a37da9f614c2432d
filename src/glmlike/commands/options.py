"""Arguments and options that several commands take, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from glmlike.hub_json import FORMATS

FORMATS_HELP = ", ".join(FORMATS)


def complete_formats(incomplete: str) -> list[str]:
    """What a shell offers after --to."""
    return [name for name in (*FORMATS, "gguf") if name.startswith(incomplete)]


Folder = Annotated[Path, typer.Argument(help="a checkpoint's folder, in any known format", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
# typer reads these annotations at run time, where Python 3.10 needs Optional.
Generation = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--generation", help="chatglm2 or chatglm3: what rope_ratio means, where no field of config.json says"
    ),
]

SpecName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--spec", help="the decoder of rank files that have no model_config.json or params.json"),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="a model's folder, or its id on the Hub", show_default=False)
]
