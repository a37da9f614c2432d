"""``glmlike demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def demo(
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="keep what the demo writes in this new folder", show_default="a temporary folder"),
    ] = None,
) -> None:
    """Load the embedded model, generate, stream, fine-tune a LoRA adapter, save, reload, convert there and back."""
    from glmlike.demo import run

    run(out)
