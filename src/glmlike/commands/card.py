"""``glmlike card``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from glmlike.commands.options import AsJson


def card(
    folder: Annotated[Path, typer.Argument(help="a fine-tuned model's or an adapter's folder", show_default=False)],
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="its title", show_default="the folder's name"),
    ] = None,
    license: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the Hub's identifier, or other"),
    ] = None,
    license_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="with --license other"),
    ] = None,
    license_link: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="with --license other: a file or an address"),
    ] = None,
    language: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="an ISO 639 code; may be repeated"),
    ] = None,
    base_model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the Hub id of the model this was made from", show_default="what the folder says"),
    ] = None,
    dataset: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="the Hub id of a data set; may be repeated"),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: what it was trained on"),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: how it was trained"),
    ] = None,
    hardware: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="what it was trained on, and how long"),
    ] = None,
    use: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: what it is for, and what not"),
    ] = None,
    evaluated_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the set of the Trainer's evaluation"),
    ] = None,
    variant: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="a quantized variant: a folder, or a .gguf file; may be repeated"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="README.md is there: add to it, your text kept")] = False,
    as_json: AsJson = False,
) -> None:
    """Write FOLDER's README.md, a model card, from what training, evaluation and conversion left in it."""
    from glmlike.cards import About, check_card, write_card

    about = About(
        name=name,
        license=license,
        license_name=license_name,
        license_link=license_link,
        language=language or (),
        base_model=base_model,
        datasets=dataset or (),
        data=data,
        recipe=recipe,
        hardware=hardware,
        use=use,
        evaluated_on=evaluated_on,
        variants=variant or (),
    )
    written = write_card(folder, about, force=force)
    problems = check_card(written[0].read_text(encoding="utf8"))
    if as_json:
        print(json.dumps({"written": [str(path) for path in written], "to_do": problems}, indent=2))
        return
    print("\n".join(f"wrote {path}" for path in written))
    for problem in problems:
        print(f"to do: {problem}")
