"""Converting a folder: memory against the size of the model, and speed against `cp` and transformers' load and save.

The source is a ChatGLM-layout folder, the target transformers' ``glm``. Sizes of the first table are sparse files: a
hole is read as zeros and hashed as any other bytes. The second table is of real bytes on a file system in memory, so
that it measures the programs and not the disk; `cp` copies the same folder. The third is the same on a disk, where
both end with the bytes on it. The fourth is of a file system that shares blocks between files.

``python benchmarks/convert.py memory``, ``speed`` or ``disk`` measures one of them; ``sharing FOLDER`` the fourth, in a
folder on such a file system (XFS, Btrfs).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, child, interleaved, median, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from big_files import write_big

WIDE = {"hidden": 4096, "inner": 13_696, "vocab": 65_024}
LAYERS = (2, 8, 24, 48, 95)
BOUND = 200  # MB
DEFAULT = "glmlike, default options, a download"
LOCAL = "glmlike, default options, files of no download"
THEIRS = "transformers, load and save (glm to glm)"
CONVERT = """
import shutil
from glmlike import convert
report = convert(argument["source"], argument["target"], to="glm", **argument["options"])
result = report.bytes
"""
TRANSFORMERS = """
model = GlmForCausalLM.from_pretrained(argument["source"], dtype=torch.bfloat16)
model.save_pretrained(argument["target"])
"""
SETUP_TRANSFORMERS = "import torch\nfrom transformers import GlmForCausalLM"


def _run(work: str, source: Path, target: Path, setup: str = "import glmlike.checkpoint", **options: Any) -> Any:
    shutil.rmtree(target, ignore_errors=True)
    argument = {"source": str(source), "target": str(target), "options": options}
    try:
        return child(work, setup=setup, argument=argument)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _shell(target: Path, *commands: list[str]) -> dict[str, Any]:
    """Seconds of commands that write ``target``, one after the other."""
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    shutil.rmtree(target, ignore_errors=True)
    return {"seconds": seconds, "peak_mib": None}


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory of the whole process against the size of the model."""
    rows = []
    for layers in LAYERS:
        source = write_big(folder / f"sparse-{layers}", layers=layers, sparse=True, **WIDE)
        found = _run(CONVERT, source, folder / "out", max_memory=f"{BOUND}MB")
        rows.append({"model, GB": found["extra"] / 1e9, "peak RSS of the process, MiB": found["peak_mib"]})
        shutil.rmtree(source)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The first table as a picture: the same bytes for the same rows."""
    import matplotlib
    from matplotlib.figure import Figure

    sizes, peaks = zip(*(row.values() for row in rows), strict=True)
    with matplotlib.rc_context({"svg.hashsalt": "glmlike", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(sizes, peaks, marker="o", label="peak of the whole process")
        axes.axhline(BOUND * 1e6 / 2**20, linestyle="--", color="gray", label=f"--max-memory {BOUND}MB")
        axes.set(xlabel="size of the model, GB", ylabel="resident memory, MiB", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _rows(runs: dict[str, Any], repeats: int, source: Path, first: str) -> list[dict[str, Any]]:
    """MB/s of each of ``runs``, and ratios to the run called ``first``, and to transformers where that runs."""
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e6
    measured = interleaved(runs, repeats)
    seconds = {name: median(rows, "seconds") for name, rows in measured.items()}
    return [
        {
            "what": name,
            "MB/s": size / seconds[name],
            f"speed / {first}": seconds[first] / seconds[name],
            **({"speed / transformers": seconds[THEIRS] / seconds[name]} if THEIRS in seconds else {}),
            "peak RSS, MiB": "-" if rows[0]["peak_mib"] is None else median(rows, "peak_mib"),
        }
        for name, rows in measured.items()
    ]


def speed(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each way to have the folder's bytes in another folder, none of which waits for a disk."""
    source = write_big(folder / "source", layers=4, **WIDE)
    glm, out = folder / "glm", folder / "out"
    child(CONVERT, argument={"source": str(source), "target": str(glm), "options": {}})
    files = [str(path) for path in source.iterdir()]
    runs: dict[str, Any] = {
        "cat to /dev/null (reads only)": partial(_shell, out, ["cat", *files]),
        "cp": partial(_shell, out, ["cp", "-r", str(source), str(out)]),
        DEFAULT: partial(_run, CONVERT, source, out, sha256=False),
    }
    for verify, workers in (("roundtrip", 1), ("roundtrip", 4), ("hash", 2), ("none", 1), ("none", 2), ("none", 4)):
        name = f"glmlike, verify={verify}, workers={workers}"
        runs[name] = partial(_run, CONVERT, source, out, verify=verify, workers=workers, sha256=False)
    runs[LOCAL] = partial(_run, CONVERT, source, out)
    runs[THEIRS] = partial(_run, TRANSFORMERS, glm, out, SETUP_TRANSFORMERS)
    return _rows(runs, repeats, source, "cp")


def disk(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """The same on a disk: ours is synced before it appears, so `cp` is followed by `sync`."""
    source = write_big(folder / "source", layers=4, **WIDE)
    out = folder / "out"
    os.sync()
    copy = ["cp", "-r", str(source), str(out)]
    runs: dict[str, Any] = {
        "cp and sync": partial(_shell, out, copy, ["sync"]),
        "cp, not on the disk yet": partial(_shell, out, copy),
        DEFAULT: partial(_run, CONVERT, source, out, sha256=False),
        LOCAL: partial(_run, CONVERT, source, out),
        "glmlike, verify=none": partial(_run, CONVERT, source, out, verify="none"),
    }
    return _rows(runs, repeats, source, "cp and sync")


def _with_room(run: Any, folder: Path, target: Path) -> dict[str, Any]:
    """A run, and by how many bytes it filled the disk."""
    shutil.rmtree(target, ignore_errors=True)
    before = _used(folder)
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    found = {"seconds": result["seconds"] if isinstance(result, dict) else seconds, "room": _used(folder) - before}
    shutil.rmtree(target)
    return found


def _used(folder: Path) -> int:
    """The bytes in use, once they no longer change: XFS frees those of removed files some time later."""
    found = [-1]
    while len(found) < 3 or len(set(found[-3:])) > 1:
        os.sync()
        time.sleep(0.5)
        status = os.statvfs(folder)
        found.append((status.f_blocks - status.f_bfree) * status.f_frsize)
    return found[-1]


def _converted(source: Path, target: Path, to: str, verify: str) -> dict[str, Any]:
    work = CONVERT.replace('to="glm"', f"to={to!r}")
    options = {"verify": verify, "sha256": False}
    argument = {"source": str(source), "target": str(target), "options": options}
    return child(work, setup="import glmlike.checkpoint", argument=argument)


def sharing(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds and room of copies and conversions where blocks can be shared."""
    source, out, glm = write_big(folder / "source", layers=2, **WIDE), folder / "out", folder / "glm"
    child(CONVERT, argument={"source": str(source), "target": str(glm), "options": {}})
    size = sum(path.stat().st_size for path in source.iterdir())
    copy = ["cp", "-r", str(source), str(out)]
    runs: dict[str, Any] = {
        f"cp --reflink={how}": partial(subprocess.run, [*copy, f"--reflink={how}"], check=True)
        for how in ("never", "always")
    }
    for to, what in (("chatglm", "tensors renamed"), ("glm", "q, k, v cut apart")):
        for verify in ("none", "roundtrip"):
            runs[f"glmlike, {what}, verify={verify}"] = partial(_converted, source, out, to, verify)
    argument = {"source": str(glm), "target": str(out)}
    runs[THEIRS] = partial(child, TRANSFORMERS, setup=SETUP_TRANSFORMERS, argument=argument)
    measured = interleaved({name: partial(_with_room, run, folder, out) for name, run in runs.items()}, repeats)
    seconds = {name: median(rows, "seconds") for name, rows in measured.items()}
    return [
        {
            "what": name,
            "seconds": seconds[name],
            "speed / transformers": seconds[THEIRS] / seconds[name],
            "room it took / size": max(median(rows, "room") / size, 0.0),
        }
        for name, rows in measured.items()
    ]


def main(*parts: str, repeats: int = 5) -> None:
    """Measure and write results/convert_*.json and convert_memory.svg: all, or ``parts`` of it."""
    wanted = parts or ("memory", "speed", "disk")
    shared = (
        f"2.7 GB of bfloat16; median of {repeats} runs, interleaved, page cache warm, imports not counted. By default "
        "as many workers as processors (2 here), every tensor hashed and read back (verify=roundtrip); sha256 is "
        "computed of files of which the Hub's client noted none (a download: sha256=False in these runs)"
    )
    if "memory" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            rows = memory(Path(folder))
        note = f"Sparse ChatGLM2 folders, max_memory={BOUND}MB, every byte hashed and read back; one new process each."
        report("convert_memory", rows, note)
        plot(rows, RESULTS / "convert_memory.svg")
    if "speed" in wanted:
        in_memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
            report("convert_speed", speed(Path(folder), repeats), f"{shared}; on a file system in memory.")
    if "disk" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            report("convert_disk", disk(Path(folder), repeats), f"{shared}; on a disk, and synced to it.")
    if "sharing" in wanted:
        with tempfile.TemporaryDirectory(dir=parts[1]) as folder:
            kind = subprocess.run(["stat", "-f", "-c", "%T", folder], check=True, capture_output=True, text=True)
            note = (
                f"1.9 GB of bfloat16 on {kind.stdout.strip()}; median of {repeats} runs, interleaved, not synced,"
                " imports not counted; files of a download."
            )
            report("convert_sharing", sharing(Path(folder), repeats), note)


if __name__ == "__main__":
    main(*sys.argv[1:])
