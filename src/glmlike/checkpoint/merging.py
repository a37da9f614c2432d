"""LoRA adapters into the weights of their base, a stretch at a time: a plan like a conversion's, whose numbers change.

Neither the model, nor a tensor, nor the adapter is in memory as a whole; :mod:`glmlike.checkpoint.merged` says what
the numbers are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

from glmlike.checkpoint import provenance
from glmlike.checkpoint.adapter_files import open_adapter
from glmlike.checkpoint.adapters import NativeAdapter, find_names, fingerprint, in_native_names
from glmlike.checkpoint.companions import carried, undefaulted_tokens
from glmlike.checkpoint.convert import Watch, run_plan
from glmlike.checkpoint.destination import require_apart, require_new
from glmlike.checkpoint.detection import Detection, detect, native_streams, require_equal_copies
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.merged import Merged, Shifted
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.plan import Change, Plan, Verify, make_plan
from glmlike.checkpoint.shards import parse_size
from glmlike.checkpoint.streams import FLOATS, Cast, Stream, first_difference
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import FORMATS, Format, Generation, cannot_express, dropped_rows, write_config
from glmlike.spec import DecoderSpec

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_COMPARED = 2**20  # bytes of two tensors in memory at a time


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: the ends, how many tensors the adapters changed, and the sha256 of each adapter's numbers.

    ``tensors`` and ``bytes`` are those written, ``resumed`` the tensors that an interrupted run had written; ``verify``
    says how the result was read back.
    """

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
    bytes: int = 0
    resumed: int = 0
    verify: Verify = "hash"


def _merged(
    adapters: Sequence[NativeAdapter], native: Mapping[str, Stream], origins: Mapping[str, str]
) -> dict[str, Stream]:
    """The native tensors of the base with every adapter in them, one after the other."""
    whole = {**native, **{name: native[origin] for name, origin in origins.items()}}
    return {name: _with_adapters(adapters, name, stream) for name, stream in whole.items()}


def _with_adapters(adapters: Sequence[NativeAdapter], name: str, stream: Stream) -> Stream:
    module, _, kind = name.rpartition(".")
    dtype = stream.dtype
    for adapter in adapters:
        if name in adapter.saved:
            saved = adapter.saved[name]
            stream = saved if saved.dtype == dtype or dtype not in FLOATS else Cast(saved, dtype)
        part = adapter.loras.get(module)
        if part is not None and kind == "weight":
            stream = Merged(stream, part)
        elif part is not None and kind == "bias" and part.whole.bias is not None:
            stream = Shifted(stream, part)
    return stream


@overload
def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    dst: str | Path,
    *,
    to: Format | None = ...,
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    max_memory: str | int | None = ...,
    workers: int | None = ...,
    verify: Verify | None = ...,
    force: bool = ...,
    resume: bool = ...,
    watch: Watch | None = ...,
    dry_run: Literal[False] = ...,
) -> MergeReport: ...


@overload
def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    dst: str | Path,
    *,
    to: Format | None = ...,
    generation: Generation | None = ...,
    spec: str | DecoderSpec | None = ...,
    max_shard_size: str | int = ...,
    max_memory: str | int | None = ...,
    workers: int | None = ...,
    verify: Verify | None = ...,
    force: bool = ...,
    resume: bool = ...,
    watch: Watch | None = ...,
    dry_run: Literal[True],
) -> Plan: ...


def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    dst: str | Path,
    *,
    to: Format | None = None,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    max_shard_size: str | int = "5GB",
    max_memory: str | int | None = None,
    workers: int | None = None,
    verify: Verify | None = None,
    force: bool = False,
    resume: bool = False,
    watch: Watch | None = None,
    dry_run: bool = False,
) -> MergeReport | Plan:
    """Write ``base`` with the LoRA ``adapter`` merged into its weights to the new folder ``dst``, in the format ``to``.

    ``to`` is the base's own format by default; the adapter may be of another format than either. Of several adapters
    each is merged into the result of those before it. rsLoRA, DoRA, ranks and alphas by module, lora_bias, trained
    biases, embeddings and modules_to_save are merged as PEFT does; adapters of other kinds are refused.

    An adapter that changes only one of a tied embedding and head gives a result with a head of its own: this is what
    the adapter computes. The result's ``glmlike.json`` holds the sha256 of what was merged; the same adapter is not
    merged into it again, unless ``force``.

    ``max_memory``, ``workers``, ``verify`` ("hash" or "none"), ``resume``, ``watch`` and ``dry_run`` are those of
    :func:`~glmlike.checkpoint.convert.convert`: a tensor's rows are read, changed, hashed and written in stretches, so
    the bound holds whatever the size of a shard or a tensor; an interrupted merge is resumed; every tensor is read back
    and its hash compared before ``dst`` appears.

    Raises:
        ConfigError: the base or the adapter is not what it should be, or ``to`` is no format that can be written here.
        CheckpointError: damaged files, an adapter for another decoder, or one that the base holds already; ``dst`` is
            taken or its disk too small; what was interrupted was another merge.
        CannotExpressError: the result cannot be said in ``to``.
    """
    started = time.perf_counter()
    if verify not in (None, "none", "hash"):
        raise ConfigError(f"verify={verify!r}: expected 'hash' or 'none', since a merge has no way back.")
    limit = parse_size(max_shard_size)
    source = detect(base, generation=generation, spec=spec)
    target = _target(source, to, base)
    folders = [Path(adapter)] if isinstance(adapter, (str, Path)) else [Path(one) for one in adapter]
    if not folders:
        raise ConfigError("no adapter: expected the folder of at least one.")
    require_apart(Path(dst), source.folder)
    for folder in folders:
        require_apart(Path(dst), folder)
    change, digests = _change(source, folders, target, force)
    plan = make_plan(
        source,
        Path(dst),
        TABLES[target],
        {**undefaulted_tokens(target), **carried(source), **write_config(change.spec, target)},
        limit=limit,
        ranks=1,
        dtype=None,
        max_memory=None if max_memory is None else parse_size(max_memory),
        workers=workers,
        verify=verify,
        sha256=None,
        change=change,
    )
    if dry_run:
        return plan
    require_new(plan)
    require_equal_copies(source)
    resumed, tokenizer = run_plan(plan, resume, watch)
    return MergeReport(
        base=source.folder,
        adapters=tuple(folders),
        destination=plan.destination,
        base_format=source.format,
        target_format=target,
        tensors=len(plan.steps),
        changed=len(_changed(source, change)),
        adapters_sha256=digests,
        notes=(*plan.notes, *tokenizer),
        seconds=time.perf_counter() - started,
        bytes=plan.bytes,
        resumed=resumed,
        verify=plan.verify,
    )


def _target(source: Detection, to: Format | None, base: str | Path) -> Format:
    if source.format not in FORMATS:
        raise ConfigError(f"{base}: adapters are merged into a checkpoint's folder. Convert this file to one first.")
    target: Format = source.format if to is None else to
    if target not in FORMATS or TABLES[target].splits:
        allowed = ", ".join(fmt for fmt in FORMATS if not TABLES[fmt].splits)
        raise ConfigError(
            f"to={target!r}: expected one of {allowed}. Rank files and GGUF are written by `glmlike convert`, from the "
            "merged folder."
        )
    return target


def _change(source: Detection, folders: Sequence[Path], target: Format, force: bool) -> tuple[Change, tuple[str, ...]]:
    """What the adapters do to the base, and the sha256 of each; they have been read once."""
    read, decoder = _read_all(folders, source)
    digests, adapters = zip(*(fingerprint(one) for one in read), strict=True)
    recorded = _new_adapters(source.folder, provenance.earlier_record(source.folder), digests, folders, force)
    spec, note = _untied(adapters, decoder, target)
    if decoder.vocab_size > source.spec.vocab_size:
        more = decoder.vocab_size - source.spec.vocab_size
        note += (f"{more} tokens more than the base has: its tokenizer does not know them, copy the one they are of",)
    head, embedding = f"{_HEAD}.weight", f"{_EMBEDDING}.weight"
    origins = {head: embedding} if source.spec.tie_word_embeddings and not spec.tie_word_embeddings else {}
    apply = partial(_merged, adapters, origins=origins)
    return Change(spec, apply, tuple(recorded), origins, note), digests


def _changed(source: Detection, change: Change) -> set[str]:
    """The native tensors that are not the base's own."""
    native = native_streams(source)
    whole = change.apply(native)
    return {name for name, stream in whole.items() if stream is not native.get(change.origins.get(name, name))}


def _read_all(folders: Sequence[Path], source: Detection) -> tuple[list[NativeAdapter], DecoderSpec]:
    """The adapters on native modules, checked against the base, and the decoder with the tokens that they add."""
    adapters, spec = [], source.spec
    for folder in folders:
        adapter, names = find_names(open_adapter(folder), spec, source.format, dropped_rows(source.config))
        native = in_native_names(adapter, names)
        _require_mergeable(native, names.spec, spec)
        adapters.append(native)
        spec = names.spec
    return adapters, spec


def _require_mergeable(native: NativeAdapter, resized: DecoderSpec, spec: DecoderSpec) -> None:
    tables = {f"{_EMBEDDING}.weight"} | (set() if spec.tie_word_embeddings else {f"{_HEAD}.weight"})
    if resized != spec and tables - native.saved.keys():
        raise CheckpointError(
            f"{native.folder}: is for {resized.vocab_size} tokens, the base has {spec.vocab_size}, and the adapter "
            f"does not hold {', '.join(sorted(tables - native.saved.keys()))}. Save it with save_embedding_layers=True."
        )
    shapes = native_shapes(resized.replace(tie_word_embeddings=False))
    for module, part in native.loras.items():
        if part.whole.bias is not None and f"{module}.bias" not in shapes:
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


def _untied(adapters: Sequence[NativeAdapter], spec: DecoderSpec, to: Format) -> tuple[DecoderSpec, tuple[str, ...]]:
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


def _tells_apart(adapter: NativeAdapter) -> bool:
    """Whether embedding and head of a tied model differ once the adapter is in them."""
    left, right = (adapter.saved.get(f"{module}.weight") for module in (_EMBEDDING, _HEAD))
    loras = [adapter.loras.get(module) for module in (_EMBEDDING, _HEAD)]
    if all(lora is None for lora in loras):
        if right is None:
            return left is not None and f"{_EMBEDDING}.weight" in adapter.replaced
        if left is None or (left.dtype, left.shape) != (right.dtype, right.shape):
            return True
        return first_difference([left, right], _COMPARED) is not None
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
    origins = [provenance.origin_of(folder).to_dict() for folder in folders]
    return [{**origin, "sha256": sha256} for origin, sha256 in zip(origins, digests, strict=True)]
