"""LoRA adapters as PEFT saves them: read into what they add to each matrix, and written again.

A module's change is ``scaling * rows @ shared``: for a linear layer ``rows`` is lora_B [out, r] and ``shared`` lora_A
[r, in]; for an embedding, whose change is stored transposed, lora_embedding_A.T [vocabulary, r] and lora_embedding_B.T
[r, hidden]. ``scaling`` is alpha / r, or alpha / sqrt(r) in rsLoRA (peft/tuners/lora/layer.py, ``update_layer``).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.containers import SafetensorsFile
from glmlike.checkpoint.layouts import Shape
from glmlike.checkpoint.shards import open_file, read_json
from glmlike.checkpoint.streams import Stream, in_memory, read_all, stretches
from glmlike.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_WRITTEN = 2**20  # bytes of a saved tensor in memory at a time
_PART = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?")

# Fields that say how training starts or runs, or that do not matter to a decoder's linear and embedding layers.
_OF_TRAINING = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "lora_bias"),
    *("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "fan_in_fan_out"),
    *("enable_lora", "merge_weights"),  # PEFT before 0.3
}
# Ways to begin that take something out of the base's weights and leave it to the adapter (PEFT: LoraConfig).
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class Lora:
    """What an adapter adds to one module, ``rows`` [out, r] and ``shared`` [r, in]; see the file's first lines."""

    rows: Tensor
    shared: Tensor
    alpha: float
    rank_stabilized: bool = False
    embedding: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return int(self.shared.shape[0])

    @property
    def scaling(self) -> float:
        """What the product is multiplied by, in PEFT's arithmetic."""
        return scaling(self.alpha, self.rank, self.rank_stabilized)

    @property
    def shape(self) -> Shape:
        """The shape of the matrix it is added to."""
        return int(self.rows.shape[0]), int(self.shared.shape[1])

    def with_product(self, rows: Tensor, shared: Tensor, factor: float, **fields: Any) -> Lora:
        """The same with another product whose scaling is exactly ``factor``, padded by zeros where no alpha gives it.

        With a rank that is a power of four the alpha is ``factor`` times a power of two, in both kinds of scaling.
        """
        import torch

        rank = int(shared.shape[0])
        alpha = exact_alpha(factor, rank, self.rank_stabilized)
        if alpha is None:
            more = int(4 ** math.ceil(math.log(rank, 4))) - rank
            rows = torch.nn.functional.pad(rows, (0, more))
            shared = torch.nn.functional.pad(shared, (0, 0, 0, more))
            alpha = exact_alpha(factor, rank + more, self.rank_stabilized)
            assert alpha is not None
        return replace(self, rows=rows, shared=shared, alpha=alpha, **fields)


def scaling(alpha: float, rank: int, rank_stabilized: bool) -> float:
    """PEFT's scaling of an adapter."""
    return alpha / math.sqrt(rank) if rank_stabilized else alpha / rank


def exact_alpha(factor: float, rank: int, rank_stabilized: bool) -> float | None:
    """An alpha whose scaling at ``rank`` is ``factor`` to the bit, an integer if there is one; None without any."""
    near = factor * (math.sqrt(rank) if rank_stabilized else rank)
    candidates = (round(near), near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next((alpha for alpha in candidates if scaling(alpha, rank, rank_stabilized) == factor), None)


@dataclass(frozen=True)
class Adapter:
    """An adapter: what it adds to modules, and the tensors it ``saved`` whole, each by the names of some format.

    The first are in memory, the others (embeddings, heads) are read when they are written.

    ``replaced`` are the names of saved tensors that belong to modules of ``modules_to_save``; the others are biases,
    or embeddings that PEFT saves because they are adapted or resized.
    """

    folder: Path
    config: Mapping[str, Any]
    loras: Mapping[str, Lora]
    saved: Mapping[str, Stream] = field(default_factory=dict)
    replaced: Set[str] = frozenset()


@dataclass(frozen=True)
class StoredLora:
    """What an adapter adds to one module, unread: ``first`` and ``second`` are lora_A and lora_B as the file has them.

    Of an embedding they are lora_embedding_A [r, vocabulary] and lora_embedding_B [hidden, r].
    """

    first: Stream
    second: Stream
    alpha: float
    rank_stabilized: bool = False
    embedding: bool = False
    magnitude: Stream | None = None
    bias: Stream | None = None

    @property
    def shape(self) -> Shape:
        """The shape of the matrix it is added to."""
        rows, columns = self.second.shape[0], self.first.shape[1]
        return (columns, rows) if self.embedding else (rows, columns)

    @property
    def scaling(self) -> float:
        """What the product is multiplied by, in PEFT's arithmetic."""
        return scaling(self.alpha, self.first.shape[0], self.rank_stabilized)

    @property
    def numbers(self) -> int:
        """How many numbers the two matrices have."""
        return math.prod(self.first.shape) + math.prod(self.second.shape)

    def load(self) -> Lora:
        """The same in memory."""
        first, second = read_all(self.first), read_all(self.second)
        rows, shared = (first.T, second.T) if self.embedding else (second, first)
        # A magnitude is a column in PEFT's first DoRA releases.
        magnitude = None if self.magnitude is None else read_all(self.magnitude).flatten()
        bias = None if self.bias is None else read_all(self.bias)
        return Lora(rows, shared, self.alpha, self.rank_stabilized, self.embedding, magnitude, bias)


@dataclass(frozen=True)
class OpenAdapter:
    """An :class:`Adapter` whose numbers are still in its file."""

    folder: Path
    config: Mapping[str, Any]
    loras: Mapping[str, StoredLora]
    saved: Mapping[str, Stream] = field(default_factory=dict)
    replaced: Set[str] = frozenset()

    def renamed(self, prefix: str) -> OpenAdapter:
        """The same adapter of modules that have ``prefix`` before their names."""
        loras = {prefix + name: lora for name, lora in self.loras.items()}
        saved = {prefix + name: stream for name, stream in self.saved.items()}
        return replace(self, loras=loras, saved=saved, replaced={prefix + name for name in self.replaced})


def open_adapter(folder: Path) -> OpenAdapter:
    """A LoRA adapter in its folder, weights and config checked against each other; no code in it runs.

    Raises:
        ConfigError: no LoRA adapter, or one with options that are not understood, or that change the base's weights.
        CheckpointError: a damaged file, or tensors that adapter_config.json does not speak of.
    """
    path = folder / CONFIG
    config = read_json(path)
    _check_config(config, path)
    file = _weights(folder)
    checkpoint = open_file(file)
    parts: dict[str, dict[str, Stream]] = {}
    saved: dict[str, Stream] = {}
    for name in checkpoint.tensors:
        if not name.startswith(_PREFIX):
            raise CheckpointError(f"{file}: {name!r}: expected a name that begins with {_PREFIX!r}, as PEFT saves.")
        short = name.removeprefix(_PREFIX)
        if match := _PART.fullmatch(short):
            parts.setdefault(match[1], {})[match[2]] = checkpoint.stream(name)
        elif "lora_" in short or "token_adapter" in short or "." not in short:
            raise CheckpointError(f"{file}: {name!r} is no part of LoRA that is known. Use PEFT itself with it.")
        else:
            saved[short.replace(".base_layer.", ".")] = checkpoint.stream(name)
    if not parts and not saved:
        raise CheckpointError(f"{file}: holds no tensor. Save the adapter again.")
    loras = {module: _lora(module, found, config, file) for module, found in parts.items()}
    replaced = {name for name in saved if _is_listed(name.rpartition(".")[0], config.get("modules_to_save") or ())}
    return OpenAdapter(folder, config, loras, saved, replaced)


def _weights(folder: Path) -> Path:
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[0])


def module_names(folder: Path) -> set[str]:
    """The modules that an adapter's tensors belong to, by their names alone: no option of it needs to be understood."""
    found = (name.removeprefix(_PREFIX) for name in open_file(_weights(folder)).tensors)
    return {re.sub(r"\.(lora_.*|base_layer\.\w+|weight|bias)$", "", name) for name in found}


def _check_config(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{path}: peft_type={config.get('peft_type')!r}: expected 'LORA'. Other adapters load with PEFT onto the "
            "model whose layout they were trained in."
        )
    unknown = sorted(name for name, value in config.items() if name not in _OF_TRAINING and value)
    if unknown:
        raise ConfigError(
            f"{path}: {unknown[0]}={config[unknown[0]]!r}: this option of LoRA has no exact translation here. Train "
            "without it, or merge the adapter with PEFT on the model it was trained on."
        )
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(_BASE_CHANGING):
        raise ConfigError(
            f"{path}: init_lora_weights={begun!r} changed the base's weights when training began. Save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, which makes it one for the published weights."
        )


def _lora(module: str, found: dict[str, Stream], config: Mapping[str, Any], file: Path) -> StoredLora:
    embedding = "lora_embedding_A" in found
    pair = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    if not found.keys() >= set(pair) or any(len(found[name].shape) != 2 for name in pair):
        raise CheckpointError(f"{file}: {module!r} has {', '.join(sorted(found))}; expected matrices {pair}.")
    first, second = (found[name] for name in pair)
    rank = _of_module(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not first.shape[0] == second.shape[1] == rank:
        raise CheckpointError(
            f"{file}: {module!r} has matrices {[list(found[name].shape) for name in pair]}, but {CONFIG} gives it "
            f"rank {rank}. Weights and config are of different adapters."
        )
    magnitude, bias = found.get("lora_magnitude_vector"), found.get("lora_B.bias")
    for option, part in (("use_dora", magnitude), ("lora_bias", bias)):
        if bool(config.get(option)) != (part is not None):
            raise CheckpointError(
                f"{file}: {CONFIG} has {option}={bool(config.get(option))}, but {module!r} has "
                f"{', '.join(sorted(found))}. Weights and config are of different adapters."
            )
    return StoredLora(first, second, alpha, bool(config.get("use_rslora")), embedding, magnitude, bias)


def _of_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module; PEFT: ``get_pattern_key``, of which the first that matches counts."""
    matches = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matches, default)


def _is_listed(module: str, names: Collection[str]) -> bool:
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in names)


def write_adapter(folder: Path, adapter: Adapter, modules: Collection[str]) -> None:
    """Write ``adapter`` to ``folder`` as PEFT does; ``modules`` are all modules of the model, by its format's names."""
    streams = dict(_streams(adapter))
    tensors = [(name, stream.dtype, stream.shape) for name, stream in streams.items()]
    container = SafetensorsFile(WEIGHTS[0], tensors, lambda sums: {"format": "pt"})
    with (folder / WEIGHTS[0]).open("wb") as file:
        for offset, content in container.frame({}):
            file.seek(offset)
            file.write(content)
        for name, stream in streams.items():
            file.seek(container.at[name])
            for start, stop in stretches(stream, _WRITTEN):
                view = memoryview(bytearray(stop - start))
                stream.read_into(view, start)
                file.write(view)
    text = json.dumps(described(adapter, modules), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf8")


def _streams(adapter: Adapter) -> Iterator[tuple[str, Stream]]:
    for module, lora in sorted(adapter.loras.items()):
        for kind, tensor in _parts(lora):
            yield f"{_PREFIX}{module}.{kind}", in_memory(tensor)
    for name, stream in sorted(adapter.saved.items()):
        module, _, kind = name.rpartition(".")
        yield f"{_PREFIX}{module}.base_layer.{kind}" if module in adapter.loras else _PREFIX + name, stream


def _parts(lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """What a file holds of one module."""
    if lora.embedding:
        yield "lora_embedding_A", lora.rows.T
        yield "lora_embedding_B", lora.shared.T
    else:
        yield "lora_A.weight", lora.shared
        yield "lora_B.weight", lora.rows
    if lora.bias is not None:
        yield "lora_B.bias", lora.bias
    if lora.magnitude is not None:
        yield "lora_magnitude_vector", lora.magnitude


def described(adapter: Adapter, modules: Collection[str]) -> dict[str, Any]:
    """The adapter_config.json of an adapter: modules, ranks and alphas follow from what it holds."""
    kinds = {module: (lora.rank, lora.alpha) for module, lora in adapter.loras.items()}
    common = Counter(kinds.values()).most_common(1)
    rank, alpha = common[0][0] if common else (adapter.config.get("r", 8), adapter.config.get("lora_alpha", 8))
    replaced = sorted({name.rpartition(".")[0] for name in adapter.replaced})
    kept = {name: value for name, value in adapter.config.items() if value is not None}
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping", "fan_in_fan_out"):
        kept.pop(name, None)
    return {
        **kept,
        "task_type": "CAUSAL_LM" if kept.get("task_type") in (None, "SEQ_2_SEQ_LM") else kept["task_type"],
        "target_modules": _shortest(adapter.loras, modules, "."),
        "modules_to_save": _shortest(replaced, modules, "") or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern({module: kind[0] for module, kind in kinds.items()}, rank),
        "alpha_pattern": _pattern({module: kind[1] for module, kind in kinds.items()}, alpha),
    }


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _shortest(chosen: Collection[str], modules: Collection[str], before: str) -> list[str]:
    """Names that pick ``chosen`` of ``modules`` and nothing else: last parts where they do, else full names."""
    found = []
    for leaf in sorted({_leaf(module) for module in chosen}):
        mine = {module for module in chosen if _leaf(module) == leaf}
        matched = {module for module in modules if module == leaf or module.endswith(before + leaf)}
        found += [leaf] if matched <= mine else sorted(mine)
    return found


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """The pattern that gives every module its value: by last parts where modules agree, else by full names."""
    found: dict[str, float] = {}
    for leaf in sorted({_leaf(module) for module in values}):
        mine = {module: value for module, value in values.items() if _leaf(module) == leaf}
        if len(set(mine.values())) == 1:
            mine = {leaf: next(iter(mine.values()))}
        found |= {name: value for name, value in sorted(mine.items()) if value != default}
    return found
