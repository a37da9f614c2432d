"""``glmlike doctor``."""

from __future__ import annotations

import json
from itertools import groupby

import typer

from glmlike.commands.options import AsJson
from glmlike.doctor import Finding, examine, to_dict

_MARKS = {"ok": "[green]ok[/]", "absent": "[dim]—[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, optional packages and what they are for, processors, memory, disk, Hub login.

    Nothing is changed and no network is used. Exit code 1 if something keeps glmlike from working.
    """
    findings = list(examine())
    if as_json:
        print(json.dumps(to_dict(findings), indent=2))
    else:
        _print(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for group, members in groupby(findings, key=lambda finding: finding.group):
        table = Table(title=group, title_justify="left", show_header=False)
        for finding in members:
            table.add_row(_MARKS[finding.status], *map(escape, (finding.name, finding.found, finding.advice)))
        console.print(table)
