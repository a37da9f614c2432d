"""What commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json
from typing import Any


def print_report(title: str, report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    print_table(title, {name: short(value) for name, value in report.items()})


def print_table(title: str, rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


def short(value: Any) -> str:
    """One line for a person: thousands grouped, long lists cut, seconds rounded."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(item) for item in value[:4])
        return f"{shown}, … ({len(value)} in all)" if len(value) > 4 else shown or "none"
    if isinstance(value, dict):
        return ", ".join(f"{count} x {name}" for name, count in value.items())
    return str(value)


def print_plan(plan: dict[str, Any], as_json: bool) -> None:
    """The plan of a conversion or a merge: a line a step and a line a file, then its totals."""
    if as_json:
        print(json.dumps(plan, indent=2, ensure_ascii=False))
        return
    for step in plan["steps"]:
        shape = " x ".join(map(str, step["shape"])) or "scalar"
        print(f"{step['file']}: {step['name']} {step['dtype']} {shape} <- {', '.join(step['sources'])} [{step['how']}]")
    print(f"{plan['destination']}:")
    for part in plan["contents"]:
        size = "" if part["bytes"] is None else f" ({part['bytes']:,} bytes)"
        print(f"{part['file']}{size} <- {part['origin']}{'' if part['certain'] else ', if it has one'}")
    for name, why in plan["left_behind"].items():
        print(f"not copied: {name} ({why})")
    apart = ("steps", "memory", "identity", "merged", "contents", "left_behind", "travels")
    facts = {name: value for name, value in plan.items() if name not in apart} | plan["travels"]
    facts["merged"] = [f"{one['name']} ({one['sha256'][:12]}…)" for one in plan["merged"]]
    facts |= {f"memory {name}": value for name, value in plan["memory"].items()}
    print_table("plan", {name: short(value) for name, value in facts.items()})
