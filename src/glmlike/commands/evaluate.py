"""``glmlike eval``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from glmlike.commands.options import AsJson, Model, Rope
from glmlike.errors import GlmLikeError
from glmlike.evaluation import FOR_ALL, FOR_BLANKS


def _complete(incomplete: str) -> list[str]:
    return [task for task in (*FOR_ALL, *FOR_BLANKS) if task.startswith(incomplete)]


def eval_(
    model: Model,
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--tasks",
            help="names, separated by commas or given again: ours, lm-eval's, or of --include-path",
            show_default="ours",
            autocompletion=_complete,
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="the folder for results_….json", show_default="FOLDER/eval; of a Hub id: none"),
    ] = None,
    limit: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="so many rows of a task, or a share below 1, for a trial", show_default="all"),
    ] = None,
    num_fewshot: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="examples before a question", show_default="the task's"),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="rows at a time, or auto")] = "8",
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, cuda:1, mps …", show_default="a GPU if there is one"),
    ] = None,
    model_args: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="arguments of lm-eval's hf model: dtype=float16,peft=FOLDER …"),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="put questions into the chat template")
    ] = False,
    include_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="a folder with task files of your own"),
    ] = None,
    rope: Rope = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model with lm-eval; without --tasks on small texts of ours, offline: bits per byte, cloze, blanks.

    The results are written where `glmlike card` finds them; those of --rope are of another decoder, and it passes over
    them.
    """
    named = [name for given in tasks or () for name in given.split(",") if name]
    place = out if out is not None else Path(model) / "eval" if Path(model).is_dir() else None
    if place is not None:
        _require_writable(place)
    from glmlike.evaluation import evaluate, scores, write_results

    results = evaluate(
        model,
        named,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=_batch_size(batch_size),
        device=device,
        model_args=_pairs(model_args),
        chat_template=chat_template,
        include_path=include_path,
        rope=rope,
    )
    written = None if place is None else write_results(results, place)
    found = scores(results)
    if as_json:
        rows = [dict(zip(("task", "metric", "value", "stderr"), score, strict=True)) for score in found]
        print(json.dumps({"scores": rows, "file": None if written is None else str(written)}, indent=2))
        return
    _print_scores(found)
    if written is not None:
        print(f"wrote {written}")


def _require_writable(place: Path) -> None:
    """Say so before the model runs for an hour."""
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise GlmLikeError(f"{place}: cannot be written. Pass --out FOLDER for the results.")


def _batch_size(given: str) -> int | str:
    if given == "auto":
        return given
    if not given.isdigit() or given == "0":
        raise GlmLikeError(f"--batch-size {given}: expected a number of rows, or auto.")
    return int(given)


def _pairs(given: str | None) -> dict[str, Any]:
    pairs = [part.partition("=") for part in (given or "").split(",") if part]
    for name, sign, _ in pairs:
        if not sign or not name:
            raise GlmLikeError(f"--model-args {given}: expected name=value, separated by commas.")
    words = {"true": True, "false": False, "none": None}
    return {name: words.get(value.lower(), value) for name, _, value in pairs}


def _print_scores(found: list[tuple[str, str, float, float | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric")
    table.add_column("value", justify="right")
    table.add_column("±", justify="right")
    for task, metric, value, error in found:
        table.add_row(task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    Console().print(table)
