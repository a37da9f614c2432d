"""LoRA adapters from one format's modules to another's, by the same tables as the weights, and exact.

A fused module's adapter gives each of its parts the rows of lora_B that are theirs and a copy of lora_A. The other way
round the lora_A of the parts are stacked, unless they are one, and the lora_B stand on the diagonal of a block matrix
in the layout's order of rows; a part without an adapter has rows of zeros. alpha changes so that alpha / rank does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.adapter_files import (
    CONFIG,
    Adapter,
    Lora,
    OpenAdapter,
    StoredLora,
    module_names,
    open_adapter,
    write_adapter,
)
from glmlike.checkpoint.destination import fresh_folder
from glmlike.checkpoint.formats import FormatTable, table_of
from glmlike.checkpoint.headers import TORCH_NAMES
from glmlike.checkpoint.layouts import Layout, Same, same_bits
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import Rule
from glmlike.checkpoint.shards import read_json
from glmlike.checkpoint.streams import Stream, digest, in_memory
from glmlike.checkpoint.through_layouts import to_foreign_streams, to_native_streams
from glmlike.errors import CannotExpressError, CheckpointError, ConfigError
from glmlike.hub_json import FORMATS, Format, Generation, cannot_express, dropped_rows, read_spec
from glmlike.hub_json import detect as detect_config
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

# Heads of transformers' own classes, on top of the decoder: their names are the same in all formats that have them.
_HEADS = ("score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias")
_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_READ = 2**20
_WITH_HEADS = ("glmlike", "glm", "glm4", "llama", "qwen2")


@dataclass(frozen=True)
class AdapterReport:
    """What a conversion of an adapter did: both ends, the modules adapted on either side, and the ranks written."""

    source: Path
    destination: Path
    source_format: Format
    target_format: Format
    source_modules: int
    target_modules: int
    ranks: tuple[int, ...]
    saved_tensors: int


@dataclass(frozen=True)
class Names:
    """The modules and tensors of one format for one decoder, its head with a tensor of its own where it can have one.

    An adapter may change a head that is tied to the embedding, since its change is a matrix of its own.
    """

    table: FormatTable
    spec: DecoderSpec

    @property
    def untied(self) -> DecoderSpec:
        """The decoder with a head of its own."""
        return self.spec.replace(tie_word_embeddings=False)

    @property
    def steps(self) -> list[Rule]:
        """The plan of the untied decoder."""
        return self.table.steps(self.untied)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor with its shape."""
        return self.table.foreign_shapes(self.untied)

    @property
    def modules(self) -> set[str]:
        """Every module that holds a tensor."""
        return {name.rpartition(".")[0] for name in self.shapes}

    def knows(self, adapter: OpenAdapter) -> bool:
        """Whether every module of the adapter is one of these."""
        return self.first_unknown(adapter) is None

    def first_unknown(self, adapter: OpenAdapter) -> str | None:
        """The first name of the adapter that is not one of these."""
        known = {*self.shapes, *(_HEADS if self.table.name in _WITH_HEADS else ())}
        needed = [*(f"{module}.weight" for module in adapter.loras), *adapter.saved]
        return next((name for name in sorted(needed) if name not in known), None)

    def resized(self, adapter: OpenAdapter) -> Names:
        """These names for the vocabulary that the adapter's embedding or head has (tokens may have been added)."""
        shapes = self.shapes
        for step in self.steps:
            if step.native[0] in ("model.embed_tokens.weight", "lm_head.weight"):
                (name,) = step.foreign
                found = adapter.saved.get(name)
                if found is not None and found.shape[0] != shapes[name][0]:
                    rows = self.spec.vocab_size + found.shape[0] - shapes[name][0]
                    return replace(self, spec=self.spec.replace(vocab_size=rows))
        return self

    def require_shapes(self, adapter: OpenAdapter) -> None:
        """The adapter's matrices fit. Raises CheckpointError with the first that does not and both shapes."""
        shapes = self.shapes
        for module, lora in adapter.loras.items():
            _require_shape(adapter, module, lora.shape, shapes[f"{module}.weight"])
            across = lora.shape[1] if lora.embedding else lora.shape[0]
            for what, part in (("magnitudes", lora.magnitude), ("bias", lora.bias)):
                if part is not None:
                    _require_shape(adapter, f"{module} ({what})", (math.prod(part.shape),), (across,))
        for name, tensor in adapter.saved.items():
            if name in shapes:
                _require_shape(adapter, name, tuple(tensor.shape), shapes[name])


def _require_shape(adapter: OpenAdapter, what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise CheckpointError(
            f"{adapter.folder}: {what!r} is for a matrix {list(found)}, but the base has {list(expected)} there. The "
            "adapter was trained on another model; pass that as the base."
        )


def find_names(
    adapter: OpenAdapter, spec: DecoderSpec, first: Format, rows_dropped: int = 0
) -> tuple[OpenAdapter, Names]:
    """The adapter under full names, and the names of the format whose modules it adapts; ``first`` is tried first.

    Raises:
        CheckpointError: its modules are of no format's decoder of this spec, or have other shapes.
    """
    formats = [first, *(fmt for fmt in FORMATS if fmt != first and not cannot_express(spec, fmt))]
    tried = [Names(table_of(fmt, rows_dropped if fmt == "chatglm-6b" else 0), spec) for fmt in formats]
    for names in tried:
        for prefix in dict.fromkeys(("", "model.", names.table.prefix)):
            whole = adapter.renamed(prefix) if prefix else adapter
            if names.knows(whole):
                names = names.resized(whole)
                names.require_shapes(whole)
                return whole, names
    unknown = tried[0].first_unknown(adapter)
    raise CheckpointError(
        f"{adapter.folder}: {unknown!r} is no tensor of this decoder in any of {', '.join(formats)}. The adapter was "
        "trained on another kind of model; pass that as the base."
    )


@dataclass(frozen=True)
class NativePart:
    """What an adapter adds to one native module, unread: the part ``at`` of what it adds to a module of ``layout``."""

    whole: StoredLora
    layout: Layout
    at: int = 0

    def load(self) -> Lora | None:
        """The part in memory; None where the adapter adds nothing to it (:func:`split`)."""
        return split(self.whole.load(), self.layout)[self.at]


@dataclass(frozen=True)
class NativeAdapter:
    """An adapter by native names, its numbers still in its file."""

    folder: Path
    loras: Mapping[str, NativePart]
    saved: Mapping[str, Stream]
    replaced: Set[str]


def in_native_names(adapter: OpenAdapter, names: Names) -> NativeAdapter:
    """The adapter on native modules, unread."""
    loras: dict[str, NativePart] = {}
    saved = {name: stream for name, stream in adapter.saved.items() if name in _HEADS}
    replaced = {name for name in adapter.replaced if name in _HEADS}
    shapes = native_shapes(names.untied)
    for step in names.steps:
        (foreign,) = step.foreign
        module, _, kind = foreign.rpartition(".")
        if kind == "weight" and module in adapter.loras:
            for at, name in enumerate(step.native):
                loras[name.removesuffix(".weight")] = NativePart(adapter.loras[module], step.layout, at)
        if foreign in adapter.saved:
            made = to_native_streams(step.layout, [adapter.saved[foreign]], [shapes[name] for name in step.native])
            saved |= dict(zip(step.native, made, strict=True))
            replaced |= set(step.native) if foreign in adapter.replaced else set()
    return NativeAdapter(adapter.folder, loras, saved, replaced)


def to_native(adapter: OpenAdapter, names: Names) -> Adapter:
    """The adapter on native modules, its low-rank matrices in memory."""
    unread = in_native_names(adapter, names)
    loras = {module: lora for module, part in unread.loras.items() if (lora := part.load()) is not None}
    return Adapter(adapter.folder, adapter.config, loras, unread.saved, unread.replaced)


def to_foreign(adapter: Adapter, names: Names) -> Adapter:
    """A native adapter on the modules of a format.

    Raises:
        CannotExpressError: a module has no place in the format, or only part of a fused matrix is adapted in a way
            that the whole cannot be.
    """
    heads = _HEADS if names.table.name in _WITH_HEADS else ()
    loras: dict[str, Lora] = {}
    saved = {name: tensor for name, tensor in adapter.saved.items() if name in heads}
    replaced = {name for name in adapter.replaced if name in heads}
    used: set[str] = set(saved)
    shapes = native_shapes(names.untied)
    for step in names.steps:
        (foreign,) = step.foreign
        used |= set(step.native)
        members = [adapter.loras.get(name.removesuffix(".weight")) for name in step.native]
        if any(members):
            try:
                fused = fuse(members, [shapes[name][0] for name in step.native], step.layout)
            except CheckpointError as error:
                raise CannotExpressError(f"{adapter.folder}: {foreign!r} in {names.table.name!r}: {error}.") from None
            loras[foreign.removesuffix(".weight")] = fused
        present = [name for name in step.native if name in adapter.saved]
        if present and len(present) < len(step.native):
            raise CannotExpressError(
                f"{adapter.folder}: {foreign!r} in {names.table.name!r} is one tensor of {', '.join(step.native)}, of "
                f"which the adapter saves only {', '.join(present)}. Merge the adapter, or save all of them."
            )
        if present:
            (saved[foreign],) = to_foreign_streams(step.layout, [adapter.saved[name] for name in step.native])
            replaced |= {foreign} if present[0] in adapter.replaced else set()
    left = sorted({*(f"{module}.weight" for module in adapter.loras), *adapter.saved} - used)
    if left:
        raise CannotExpressError(
            f"{adapter.folder}: {left[0]!r} has no place in the format {names.table.name!r}. Keep the adapter in a "
            "format that has one, such as 'glmlike'."
        )
    return replace(adapter, loras=loras, saved=saved, replaced=replaced)


def split(lora: Lora, layout: Layout) -> list[Lora | None]:
    """The adapters of a fused module's parts; columns that do nothing in a part are left out of it.

    A part to which a trained adapter adds nothing has none (None): it is how a part without one was fused.
    """
    rows = layout.to_native([lora.rows])
    if lora.embedding:  # its magnitudes are of columns
        if lora.magnitude is not None and rows[0].shape != lora.rows.shape:
            raise CheckpointError("DoRA on an embedding whose rows are dropped has no exact form: its norms are of all")
        return [replace(lora, rows=rows[0])]
    magnitudes = _each(layout, lora.magnitude)
    biases = _each(layout, lora.bias)
    trained = bool(lora.rows.any()) and layout.natives > 1
    found: list[Lora | None] = []
    for part, magnitude, bias in zip(rows, magnitudes, biases, strict=True):
        own = replace(lora, rows=part, magnitude=magnitude, bias=bias)
        kept = part.any(0)
        if trained and not kept.any() and magnitude is None and (bias is None or not bias.any()):
            found.append(None)
        elif trained and kept.any() and not kept.all():
            found.append(own.with_product(part[:, kept], lora.shared[kept], lora.scaling))
        else:
            found.append(own)
    return found


def _each(layout: Layout, vector: Tensor | None) -> Sequence[Tensor | None]:
    return [None] * layout.natives if vector is None else layout.to_native([vector])


def fuse(members: Sequence[Lora | None], sizes: Sequence[int], layout: Layout) -> Lora:
    """The adapter of a fused module from those of its parts, which have ``sizes`` rows; the inverse of ``split``.

    Raises:
        CheckpointError: the parts' scalings differ by other than powers of two, or some have DoRA magnitudes and others
            nothing, whose magnitudes would be the norms of the base's rows.
    """
    import torch

    present = [member for member in members if member is not None]
    first = present[0]
    if layout.natives == 1:
        if layout != Same():
            layout.to_foreign([first.rows])  # says why there is no way back
        return first
    if first.magnitude is not None and len(present) < len(members):
        raise CheckpointError("DoRA on some of its parts and nothing on the others has no exact form on the whole")
    factor = min(member.scaling for member in present)
    rescaled = [None if member is None else _rescaled(member, factor) for member in members]
    one = all(same_bits(first.shared, member.shared) for member in present)
    total = first.rank if one else sum(member.rank for member in present)
    blocks, at = [], 0
    for member, size in zip(rescaled, sizes, strict=True):
        block = first.rows.new_zeros(size, total)
        if member is not None:
            start = 0 if one else at
            block = block.to(torch.promote_types(block.dtype, member.rows.dtype))
            block[:, start : start + member.rank] = member.rows
            at += member.rank
        blocks.append(block)
    shared = first.shared if one else torch.cat([member.shared for member in present])
    return first.with_product(
        layout.to_foreign(blocks)[0],
        shared,
        factor,
        magnitude=_joined(layout, rescaled, sizes, lambda lora: lora.magnitude),
        bias=_joined(layout, rescaled, sizes, lambda lora: lora.bias),
    )


def _joined(
    layout: Layout, members: Sequence[Lora | None], sizes: Sequence[int], part: Callable[[Lora], Tensor | None]
) -> Tensor | None:
    vectors = [None if member is None else part(member) for member in members]
    like = next((vector for vector in vectors if vector is not None), None)
    if like is None:
        return None
    whole = [like.new_zeros(size) if v is None else v for v, size in zip(vectors, sizes, strict=True)]
    return layout.to_foreign(whole)[0]


def _rescaled(lora: Lora, factor: float) -> Lora:
    """The same change with the scaling ``factor``: what the scaling loses, the rows gain, by a power of two."""
    ratio = lora.scaling / factor
    if ratio == 1:
        return lora
    rows = lora.rows * ratio
    if math.frexp(ratio)[0] != 0.5 or not same_bits(rows / ratio, lora.rows):
        raise CheckpointError(
            f"its parts are scaled by {lora.scaling!r} and {factor!r} (alpha / rank); one scaling for both would round "
            "the numbers"
        )
    return replace(lora, rows=rows, bias=None if lora.bias is None else lora.bias * ratio)


def convert_adapter(
    src: str | Path,
    dst: str | Path,
    *,
    to: Format,
    base: str | Path | None = None,
    base_name: str | None = None,
    generation: Generation | None = None,
) -> AdapterReport:
    """Write the LoRA adapter in ``src`` to the new folder ``dst``, on the modules of the format ``to``, exactly.

    ``base`` is the folder whose config.json describes the decoder (default: the folder that adapter_config.json names);
    no weights are read from it, and the adapter may be of another format than the base. ``base_name`` is what the new
    adapter_config.json names as its base (default: what the old one does). Fused to split keeps the rank; split to
    fused adds the ranks of the parts up, unless they share one lora_A. Target modules, ranks, alphas and
    modules_to_save are written anew from what the adapter holds; optimizer states and other files are not copied.
    A PEFT prefix becomes a P-tuning folder (``to="glmlike"``: :func:`glmlike.ptuning.from_peft`).

    Raises:
        ConfigError: no LoRA adapter, no config.json of a base, or ``to`` is no format.
        CheckpointError: the adapter is damaged, or for another decoder than the base, or ``dst`` is not empty.
        CannotExpressError: ``to`` has no modules for what the adapter changes.
    """
    if to not in FORMATS:
        raise ConfigError(f"to={to!r}: expected one of {', '.join(FORMATS)}.")
    source = Path(src)
    _refuse_prefix_folder(source)
    if read_json(source / CONFIG).get("peft_type") == "PREFIX_TUNING":
        return _convert_prefix(source, Path(dst), to, base, generation)
    read = open_adapter(source)
    config, path = _base_config(source, read.config, base)
    spec = read_spec(config, path, generation=generation)
    adapter, names = find_names(read, spec, detect_config(config, path), dropped_rows(config))
    reason = cannot_express(names.spec, to)
    if reason:
        raise CannotExpressError(f"{to!r} has no way to say {', '.join(reason)}. Choose the format of the base.")
    native = to_native(adapter, names)
    target = Names(table_of(to), names.spec)
    written = native if to == "glmlike" else to_foreign(native, target)
    if base_name is not None:
        written = replace(written, config={**written.config, "base_model_name_or_path": base_name})
    with fresh_folder(Path(dst), source) as partial:
        write_adapter(partial, written, target.modules)
    return AdapterReport(
        source=source,
        destination=Path(dst),
        source_format=names.table.name,
        target_format=to,
        source_modules=len(adapter.loras),
        target_modules=len(written.loras),
        ranks=tuple(sorted({lora.rank for lora in written.loras.values()})),
        saved_tensors=len(written.saved),
    )


def _refuse_prefix_folder(folder: Path) -> None:
    if not (folder / CONFIG).exists() and any((folder / name).exists() for name in _MODEL_FILES):
        raise ConfigError(
            f"{folder}: has no {CONFIG}. If it holds a P-tuning prefix, glmlike.ptuning.load_prefix puts that onto its "
            "base as it is, and glmlike.ptuning.to_peft makes a PEFT adapter of it."
        )


def _convert_prefix(
    source: Path, target: Path, to: Format, base: str | Path | None, generation: Generation | None
) -> AdapterReport:
    if to != "glmlike":
        raise ConfigError(f"to={to!r} with a PEFT prefix, which has no modules: expected 'glmlike', a P-tuning folder.")
    _, path = _base_config(source, read_json(source / CONFIG), base)
    # By name: ptuning is the model's room, and stands on this one.
    import_module("glmlike.ptuning").from_peft(source, Path(path).parent, target, generation=generation)
    return AdapterReport(source, target, "glmlike", to, 0, 0, (), 1)


def _base_config(folder: Path, adapter: Mapping[str, Any], base: str | Path | None) -> tuple[dict[str, Any], str]:
    named = base or adapter.get("base_model_name_or_path")
    if not named or not (Path(named) / "config.json").is_file():
        raise ConfigError(
            f"{folder / CONFIG}: names the base {named!r}, which is no local folder with a config.json. Pass "
            "base, the folder of the model (config.json is enough)."
        )
    path = Path(named) / "config.json"
    return read_json(path), str(path)


def write_native(folder: Path, spec: DecoderSpec, target: Path) -> bool:
    """Write the LoRA adapter in ``folder`` onto native modules to ``target``; False where it needs no translation.

    Raises:
        ConfigError, CheckpointError: as :func:`convert_adapter`.
    """
    native = Names(table_of("glmlike"), spec)
    if read_json(folder / CONFIG).get("peft_type") != "LORA" or _needs_no_translation(folder, native):
        return False
    adapter, names = find_names(open_adapter(folder), spec, "glmlike")
    with fresh_folder(target, folder) as partial:
        write_adapter(partial, to_native(adapter, names), native.modules)
    return True


def _needs_no_translation(folder: Path, native: Names) -> bool:
    """Whether none of its modules is another format's alone: PEFT then loads the adapter as it is."""
    tables = [Names(table_of(fmt), native.spec) for fmt in FORMATS if not cannot_express(native.spec, fmt)]
    foreign = {name.removeprefix(cut) for names in tables for name in names.modules for cut in ("", names.table.prefix)}
    return module_names(folder).isdisjoint(foreign - native.modules)


def fingerprint(native: NativeAdapter) -> tuple[str, NativeAdapter]:
    """The sha256 of an adapter, of its numbers and scalings whatever format it was in; and the adapter without the
    modules to which it adds nothing. One module at a time is in memory.
    """
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(_READ))

    def add(name: str, stream: Stream) -> None:
        hasher.update(f"{name} torch.{TORCH_NAMES[stream.dtype]} {tuple(stream.shape)}".encode())
        digest(stream, hasher, buffer)

    used = {}
    for module, part in sorted(native.loras.items()):
        lora = part.load()
        if lora is None:
            continue
        used[module] = part
        hasher.update(f"{module} {lora.scaling!r} {lora.embedding}".encode())
        for kind in ("rows", "shared", "magnitude", "bias"):
            tensor = getattr(lora, kind)
            if tensor is not None:
                add(kind, in_memory(tensor))
    for name, stream in sorted(native.saved.items()):
        add(name, stream)
    return hasher.hexdigest(), replace(native, loras=used)
