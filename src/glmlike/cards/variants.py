"""Quantized variants of a model beside it in its card: how small each is, and what it costs.

What a variant costs is read where `glmlike eval` (or lm-eval) left it: the scores that the model and the variant share
and of which less is better (perplexities, bits per byte).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glmlike.cards.parts import table
from glmlike.cards.training import Score, read_scores
from glmlike.checkpoint.shards import read_json
from glmlike.errors import ConfigError

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_LESS_IS_BETTER = ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity")


def variants_table(folder: Path, scores: Sequence[Score], variants: Sequence[str | Path]) -> str:
    """A table in Markdown, the model of ``folder`` first; "" without variants. A variant is a folder or a .gguf file.

    Raises:
        ConfigError: a variant that is neither, or holds no weights.
    """
    if not variants:
        return ""
    places = [Path(one) for one in variants]
    sizes = [_size(place) for place in places]
    own = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
    measured = [_measured(read_scores(place, None) if place.is_dir() else ()) for place in places]
    known = _measured(scores)
    shared = [name for name in known if any(name in found for found in measured)]
    head = ["variant", "method", "MB", "size", *(f"{dataset} {metric}".strip() for dataset, metric in shared)]
    rows = [[folder.resolve().name, "—", f"{own / 1e6:.1f}", "1", *(f"{known[name]:.4f}" for name in shared)]]
    for place, size, found in zip(places, sizes, measured, strict=True):
        costs = [f"{found[n]:.4f} ({found[n] / known[n] - 1:+.1%})" if n in found else "—" for n in shared]
        ratio = f"{size / own:.2f}" if own else "—"
        rows.append([place.resolve().name, _method(place), f"{size / 1e6:.1f}", ratio, *costs])
    return table(head, rows)


def _measured(scores: Sequence[Score]) -> dict[tuple[str, str], float]:
    return {(s.dataset or "", s.metric): s.value for s in scores if s.metric in _LESS_IS_BETTER and s.value}


def _size(place: Path) -> int:
    files = [place] if place.suffix == ".gguf" else [path for pattern in _WEIGHTS for path in place.glob(pattern)]
    size = sum(path.stat().st_size for path in files if path.is_file())
    if not size:
        raise ConfigError(f"{place}: no weights there. Expected the folder of a quantized variant, or its .gguf file.")
    return size


def _method(place: Path) -> str:
    """What the record of `glmlike quantize` says, else the config."""
    if place.suffix == ".gguf":
        return "GGUF"
    record = read_json(place / "glmlike.json") if (place / "glmlike.json").is_file() else {}
    config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
    said = (record.get("quantization") or {}).get("method") or (config.get("quantization_config") or {}).get(
        "quant_method"
    )
    return str(said or "—")
