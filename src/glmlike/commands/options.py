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
Source = Annotated[
    str, typer.Argument(help="a checkpoint's folder, or user/name[@revision] on the Hub", show_default=False)
]
# typer reads these annotations at run time, where Python 3.10 needs Optional.
MaxMemory = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="the most memory that this process and those it starts may use together, such as 2GB", show_default="1GB"
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="threads that read, hash and write", show_default="one a processor, at most 4", min=1),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and write nothing")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, no table")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
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
Rope = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="stretch positions for longer texts: KIND:FACTOR, such as yarn:4", show_default="as trained"),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="a model's folder, or its id on the Hub", show_default=False)
]
