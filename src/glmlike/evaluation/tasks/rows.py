"""The rows of the task files beside this one; lm-eval finds this module by its name in the YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: str, language: str, **_: Any) -> dict[str, Any]:
    """``{"test": Dataset}`` of one language; a cloze has ``filled``, its text with each choice in the blank's place."""
    from datasets import Dataset

    lines = Path(__file__).with_name(file).read_text(encoding="utf8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["language"] == language]
    for row in rows:
        if "choices" in row:
            row["filled"] = [row["text"].replace("[MASK]", choice) for choice in row["choices"]]
    return {"test": Dataset.from_list(rows)}
