"""LoRA adapters into the weights of their base, one tensor at a time: the model is never in memory as a whole.

The numbers are those of PEFT's ``merge_and_unload`` on a model that PEFT loaded the adapter onto with its defaults:
the change is computed in float32 (PEFT loads half-precision adapters as float32), added in float32, and rounded once
to the dtype of the base (peft/tuners/lora/layer.py ``merge``, dora.py ``get_weight_norm``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint import provenance
from glmlike.checkpoint.adapter_files import Adapter, Lora, read_adapter
from glmlike.checkpoint.adapters import find_names, fingerprint, to_native
from glmlike.checkpoint.companions import carried, copy_companions, undefaulted_tokens
from glmlike.checkpoint.destination import fresh_folder
from glmlike.checkpoint.detection import Detection, detect
from glmlike.checkpoint.detection import to_native as read_native
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import by_native
from glmlike.checkpoint.shards import open_checkpoint, parse_size, write_shards
from glmlike.checkpoint.streams import digest, in_memory
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import FORMATS, Format, Generation, cannot_express, dropped_rows, write_config
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_READ = 2**20
_BLOCK = 1 << 24  # numbers of a matrix that are float32 at a time


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: the ends, how many tensors are of the adapters, and the sha256 of each adapter's numbers."""

    base: Path
    adapters: tuple[Path, ...]
    destination: Path
    base_format: Format
    target_format: Format
    tensors: int
    changed: int
    adapters_sha256: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


@dataclass
class _Merge:
    """Adapters on native modules, in the order they are merged, and what of the base each native tensor becomes."""

    source: Detection
    spec: DecoderSpec
    adapters: Sequence[Adapter]
    changed: set[str] = field(default_factory=set)

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """The native tensor ``name`` of the base with every adapter in it."""
        module, _, kind = name.rpartition(".")
        for adapter in self.adapters:
            if name in adapter.saved:
                tensor = adapter.saved[name].to(tensor.dtype)
                self.changed.add(name)
            lora = adapter.loras.get(module)
            if lora is None:
                continue
            if kind == "weight":
                tensor = merged_weight(tensor, lora)
                self.changed.add(name)
            elif kind == "bias" and lora.bias is not None:
                tensor = (tensor + _wide(lora.bias) * lora.scaling).to(tensor.dtype)
                self.changed.add(name)
        return tensor

    @property
    def unties(self) -> bool:
        """Whether the result has a head of its own and the base has none."""
        return self.source.spec.tie_word_embeddings and not self.spec.tie_word_embeddings

    def foreign(self, to: Format) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the result in the format ``to``, step by step; a native tensor is let go once used."""
        makers = by_native(self.source.table.steps(self.source.spec))
        ready: dict[str, Tensor] = {}
        for step in TABLES[to].steps(self.spec):
            for name in step.native:
                origin = f"{_EMBEDDING}.weight" if name == f"{_HEAD}.weight" and self.unties else name
                if name not in ready:
                    maker = makers[origin]
                    made = dict(zip(maker.native, read_native(self.source, maker), strict=True))
                    ready |= {name: made.pop(origin), **(made if origin == name else {})}
            native = [self.merged(name, ready.pop(name)) for name in step.native]
            yield from zip(step.foreign, step.layout.to_foreign(native), strict=True)


def merged_weight(weight: Tensor, lora: Lora) -> Tensor:
    """The matrix of the base with the change of ``lora`` in it, in the base's dtype; computed by blocks of rows.

    With DoRA every row (of an embedding: every column) is scaled from its norm to the adapter's magnitude.
    """
    import torch

    shared = _wide(lora.shared)
    magnitude = None if lora.magnitude is None else _wide(lora.magnitude)
    rows = max(1, _BLOCK // weight.shape[1]) if magnitude is None or not lora.embedding else weight.shape[0]
    merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for at in range(0, weight.shape[0], rows):
        part = slice(at, at + rows)
        change = (_wide(lora.rows[part]) @ shared) * lora.scaling
        if lora.embedding and magnitude is None:
            change = change.to(weight.dtype)  # PEFT rounds the change of an embedding, and of nothing else
        whole = weight[part] + change
        if magnitude is not None:
            norm = torch.linalg.norm(whole, dim=0 if lora.embedding else 1)
            factor = magnitude / norm if lora.embedding else (magnitude[part] / norm).view(-1, 1)
            whole = whole * factor
        merged[part] = whole.to(weight.dtype)
    return merged


def _wide(tensor: Tensor) -> Tensor:
    """As PEFT loads an adapter: half precision becomes float32."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    dst: str | Path,
    *,
    to: Format | None = None,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    max_shard_size: str | int = "5GB",
    force: bool = False,
) -> MergeReport:
    """Write ``base`` with the LoRA ``adapter`` merged into its weights to the new folder ``dst``, in the format ``to``.

    ``to`` is the base's own format by default; the adapter may be of another format than either. Of several adapters
    each is merged into the result of those before it. One shard and one matrix are in memory at a time. rsLoRA, DoRA,
    ranks and alphas by module, lora_bias, trained biases, embeddings and modules_to_save are merged as PEFT does.

    An adapter that changes only one of a tied embedding and head gives a result with a head of its own: this is what
    the adapter computes. Every tensor is read back from ``dst`` and its sha256 compared before ``dst`` appears. The
    result's ``glmlike.json`` holds the sha256 of what was merged; the same adapter is not merged into it again, unless
    ``force``.

    Raises:
        ConfigError: the base or the adapter is not what it should be, or ``to`` is no format that can be written here.
        CheckpointError: damaged files, an adapter for another decoder, or one that the base holds already.
        CannotExpressError: the result cannot be said in ``to``.
    """
    started = time.perf_counter()
    limit = parse_size(max_shard_size)
    source = detect(base, generation=generation, spec=spec)
    if source.format not in FORMATS:
        raise ConfigError(f"{base}: adapters are merged into a checkpoint's folder. Convert this file to one first.")
    target: Format = source.format if to is None else to
    if target not in FORMATS or TABLES[target].splits:
        allowed = ", ".join(fmt for fmt in FORMATS if not TABLES[fmt].splits)
        raise ConfigError(f"to={target!r}: expected one of {allowed}. Rank files are written by `glmlike convert`.")
    folders = [Path(adapter)] if isinstance(adapter, (str, Path)) else [Path(one) for one in adapter]
    if not folders:
        raise ConfigError("no adapter: expected the folder of at least one.")
    adapters, decoder = _read_all(folders, source)
    digests = tuple(fingerprint(one) for one in adapters)
    before = provenance.earlier_record(source.folder)
    merged = _new_adapters(source.folder, before, digests, folders, force)
    decoder, note = _untied(adapters, decoder, target)
    job = _Merge(source, decoder, adapters)
    config = {**undefaulted_tokens(target), **carried(source), **write_config(decoder, target)}
    identity = _identity(source, config, digests, limit)
    with fresh_folder(Path(dst), source.folder) as partial:
        digests_of: dict[str, str] = {}
        index = write_shards(partial, _hashed(job.foreign(target), digests_of), limit)
        written = require_written(partial, digests_of)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
        origin, hashes = provenance.origin_of(source.folder), source_hashes(source)
        record = provenance.record(origin, source.format, target, identity, hashes, written, before, merged)
        (partial / provenance.RECORD).write_text(record, encoding="utf8")
        copy_companions(source.folder, partial)
    return MergeReport(
        base=source.folder,
        adapters=tuple(folders),
        destination=Path(dst),
        base_format=source.format,
        target_format=target,
        tensors=len(index["weight_map"]),
        changed=len(job.changed),
        adapters_sha256=digests,
        notes=(*source.notes, *note),
        seconds=time.perf_counter() - started,
    )


def _read_all(folders: Sequence[Path], source: Detection) -> tuple[list[Adapter], DecoderSpec]:
    """The adapters on native modules, checked against the base, and the decoder with the tokens that they add."""
    adapters, spec = [], source.spec
    for folder in folders:
        adapter, names = find_names(read_adapter(folder), spec, source.format, dropped_rows(source.config))
        native = to_native(adapter, names)
        _require_mergeable(native, names.spec, spec)
        adapters.append(native)
        spec = names.spec
    return adapters, spec


def _require_mergeable(native: Adapter, resized: DecoderSpec, spec: DecoderSpec) -> None:
    tables = {f"{_EMBEDDING}.weight"} | (set() if spec.tie_word_embeddings else {f"{_HEAD}.weight"})
    if resized != spec and tables - native.saved.keys():
        raise CheckpointError(
            f"{native.folder}: is for {resized.vocab_size} tokens, the base has {spec.vocab_size}, and the adapter "
            f"does not hold {', '.join(sorted(tables - native.saved.keys()))}. Save it with save_embedding_layers=True."
        )
    shapes = native_shapes(resized.replace(tie_word_embeddings=False))
    for module, lora in native.loras.items():
        if lora.bias is not None and f"{module}.bias" not in shapes:
            raise CheckpointError(
                f"{native.folder}: lora_bias on {module!r}, where the base has no bias to add it to. Such an adapter "
                "cannot be merged; use it with PEFT."
            )
    left = sorted(name for name in native.saved if name not in shapes)
    if left:
        raise CheckpointError(
            f"{native.folder}: saves {left[0]!r}, a head that a language model's files have no place for. Merge it "
            "with PEFT's merge_and_unload on the classifier."
        )


def _untied(adapters: Sequence[Adapter], spec: DecoderSpec, to: Format) -> tuple[DecoderSpec, tuple[str, ...]]:
    """The decoder of the result: with a head of its own where an adapter tells embedding and head apart."""
    reasons = cannot_express(spec, to)
    if spec.tie_word_embeddings and any(_tells_apart(adapter) for adapter in adapters):
        spec = spec.replace(tie_word_embeddings=False)
        no_head = f"{_HEAD}.weight" not in {name for step in TABLES[to].steps(spec) for name in step.native}
        reasons = cannot_express(spec, to) or (["a head of its own"] if no_head else [])
        if not reasons:
            return spec, ("the head is no longer tied to the embedding: the adapter changes only one of them",)
    if reasons:
        raise CannotExpressError(
            f"{to!r} has no way to say {', '.join(reasons)}. Pass to='glmlike', or another format that has."
        )
    return spec, ()


def _tells_apart(adapter: Adapter) -> bool:
    """Whether embedding and head of a tied model differ once the adapter is in them."""
    import torch

    pair = [adapter.saved.get(f"{module}.weight") for module in (_EMBEDDING, _HEAD)]
    loras = [adapter.loras.get(module) for module in (_EMBEDDING, _HEAD)]
    if all(lora is None for lora in loras):
        if pair[1] is None:
            return pair[0] is not None and f"{_EMBEDDING}.weight" in adapter.replaced
        return pair[0] is None or not torch.equal(*pair)  # type: ignore[arg-type]
    return True


def _new_adapters(
    base: Path, before: Mapping[str, Any] | None, digests: Sequence[str], folders: Sequence[Path], force: bool
) -> list[dict[str, str]]:
    """What the record will say of the adapters. Raises CheckpointError if the base's has one of them already."""
    held = {entry.get("sha256") for entry in provenance.merged_adapters(before)}
    for sha256, folder in zip(digests, folders, strict=True):
        if sha256 in held and not force:
            raise CheckpointError(
                f"{folder}: is merged into {base} already (sha256 {sha256[:12]}… in its {provenance.RECORD}). Merge it "
                "into the base it was trained on, or pass force to add it once more."
            )
        held.add(sha256)
    return [{"name": folder.name, "sha256": sha256} for folder, sha256 in zip(folders, digests, strict=True)]


def _identity(source: Detection, config: dict[str, Any], digests: Sequence[str], limit: int) -> str:
    """What tells this merge from another, as a plan's identity tells a conversion."""
    files = provenance.identity(list(source.checkpoint.files), source.folder)
    origin = provenance.origin_of(source.folder).to_dict()
    facts = {"version": provenance.version(), "files": files, "origin": origin, "config": config}
    return provenance.sha256_of({**facts, "adapters": list(digests), "limit": limit})


def source_hashes(source: Detection) -> provenance.Hashes:
    """The sha256 of every tensor of the base's files."""
    checkpoint, buffer = source.checkpoint, memoryview(bytearray(_READ))
    parts = dict.fromkeys(part for name in checkpoint.tensors for part in checkpoint.parts(name))
    return {
        (path.relative_to(source.folder).as_posix(), name): digest(
            checkpoint.stored(path, name), hashlib.sha256(), buffer
        )
        for path, name in parts
    }


def _digest(tensor: Tensor) -> str:
    return digest(in_memory(tensor), hashlib.sha256(), memoryview(bytearray(_READ)))


def _hashed(tensors: Iterator[tuple[str, Tensor]], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name!r} of the merged model is not finite. The adapter or the base is broken.")
        digests[name] = _digest(tensor)
        yield name, tensor


def require_written(folder: Path, digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The hashes of what stands in the files, by file, once they are those of what was to be written."""
    checkpoint, buffer = open_checkpoint(folder), memoryview(bytearray(_READ))
    found = {name: digest(checkpoint.stream(name), hashlib.sha256(), buffer) for name in checkpoint.tensors}
    wrong = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
    if wrong:
        raise CheckpointError(f"{wrong[:1]}: the file does not hold what was written to it. Check the disk, run again.")
    by_file: dict[str, dict[str, str]] = {}
    for name, info in checkpoint.tensors.items():
        by_file.setdefault(info.file.name, {})[name] = found[name]
    return by_file
