"""What training and evaluation left in a folder: trainer_state.json, the results files, lm-eval's results.

``training_args.bin`` is a pickle and is not read: what it says has to be told (``recipe``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from glmlike.checkpoint.shards import read_json
from glmlike.errors import ConfigError

Point = tuple[int, float]
# What the Trainer adds to the results of an evaluation, besides the metrics themselves.
_CLOCK = ("runtime", "samples_per_second", "steps_per_second", "samples", "model_preparation_time")


@dataclass(frozen=True)
class Training:
    """A run of the Trainer: its losses by step, and the settings that trainer_state.json says."""

    losses: tuple[Point, ...]
    held_out: tuple[Point, ...]
    steps: int
    epochs: float | None
    batch_size: int | None
    learning_rate: float | None
    evaluation: Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """One number of an evaluation. ``dataset`` is None for the set that the training run evaluated on."""

    metric: str
    value: float
    error: float | None = None
    dataset: str | None = None
    source: str | None = None
    shots: int | None = None


def read_training(folder: Path) -> Training | None:
    """The run that wrote a folder, from its own trainer_state.json or its last checkpoint's; None without either.

    Raises:
        ConfigError: the file is no trainer_state.json.
    """
    checkpoints = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    checkpoints.sort(key=lambda path: int(number) if (number := path.name.rsplit("-", 1)[1]).isdigit() else -1)
    for place in (folder, *reversed(checkpoints)):
        path = place / "trainer_state.json"
        if path.is_file():
            return _run(read_json(path), path)
    return None


def _run(state: Mapping[str, Any], path: Path) -> Training:
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(row, Mapping) for row in history):
        raise ConfigError(f"{path}: 'log_history' is no list of objects. Restore the Trainer's file, or remove it.")
    evaluated = [row for row in history if any(str(key).startswith("eval_") for key in row)]
    rates = [row["learning_rate"] for row in history if _is_number(row.get("learning_rate"))]
    batch = state.get("train_batch_size")
    steps, epochs = state.get("global_step"), state.get("epoch")
    return Training(
        losses=_points(history, "loss"),
        held_out=_points(history, "eval_loss"),
        steps=steps if isinstance(steps, int) else 0,
        epochs=float(epochs) if _is_number(epochs) else None,
        batch_size=batch if isinstance(batch, int) else None,
        learning_rate=max(rates) if rates else None,
        evaluation=_metrics(evaluated[-1]) if evaluated else {},
    )


def _points(history: list[Mapping[str, Any]], name: str) -> tuple[Point, ...]:
    found = [(row.get("step"), row.get(name)) for row in history]
    return tuple((step, float(loss)) for step, loss in found if isinstance(step, int) and _is_number(loss))


def read_scores(folder: Path, training: Training | None) -> list[Score]:
    """Every score in the folder: the Trainer's last evaluation, and lm-eval's results, the latest of each task.

    Results that `glmlike eval --rope` wrote are of a decoder that the folder does not hold, and are passed over.

    Raises:
        ConfigError, CheckpointError: a results file is damaged.
    """
    found = dict(training.evaluation) if training else {}
    for name in ("all_results.json", "eval_results.json"):
        if (folder / name).is_file():
            found |= _metrics(read_json(folder / name))
    scores = {("", name): Score(name, value) for name, value in found.items()}
    for path in sorted({*folder.glob("results*.json"), *folder.glob("*/results*.json")}, key=lambda path: path.name):
        report = read_json(path)
        if isinstance(report.get("config"), Mapping) and report["config"].get("rope"):
            continue
        if isinstance(report.get("results"), Mapping) and isinstance(report.get("configs"), Mapping):
            scores |= {(score.dataset or "", score.metric): score for score in _harness(report)}
    return list(scores.values())


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation, ``eval_`` taken off."""
    named = {str(key).removeprefix("eval_"): value for key, value in row.items() if str(key).startswith("eval_")}
    return {
        name: float(value)
        for name, value in named.items()
        if _is_number(value) and math.isfinite(value) and not name.endswith(_CLOCK)
    }


def _harness(report: Mapping[str, Any]) -> Iterator[Score]:
    """lm-eval's results: ``{task: {"metric,filter": value, "metric_stderr,filter": error}}``."""
    for task, row in report["results"].items():
        if not isinstance(row, Mapping):
            continue
        config = report["configs"].get(task)
        source = config.get("dataset_path") if isinstance(config, Mapping) else None
        counts = report.get("n-shot")
        shots = counts.get(task) if isinstance(counts, Mapping) else None
        for key, value in row.items():
            metric, _, kind = str(key).partition(",")
            if not kind or metric.endswith("_stderr") or not _is_number(value) or not math.isfinite(value):
                continue
            error: Any = row.get(f"{metric}_stderr,{kind}")
            yield Score(
                metric=metric if kind == "none" else f"{metric} ({kind})",
                value=float(value),
                error=float(error) if _is_number(error) and math.isfinite(error) else None,
                dataset=str(task),
                source=source if isinstance(source, str) else None,
                shots=shots if isinstance(shots, int) else None,
            )


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
