"""What a fine-tune's folder holds: its decoder or adapter, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.cards.training import Score, Training, read_scores, read_training
from glmlike.checkpoint.shards import read_json
from glmlike.errors import ConfigError
from glmlike.hub_json import Format, detect, read_spec
from glmlike.spec import DecoderSpec

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASKS = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
}
_PEFT_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class Contents:
    """A folder, read: ``config`` and ``spec`` of a model, or ``adapter`` (its adapter_config.json), or both."""

    folder: Path
    config: Mapping[str, Any]
    spec: DecoderSpec | None
    format: Format | None
    adapter: Mapping[str, Any] | None
    training: Training | None
    scores: list[Score]
    record: Mapping[str, Any]

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer's files are beside the model."""
        return any(next(self.folder.glob(name), None) for name in ("tokenizer*", "*.model", "vocab.*"))

    @property
    def task(self) -> tuple[str, str]:
        """The Hub's task and the Auto class of the folder's head."""
        if self.adapter is not None:
            return _TASKS[_PEFT_TASKS.get(str(self.adapter.get("task_type")), "ForCausalLM")]
        names = self.config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        return next((task for end, task in _TASKS.items() if name.endswith(end)), _TASKS["ForCausalLM"])

    @property
    def base(self) -> str | None:
        """What the folder says that it was made from: a Hub id, a folder's bare name, or None."""
        source = self.record.get("source")
        said = [
            (self.adapter or {}).get("base_model_name_or_path"),
            source.get("name") if isinstance(source, Mapping) else None,
            self.config.get("_name_or_path"),
        ]
        return next((bare(name) for name in said if isinstance(name, str) and name.strip()), None)


def read_folder(folder: Path) -> Contents:
    """Everything a card is written from.

    Raises:
        ConfigError: neither config.json nor adapter_config.json is there, or one of the files is not what it should be.
        CheckpointError: a file is no JSON.
    """
    paths = {name: folder / f"{name}.json" for name in ("config", "adapter_config", "glmlike")}
    found = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not found.keys() & {"config", "adapter_config"}:
        raise ConfigError(
            f"{folder}: neither config.json nor adapter_config.json is there. Pass the folder of a model or an "
            "adapter, as save_pretrained or the Trainer writes it."
        )
    config = found.get("config", {})
    where = str(paths["config"])
    training = read_training(folder)
    return Contents(
        folder=folder,
        config=config,
        spec=read_spec(config, where) if config else None,
        format=detect(config, where) if config else None,
        adapter=found.get("adapter_config"),
        training=training,
        scores=read_scores(folder, training),
        record=found.get("glmlike", {}),
    )


def bare(name: str) -> str:
    """A Hub id as it is; of a path, which is of no use to others and may say more than it should, the last part."""
    name = name.strip().replace("\\", "/").rstrip("/")
    return name if is_hub_id(name) else name.rsplit("/", 1)[-1]


def is_hub_id(name: str) -> bool:
    """Whether a name is an ``owner/name``, and not a folder here."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and not Path(name).exists()
