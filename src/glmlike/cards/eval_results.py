"""Scores on benchmarks of the Hub, as the Hub's model pages and leaderboards read them: ``.eval_results/TASK.yaml``.

One entry a task, which names the data set on the Hub (huggingface_hub, ``EvalResultEntry``). Scores on data that is not
on the Hub have no such entry; the card's ``model-index`` has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from glmlike.cards.training import Score
from glmlike.errors import ConfigError

FOLDER = ".eval_results"
_MARK = "# written by `glmlike card`\n"
_DATASET = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r"[^\w.-]+")


def eval_result_files(scores: Sequence[Score]) -> dict[str, bytes]:
    """The files by their names in the folder: of each task on a data set ``owner/name``, its first metric."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    files: dict[str, bytes] = {}
    for score in scores:
        name = f"{FOLDER}/{_FILE.sub('_', score.dataset or '')}.yaml"
        if score.dataset is None or not _DATASET.fullmatch(score.source or "") or name in files:
            continue
        shots = "" if score.shots is None else f", {score.shots}-shot"
        entry = EvalResultEntry(
            dataset_id=str(score.source),
            task_id=score.dataset,
            value=score.value,
            notes=f"{score.metric}{shots}, lm-eval",
        )
        files[name] = (_MARK + yaml_dump(eval_result_entries_to_yaml([entry]))).encode()
    return files


def require_ours(folder: Path, files: Sequence[str]) -> None:
    """Raise ConfigError if one of ``files`` is there and no earlier card wrote it."""
    for name in files:
        path = folder / name
        if path.exists() and not path.read_bytes().startswith(_MARK.encode()):
            raise ConfigError(f"{path}: is there, and not of an earlier card. Move it away; nothing was written.")
