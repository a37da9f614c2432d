"""The card of a fine-tune, from what its folder holds and what its author says; nothing in it is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmlike.cards.curve import picture, sparkline
from glmlike.cards.eval_results import eval_result_files
from glmlike.cards.folder import Contents, bare, is_hub_id, read_folder
from glmlike.cards.parts import architecture, table
from glmlike.cards.training import Score, Training
from glmlike.cards.variants import variants_table

PICTURE = "training_loss.svg"
_FILES_SHOWN = 12


@dataclass(frozen=True)
class Card:
    """A card: its front matter, its body, and beside it pictures and ``.eval_results`` by file name."""

    fields: Mapping[str, Any]
    body: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    eval_results: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole README.md."""
        return f"---\n{to_yaml(self.fields)}\n---\n\n{self.body}"


@dataclass(frozen=True)
class About:
    """What no file says. ``data``, ``recipe``, ``hardware`` and ``use`` are Markdown, put in as they are.

    ``datasets`` are ids of the Hub; ``evaluated_on`` names the set of the training run's evaluation;
    ``variants`` are folders or .gguf files of the same model quantized.
    """

    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: Sequence[str] = ()
    base_model: str | None = None
    datasets: Sequence[str] = ()
    data: str | None = None
    recipe: str | None = None
    hardware: str | None = None
    use: str | None = None
    evaluated_on: str | None = None
    variants: Sequence[str | Path] = ()


def card_for(folder: str | Path, about: About | None = None, *, plot: bool = True) -> Card:
    """The card of a fine-tuned model or an adapter; nothing is written, and no pickle is read.

    Read are config.json, adapter_config.json, trainer_state.json (the folder's own or its last checkpoint's), the
    Trainer's results files, lm-eval's ``results*.json`` and glmlike.json. The losses are a picture where matplotlib is
    installed, unless ``plot`` is off, else a line of text. ``check_card`` says what is still missing.

    Raises:
        ConfigError: neither a model nor an adapter is there, or one of the files is damaged.
    """
    about = about or About()
    contents = read_folder(Path(folder))
    title = about.name or contents.folder.resolve().name
    pictures = _pictures(contents.training) if plot else {}
    sections = {
        "": about.use or "",
        "Use": _use(contents, about, title),
        "Architecture": architecture({title: contents.spec}) if contents.spec else "",
        "Adapter": _adapter(contents.adapter) if contents.adapter is not None else "",
        "Data": about.data or "",
        "Training": _training(contents.training, about, PICTURE if pictures else None),
        "Evaluation": _evaluation(contents.scores, about),
        "Quantized variants": variants_table(contents.folder, contents.scores, about.variants),
        "Provenance": _provenance(contents, about),
        "Licence": _licence(about, contents),
    }
    parts = [f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text.strip()]
    body = "\n\n".join([f"# {title}", *parts]) + "\n"
    return Card(_fields(contents, about, title), body, pictures, eval_result_files(contents.scores))


def to_yaml(fields: Mapping[str, Any]) -> str:
    """Front matter as the Hub writes it."""
    from huggingface_hub import CardData

    data: Any = CardData(**fields)
    return str(data.to_yaml()).strip() if fields else ""


def _base(contents: Contents, about: About) -> str | None:
    return bare(about.base_model) if about.base_model else contents.base


def _fields(contents: Contents, about: About, title: str) -> dict[str, Any]:
    from huggingface_hub import ModelCardData

    base = _base(contents, about)
    named = about.base_model or (base if base and is_hub_id(base) else None)
    adapter = contents.adapter is not None
    data: Any = ModelCardData(
        license=about.license,
        license_name=about.license_name,
        license_link=about.license_link,
        language=list(about.language) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=contents.task[0],
        base_model=named,
        base_model_relation=_relation(contents) if named else None,
        datasets=list(about.datasets) or None,
        tags=["glm", "glmlike", *(["lora"] if adapter and _method(contents.adapter) == "LORA" else [])],
        model_name=title if contents.scores else None,
        eval_results=_eval_results(contents, about) or None,
    )
    return dict(data.to_dict())


def _relation(contents: Contents) -> str:
    if contents.adapter is not None:
        return "adapter"
    return "quantized" if contents.config.get("quantization_config") and not contents.training else "finetune"


def _method(adapter: Mapping[str, Any] | None) -> str:
    return str((adapter or {}).get("peft_type", "")).upper()


def _eval_results(contents: Contents, about: About) -> list[Any]:
    from huggingface_hub import EvalResult

    own = about.evaluated_on or "held-out data of the training run"
    return [
        EvalResult(
            task_type=contents.task[0],
            dataset_type=score.source or (score.dataset or "custom"),
            dataset_name=score.dataset or own,
            metric_type=score.metric,
            metric_value=score.value,
            metric_args=None if score.shots is None else {"num_fewshot": score.shots},
        )
        for score in contents.scores
    ]


def _use(contents: Contents, about: About, title: str) -> str:
    auto = contents.task[1]
    if contents.adapter is None:
        names = [auto, *(["AutoTokenizer"] if contents.has_tokenizer else [])]
        lines = ["import glmlike", f"from transformers import {', '.join(names)}", ""]
        lines.append(f'model = {auto}.from_pretrained("{title}")')
        if contents.has_tokenizer:
            lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{title}")')
    else:
        base = _base(contents, about) or "BASE"
        lines = ["import glmlike", f"from transformers import {auto}", ""]
        lines += [f'base = {auto}.from_pretrained("{base}")', f'model = glmlike.load_adapter(base, "{title}")']
    return "```python\n" + "\n".join(lines) + "\n```"


def _adapter(adapter: Mapping[str, Any]) -> str:
    said = {
        "method": _method(adapter) or "—",
        "rank": adapter.get("r"),
        "alpha": adapter.get("lora_alpha"),
        "dropout": adapter.get("lora_dropout"),
        "modules": _listed(adapter.get("target_modules")),
        "trained whole": _listed(adapter.get("modules_to_save")),
        "DoRA": True if adapter.get("use_dora") else None,
        "rank-stabilized": True if adapter.get("use_rslora") else None,
    }
    return table(["", ""], [[name, value] for name, value in said.items() if value is not None])


def _listed(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in sorted(map(str, value)))
    return f"`{value}`" if value else None


def _pictures(training: Training | None) -> dict[str, bytes]:
    curves: dict[str, Any] = {"training": training.losses, "held out": training.held_out} if training else {}
    curves = {name: points for name, points in curves.items() if points}
    drawn = picture(curves) if curves else None
    return {} if drawn is None else {PICTURE: drawn}


def _training(training: Training | None, about: About, drawn: str | None) -> str:
    parts = [about.recipe or "", f"Hardware: {about.hardware}" if about.hardware else ""]
    if training is not None:
        said = {
            "steps": f"{training.steps:,}",
            "epochs": None if training.epochs is None else f"{training.epochs:.2f}",
            "batch size a device": training.batch_size,
            "highest learning rate": None if training.learning_rate is None else f"{training.learning_rate:g}",
            "training loss": _from_to(training.losses),
            "held-out loss": _from_to(training.held_out),
        }
        parts.append(table(["", ""], [[name, value] for name, value in said.items() if value is not None]))
        parts.append(f"![Loss by step]({drawn})" if drawn else _lines(training))
    return "\n\n".join(part for part in parts if part)


def _from_to(points: Sequence[tuple[int, float]]) -> str | None:
    if not points:
        return None
    (first, start), (last, end) = points[0], points[-1]
    return f"{end:.4f}" if first == last else f"{start:.4f} (step {first:,}) to {end:.4f} (step {last:,})"


def _lines(training: Training) -> str:
    curves = {"training loss": training.losses, "held-out loss": training.held_out}
    drawn = [f"{name:<14} {sparkline(points)}" for name, points in curves.items() if len(points) > 1]
    return "```text\n" + "\n".join(drawn) + "\n```" if drawn else ""


def _evaluation(scores: Sequence[Score], about: About) -> str:
    own = about.evaluated_on or "held-out data of the training run"
    rows = []
    for score in scores:
        error = "" if score.error is None else f" ± {score.error:.4f}"
        shots = "" if score.shots is None else score.shots
        rows.append([score.dataset or own, score.metric, f"{score.value:.4f}{error}", shots])
    return table(["set", "metric", "value", "shots"], rows) if rows else ""


def _provenance(contents: Contents, about: About) -> str:
    base, record = _base(contents, about), contents.record
    verb = "Adapter of" if contents.adapter is not None else "Made from"
    lines = [f"{verb} `{base}`{_revision(contents)}."] if base else []
    lines += _recorded_source(record)
    merged = record.get("merged_adapters")
    for entry in merged if isinstance(merged, list) else []:
        if isinstance(entry, Mapping):
            lines.append(f"Merged in: adapter `{bare(str(entry.get('name')))}`, sha256 `{entry.get('sha256')}`.")
    return "\n\n".join(lines)


def _revision(contents: Contents) -> str:
    source = contents.record.get("source")
    recorded = source.get("revision") if isinstance(source, Mapping) else None
    revision = (contents.adapter or {}).get("revision") or recorded
    return f", revision `{revision}`" if revision else ""


def _recorded_source(record: Mapping[str, Any]) -> Iterator[str]:
    """What glmlike.json says of the files that the weights came from."""
    source = record.get("source")
    if not isinstance(source, Mapping):
        return
    if source.get("format"):
        yield f"Its files were in the layout `{source['format']}`; these are in `{record.get('format')}`."
    files = source.get("files") or source.get("published_files")
    if isinstance(files, Mapping) and files:
        shown = list(files.items())[:_FILES_SHOWN]
        yield table(["file of the base", "sha256"], [[f"`{bare(str(name))}`", f"`{digest}`"] for name, digest in shown])
        if len(files) > len(shown):
            yield f"{len(files) - len(shown)} more files are in glmlike.json."


def _licence(about: About, contents: Contents) -> str:
    base = _base(contents, about)
    own = about.license_name or about.license
    text = f"{own}." if own else ""
    return f"{text} See also the terms of `{base}`, which this was made from.".strip() if base else text
