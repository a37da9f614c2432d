"""What belongs to a model besides its weights and travels with it: fields of its config, and files. Never code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmlike.checkpoint.detection import Detection
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.packed import PackedCheckpoint
from glmlike.checkpoint.shards import read_json
from glmlike.checkpoint.tokenizers import PATTERNS
from glmlike.hub_json import INTEGER_METHOD, Format, carried_fields

_COMPANIONS = ("generation_config.json", "*LICENSE*", "README*", "additional_chat_templates")
_CODE = (".py", ".pyc")


def carried(source: Detection) -> dict[str, Any]:
    """The fields that travel; what says that matrices are integers does not, since they no longer are."""
    fields = carried_fields(source.config)
    method = (fields.get("quantization_config") or {}).get("quant_method")
    if method == INTEGER_METHOD or isinstance(source.checkpoint, PackedCheckpoint):
        fields.pop("quantization_config", None)
    return fields


def undefaulted_tokens(to: Format) -> dict[str, None]:
    """transformers' own classes have token ids of one model as defaults; absent here must mean none there."""
    return {} if to == "chatglm" else dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def companion_files(source: Path, *, tokenizer: Sequence[str] = PATTERNS) -> list[Path]:
    """The files of a folder that travel as they are, folders among them: of its tokenizer, those patterns."""
    found = {path for pattern in (*_COMPANIONS, *tokenizer) for path in source.glob(pattern)}
    return sorted(path for path in found if path.suffix not in _CODE)


def files_in(path: Path) -> list[Path]:
    """The files that are copied of a companion: itself, or those of a folder that are no code."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [each for each in inside if each.is_file() and each.suffix not in _CODE]


def copy_companions(source: Path, target: Path, *, tokenizer: Sequence[str] = PATTERNS) -> None:
    """Copy the files that belong to a model into ``target``, beside its weights: of its tokenizer, those patterns.

    Raises:
        CheckpointError: one of them is a link that leads out of ``source``.
    """

    def copy(path: str | Path, to: str | Path) -> None:
        shutil.copyfile(require_inside(Path(path), source), to)

    for path in companion_files(source, tokenizer=tokenizer):
        if path.is_dir():
            ignore = shutil.ignore_patterns(*(f"*{suffix}" for suffix in _CODE))
            shutil.copytree(path, target / path.name, ignore=ignore, copy_function=copy, dirs_exist_ok=True)
        elif path.name == "tokenizer_config.json":
            fields = read_json(path)
            fields.pop("auto_map", None)  # names code files, which are not copied
            text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
            (target / path.name).write_text(text, encoding="utf8")
        else:
            copy(path, target / path.name)
