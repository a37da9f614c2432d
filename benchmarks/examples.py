"""What each training script of examples/ does to what was held out: on the embedded model, with the script's defaults.

A job takes up to three minutes of one thread. ``--only NAME ...`` measures some; the others keep their rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, child, report

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Job:
    """A call of a script, and its effect in words: ``{name}`` is what its ``main`` returns under that name.

    ``{}`` is what a ``main`` returns that returns one number.
    """

    job: str
    script: str
    effect: str
    arguments: tuple[str, ...] = ()

    @property
    def call(self) -> str:
        """The script with its arguments, as one types it."""
        return " ".join((self.script, *self.arguments))


def _change(name: str, held_out: str) -> str:
    return f"{name} on {held_out}: {{{name} before}} → {{{name} after}}"


JOBS = {
    "pretrain": Job("continued pre-training", "pretrain.py", _change("bits a byte", "rows of the text")),
    "blanks": Job("training on blanks", "blanks.py", _change("perplexity", "blanks")),
    "sft": Job("instructions", "sft.py", "right answers to held-out questions: {right before} → {right after}"),
    "sft-packed": Job(
        "instructions, packed rows",
        "sft.py",
        "right answers to held-out questions: {right before} → {right after}",
        ("--packing", "--epochs", "15"),
    ),
    "lora": Job("LoRA", "lora.py", _change("loss", "clauses")),
    "qlora": Job("LoRA on a base in four bits", "lora.py", _change("loss", "clauses"), ("--four-bit",)),
    "dpo": Job("preferences (DPO)", "dpo.py", _change("preference accuracy", "pairs")),
    "dpo-lora": Job("preferences, an adapter", "dpo.py", _change("preference accuracy", "pairs"), ("--lora",)),
    "reward": Job("reward model", "reward.py", _change("accuracy", "pairs")),
    "grpo": Job("reinforcement (GRPO)", "grpo.py", _change("reward", "prompts")),
    "distill": Job(
        "distillation, 4 of 6 layers",
        "distill.py",
        "nats a token from the teacher on answers to held-out prompts: {divergence before} → {divergence after}",
    ),
    "classify": Job("classifier", "classify.py", "accuracy on clauses, of which half are shuffled: {}"),
    "prune": Job(
        "pruning, 5 of 6 layers",
        "prune_and_recover.py",
        "perplexity of held-out rows: {perplexity} whole, {perplexity pruned} cut, {perplexity recovered} recovered",
    ),
}

_WORK = """
import importlib.util, sys, tempfile, time
path, arguments = argument
spec = importlib.util.spec_from_file_location("example", path)
example = importlib.util.module_from_spec(spec)
sys.modules["example"] = example
spec.loader.exec_module(example)
with tempfile.TemporaryDirectory() as folder:
    measured = example.main(["--output", folder + "/out", *arguments])
result = {"measured": measured, "seconds": time.process_time()}
"""


def measure(job: Job) -> dict[str, Any]:
    """The row of a job: run in a new process, whose processor seconds include its imports."""
    found = child(_WORK, argument=[str(EXAMPLES / job.script), job.arguments])["extra"]
    measured = found["measured"]
    numbers = measured if isinstance(measured, dict) else {"": measured}
    effect = job.effect
    for name, value in numbers.items():
        effect = effect.replace(f"{{{name}}}", f"{value:.2f}" if value < 10 else f"{value:.3g}")
    if "{" in effect:
        raise RuntimeError(f"{job.call} measured {sorted(numbers)}, which leaves places in {effect!r}.")
    return {
        "job": job.job,
        "script of examples/": f"`{job.call}`",
        "effect": effect,
        "processor seconds": round(found["seconds"]),
    }


def main(names: Sequence[str] = tuple(JOBS)) -> None:
    """Measure the jobs of these names, each written to results/examples.json when it is done."""
    file = RESULTS / "examples.json"
    for name in names:
        row = measure(JOBS[name])
        earlier = json.loads(file.read_text(encoding="utf8"))["rows"] if file.exists() else []
        rows = {each["script of examples/"]: each for each in earlier}
        rows[row["script of examples/"]] = row
        ordered = [rows[call] for call in (f"`{job.call}`" for job in JOBS.values()) if call in rows]
        report(
            "examples",
            ordered,
            "The embedded model (3.6 million parameters) with each script's own data, of which a part is held out, and "
            "the options shown; before and after training, seed 0. Processor seconds of a process with one thread, "
            "imports and measuring included.",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=tuple(JOBS), metavar="NAME")
    main(parser.parse_args().only)
