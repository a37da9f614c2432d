"""Evaluation by EleutherAI's lm-eval, and small tasks of our own that need no network.

The texts are written for this package: no model was trained on them, and they say nothing that a model should know.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glmlike.errors import ConfigError, GlmLikeError

TASKS = Path(__file__).parent / "tasks"
"""Task files in lm-eval's form: ``lm_eval run --include_path`` reads this folder as well."""

FOR_ALL = tuple(f"glmlike_{kind}_{language}" for kind in ("bits_per_byte", "cloze") for language in ("en", "zh"))
FOR_BLANKS = tuple(f"glmlike_{kind}_{language}" for kind in ("infill", "fill") for language in ("en", "zh"))
"""Tasks for decoders that fill blanks, which glmlike scores and lm-eval alone cannot."""


def evaluate(
    model: str | Path,
    tasks: Sequence[str] = (),
    *,
    limit: float | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str = 8,
    device: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    chat_template: bool = False,
    include_path: str | Path | None = None,
    rope: str | None = None,
) -> dict[str, Any]:
    """lm-eval's results for a folder or a Hub id, as its ``simple_evaluate`` returns them, without the samples.

    Without ``tasks`` ours: ``FOR_ALL``, and ``FOR_BLANKS`` if the decoder fills blanks. Such a decoder is asked every
    task in its own form (``glmlike.evaluation.blanks``), any other by lm-eval's ``hf`` model. ``model_args`` are those
    of that model (``{"dtype": "float16", "peft": folder}``). ``rope``, as "yarn:4", stretches its positions, and texts
    may be so much longer (:func:`glmlike.long_context.stretched`); the results say so under ``config``.

    Raises:
        ConfigError: lm-eval is not installed; ``model`` is no model; positions that cannot be stretched so.
        GlmLikeError: a task that nobody has, or that this decoder cannot do.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("evaluation needs lm-eval: run pip install 'glmlike[eval]'.")
    fills = _fills_blanks(str(model))
    chosen = list(tasks) or [*FOR_ALL, *(FOR_BLANKS if fills else ())]
    for task in chosen:
        if task in (*FOR_BLANKS, "glmlike_blanks") and not fills:
            raise GlmLikeError(f"--tasks {task}: {model} fills no blanks. Its tasks are {', '.join(FOR_ALL)}.")
    arguments = {**(_stretched(str(model), rope, model_args or {}) if rope else {}), **(model_args or {})}
    from lm_eval import simple_evaluate

    with _quiet_harness():
        manager = _task_manager(chosen, include_path)
        arguments = {"device": device or _device(), "batch_size": batch_size, **arguments}
        results = simple_evaluate(
            model=_model(fills, {"pretrained": str(model), **arguments}),
            tasks=chosen,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=False,
            apply_chat_template=chat_template,
            task_manager=manager,
        )
    return {**results, "config": {**results["config"], "rope": rope}} if rope else dict(results)


def _stretched(model: str, rope: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval's model takes of a scaling: the config it loads by, and how long a text may be."""
    from glmlike.long_context import longest_text, stretched

    places = {name: model_args[name] for name in ("revision", "subfolder") if name in model_args}
    config = stretched(model, rope, **places)
    return {"config": config, "max_length": longest_text(config)}


def _fills_blanks(model: str) -> bool:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        if isinstance(error, GlmLikeError):
            raise
        raise ConfigError(f"{model}: no model that can be loaded ({str(error).splitlines()[0]})") from None
    return getattr(config, "attention_mask", None) == "prefix"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _model(fills: bool, arguments: dict[str, Any]) -> Any:
    if fills:
        from glmlike.evaluation.blanks import BlankFillingLM

        return BlankFillingLM(**arguments)
    from lm_eval.models.huggingface import HFLM

    return HFLM(**arguments)


def _task_manager(tasks: Iterable[str], include_path: str | Path | None) -> Any:
    """lm-eval's own tasks are thousands of files, read only for a task that is not ours.

    Raises:
        GlmLikeError: a task that is in none of the places.
    """
    from lm_eval.tasks import TaskManager

    places = [str(place) for place in (TASKS, include_path) if place is not None]
    manager = TaskManager(include_path=places, include_defaults=False)
    if any(not manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=places)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise GlmLikeError(
                f"--tasks {task}: no such task. Ours are {', '.join((*FOR_ALL, *FOR_BLANKS))}; `lm_eval ls tasks` "
                "names lm-eval's, and --include-path a folder of your own."
            )
    return manager


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """lm-eval warns about much that is meant (our data sets are files, a choice has no blank before it)."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def scores(results: Mapping[str, Any]) -> list[tuple[str, str, float, float | None]]:
    """(task, metric, value, standard error) of every number in lm-eval's results."""
    found = []
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = row.get(f"{metric}_stderr,{kind}")
                name = metric if kind == "none" else f"{metric} ({kind})"
                found.append((task, name, float(value), error if isinstance(error, (int, float)) else None))
    return found


def _named(value: Any) -> str:
    """Functions and data types, which JSON has not, by their names."""
    return str(getattr(value, "__name__", value))


def _without_places(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without paths of this machine: they are pushed with the model."""
    config, tasks = dict(results.get("config") or {}), {}
    if Path(str(config.get("model"))).is_dir():
        config["model"] = Path(str(config["model"])).resolve().name
    for name, task in results["configs"].items():
        said = {key: value for key, value in (task.get("metadata") or {}).items() if key != "config_source"}
        tasks[name] = {**task, "metadata": said}
    return {**results, "config": config, "configs": tasks}


def write_results(results: Mapping[str, Any], folder: Path) -> Path:
    """Write lm-eval's results as it does, ``results_<time>.json``, where ``glmlike card`` finds them."""
    results = _without_places(results)
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds").replace(":", "-")
    path = folder / f"results_{moment}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2, ensure_ascii=False, default=_named), encoding="utf8")
    partial.replace(path)
    return path
