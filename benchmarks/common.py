"""Measuring: each run is a child process, each figure a median, each comparison a ratio within one run."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "transformers", "safetensors", "peft")

# Runs `work()` of a script in a fresh process; reports its own seconds and the process's peak resident memory.
_CHILD = """
import json, sys, time
source, argument = sys.argv[1], json.loads(sys.argv[2])
scope = {{"argument": argument}}
exec(compile({setup!r}, "setup", "exec"), scope)
started = time.perf_counter()
exec(compile(source, "work", "exec"), scope)
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({{"seconds": seconds, "peak_mib": peak / 1024, "extra": scope.get("result")}}))
"""


def child(work: str, *, setup: str = "", argument: Any = None) -> dict[str, Any]:
    """Run ``work`` after ``setup`` in a new process: its seconds, the peak RSS in MiB, and its ``result`` variable."""
    code = _CHILD.format(setup=setup)
    command = [sys.executable, "-W", "ignore", "-c", code, work, json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a measured process failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def interleaved(runs: dict[str, Any], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Call each of ``runs`` in turn, ``repeats`` times over, so that drift of the machine hits all alike."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            measured[name].append(run())
    return measured


def median(rows: list[dict[str, Any]], field: str) -> float:
    """The median of one field over the repeats."""
    return float(statistics.median(row[field] for row in rows))


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor count and model, memory, Python and package versions."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE)),
        "cpu": cpu[1] if cpu else platform.processor(),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def report(name: str, rows: list[dict[str, Any]], note: str) -> None:
    """Write ``results/NAME.json`` and the table of the same rows between NAME's marks in README.md."""
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "note": note, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    readme = HERE / "README.md"
    block = f"<!-- {name} -->\n{table(rows)}\n\n{note}\n<!-- /{name} -->"
    text = readme.read_text(encoding="utf8")
    text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)
    if not found:
        raise RuntimeError(f"benchmarks/README.md has no place for {name!r}: add <!-- {name} --> and <!-- /{name} -->.")
    readme.write_text(text, encoding="utf8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table; floats to three significant figures."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
