"""Converting a folder: memory against the size of the model, and speed against `cp` and transformers' load and save.

The source is a ChatGLM-layout folder, the target transformers' ``glm``. Sizes of the first table are sparse files: a
hole is read as zeros and hashed as any other bytes. The second table is of real bytes on a file system in memory, so
that it measures the programs and not the disk; `cp` copies the same folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import child, interleaved, median, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from big_files import write_big

WIDE = {"hidden": 4096, "inner": 13_696, "vocab": 65_024}
LAYERS = (2, 8, 24, 95)
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


def _cp(source: Path, target: Path) -> dict[str, Any]:
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return {"seconds": seconds, "peak_mib": 0.0}


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory of the whole process against the size of the model."""
    rows = []
    for layers in LAYERS:
        source = write_big(folder / f"sparse-{layers}", layers=layers, sparse=True, **WIDE)
        found = _run(CONVERT, source, folder / "out", max_memory="200MB", verify="hash")
        rows.append({"model, GB": found["extra"] / 1e9, "peak RSS of the process, MiB": found["peak_mib"]})
        shutil.rmtree(source)
    return rows


def speed(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each way to have the folder's bytes in another folder."""
    source = write_big(folder / "source", layers=4, **WIDE)
    glm = folder / "glm"
    child(CONVERT, argument={"source": str(source), "target": str(glm), "options": {}})
    out = folder / "out"
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e6
    runs: dict[str, Any] = {"cp": partial(_cp, source, out)}
    for verify in ("none", "roundtrip"):
        for workers in (1, 2, 4):
            name = f"glmlike, verify={verify}, workers={workers}"
            runs[name] = partial(_run, CONVERT, source, out, verify=verify, workers=workers)
    runs["transformers, load and save (glm to glm)"] = partial(_run, TRANSFORMERS, glm, out, SETUP_TRANSFORMERS)
    measured = interleaved(runs, repeats)
    seconds = {name: median(rows, "seconds") for name, rows in measured.items()}
    theirs = seconds["transformers, load and save (glm to glm)"]
    return [
        {
            "what": name,
            "MB/s": size / seconds[name],
            "speed / cp": seconds["cp"] / seconds[name],
            "speed / transformers": theirs / seconds[name],
            "peak RSS, MiB": median(rows, "peak_mib") if name != "cp" else "-",
        }
        for name, rows in measured.items()
    ]


def main(repeats: int = 5) -> None:
    """Measure and write results/convert_memory.json and results/convert_speed.json."""
    with tempfile.TemporaryDirectory() as folder:
        note = "Sparse ChatGLM2 folders, max_memory=200MB, every byte hashed and read back; one new process each."
        report("convert_memory", memory(Path(folder)), note)
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        rows = speed(Path(folder), repeats)
        note = (
            f"2.7 GB of bfloat16 on a file system in memory; median of {repeats} runs, interleaved, imports not "
            "counted. verify=none hashes nothing; roundtrip hashes every tensor once and reads back."
        )
        report("convert_speed", rows, note)


if __name__ == "__main__":
    main()
