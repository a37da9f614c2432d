"""``glmlike push``."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer

from glmlike.commands.options import FORMATS_HELP, AsJson, Folder, Generation, SpecName, complete_formats
from glmlike.commands.printing import print_table, short


def _complete(incomplete: str) -> list[str]:
    formats = [name for name in complete_formats(incomplete) if name != "gguf"]
    return [*formats, *(["remote-code"] if "remote-code".startswith(incomplete) else [])]


def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="the repository on the Hub", show_default=False)],
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--as",
            help=f"{FORMATS_HELP}; or remote-code: native, and loadable without glmlike",
            show_default="as it is",
            autocompletion=_complete,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="create the repository private")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the branch to push to; created if it is not there", show_default="main"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded, and stop")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="insist on a tokenizer")] = True,
    generation: Generation = None,
    spec: SpecName = None,
    as_json: AsJson = False,
) -> None:
    """Push FOLDER to the Hub as one commit, converted first where --as names another format; show what goes there."""
    from glmlike.push import prepared, send

    options = {"to": to, "private": private, "revision": revision, "tokenizer": tokenizer}
    with prepared(folder, repo, **options, generation=generation, spec=spec) as upload:  # type: ignore[arg-type]
        if not as_json:
            _print_upload(upload.facts())
        done = (upload if dry_run else send(upload)).facts()
    if as_json:
        print(json.dumps(done, indent=2))
    elif not dry_run:
        print(f"{'pushed' if done['changed'] else 'nothing had changed'}: {done['url']}")


def _print_upload(facts: dict[str, Any]) -> None:
    said = ("target", "revision", "private", "found_format", "format", "bytes", "left_out")
    files = "\n".join(f"{name}: {size:,}" for name, size in facts["files"].items())
    print_table("to be pushed", {name: short(facts[name]) for name in said} | {"files": files})
    for note in facts["notes"]:
        print(f"note: {note}")
