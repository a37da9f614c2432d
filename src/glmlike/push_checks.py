"""What a folder must be before it is pushed to the Hub: readable, complete, and free of what belongs to its machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.shards import read_json
from glmlike.errors import PushError

ADAPTER = "adapter_config.json"
CARD = "README.md"
EVAL_RESULTS = ".eval_results"  # the one hidden folder that the Hub reads

# What stays on the machine: hidden files (logins, caches), bytecode, and the state that a Trainer resumes from.
_STAYS = (
    *(".*", "__pycache__", "*.pyc", "checkpoint-[0-9]*", "runs", "wandb"),
    *("optimizer.*", "scheduler.*", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin"),
    *("*.tmp", "*.lock", "*.incomplete"),
)
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json", "*.tiktoken")


def files_to_push(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The files of a folder by their path in the repository, and what of it stays here.

    Raises:
        CheckpointError: a link leads out of the folder.
    """
    files: dict[str, Path] = {}
    left: set[str] = set()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        named = enumerate(("", *parts[1:]) if parts[0] == EVAL_RESULTS else parts, 1)
        stays = next((n for n, part in named if any(fnmatch(part, what) for what in _STAYS)), None)
        if stays is not None:
            left.add("/".join(parts[:stays]))
        elif not path.is_dir():
            files["/".join(parts)] = require_inside(path, folder)
    return files, tuple(sorted(left))


def require_repo_id(repo: str) -> None:
    """Raise PushError for what is no ``user/name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PushError(f"{repo!r}: no name of a repository ({str(error).splitlines()[0]}).") from None
    if repo.count("/") != 1:
        raise PushError(f"{repo!r}: expected user/name, such as 'ada/chatglm3-native'.")


def require_tokenizer(folder: Path) -> None:
    """Raise PushError if a folder has no tokenizer: its model could be loaded, and not used."""
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise PushError(
            f"{folder}: no tokenizer ({', '.join(_TOKENIZERS)}). Put its files there "
            "(`tokenizer.save_pretrained`), or say --no-tokenizer (tokenizer=False)."
        )


def class_of_no_transformers(folder: Path) -> str | None:
    """The class that a folder's tokenizer needs, if transformers alone does not have it; "" if none is said."""
    path = folder / "tokenizer_config.json"
    name = read_json(path).get("tokenizer_class") if path.is_file() else None
    if name is None:
        return None if (folder / "tokenizer.json").is_file() else ""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = tokenizer_class_from_name(name)
    return None if found is not None and found.__module__.startswith("transformers.") else str(name)


def require_adapter(folder: Path) -> str:
    """The base model of a PEFT adapter's folder.

    Raises:
        PushError: no weights; or a base model that only this machine has.
    """
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise PushError(f"{folder}: {ADAPTER} and no adapter_model.safetensors. Save the adapter anew.")
    if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) or Path(base).exists():
        raise PushError(
            f"{folder / ADAPTER}: base_model_name_or_path={base!r} is a place on this machine. Push the base model, "
            "and write its user/name there."
        )
    return base


def card_notes(folder: Path) -> Iterator[str]:
    """What a reader will miss in the model card, and how to write it.

    Raises:
        PushError: the front matter is no YAML, which the Hub would refuse.
    """
    path = folder / CARD
    if not path.is_file():
        yield (
            f"no {CARD}: the repository will have no model card. Write one: `from huggingface_hub import ModelCard, "
            "ModelCardData`; `ModelCard.from_template(ModelCardData(license=…, library_name='transformers', "
            f"pipeline_tag='text-generation', tags=['glm'])).save('{CARD}')`"
        )
        return
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        data = ModelCard.load(path).data
    except (YAMLError, ValueError, TypeError) as error:
        raise PushError(
            f"{path}: its front matter cannot be read ({str(error).splitlines()[0]}). Correct it."
        ) from None
    missing = [name for name in ("license", "library_name", "pipeline_tag") if data.get(name) is None]
    if missing:
        yield f"{CARD}: its front matter says no {', '.join(missing)}"
