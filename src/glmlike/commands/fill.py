"""``glmlike fill``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from glmlike.commands.options import AsJson


def fill(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT…", help="texts with [MASK], [sMASK] or [gMASK]", show_default=False)
    ],
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="the folder of a model and its tokenizer", show_default="the embedded model"),
    ] = None,
    order: Annotated[str, typer.Option(help="left_to_right or independent")] = "left_to_right",
    max_new_tokens: Annotated[int, typer.Option(help="tokens of a piece at most", min=1)] = 64,
    num_beams: Annotated[int, typer.Option(help="beams of the search; 1 is greedy", min=1)] = 1,
    append_gmask: Annotated[bool, typer.Option(help="continue a text that has no blank")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill the blanks of each TEXT, and show what was put there."""
    from glmlike.commands.models import load
    from glmlike.data import TINY
    from glmlike.infilling import fill as fill_blanks

    results = fill_blanks(  # type: ignore[call-overload]
        *load(str(TINY if model is None else model), dtype="float32"),
        texts,
        order=order,
        append_gmask=append_gmask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
    )
    if as_json:
        print(json.dumps([result.to_dict() for result in results], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from glmlike.demo import marked

    for result in results:
        Console(soft_wrap=True).print(marked(result.filled_text, [span.span for span in result.spans]))
