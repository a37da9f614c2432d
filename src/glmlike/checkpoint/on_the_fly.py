"""The format tables, for transformers' loader: the one file that knows its API (5.16 to 5.24).

One mapping serves all formats: their foreign names are disjoint or mean the same, and native names match no pattern and
pass through. Patterns come from the rules; sizes come at load time from the spec of the model that is being filled.
Folders that transformers cannot open at all (rank files) are handed over as native tensors not yet made.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from glmlike.checkpoint.companions import carried
from glmlike.checkpoint.detection import Detection, detect, look, require_whole, to_native
from glmlike.checkpoint.formats import TABLES, table_of
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.layouts import Cropped, Layout
from glmlike.checkpoint.lazy import LazyStep, LazyTensor
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.packed import PackedCheckpoint
from glmlike.checkpoint.packed_configs import is_plain, method_of, read_config
from glmlike.checkpoint.ranked import ranked_format
from glmlike.checkpoint.rules import Rule, scales_of
from glmlike.checkpoint.shards import read_json, tensors_of
from glmlike.checkpoint.sources import weights
from glmlike.checkpoint.streams import torch_dtype
from glmlike.errors import CheckpointError, conversion_failures
from glmlike.hub_json import FUSED_FORMATS, Format, cannot_express, carried_fields, write_config
from glmlike.hub_json import detect as detect_config
from glmlike.spec import DecoderSpec


def register() -> None:
    """Give transformers the mapping for every model whose config says ``glmlike``; safe to repeat."""
    register_checkpoint_conversion_mapping("glmlike", mapping(), overwrite=True)


_DROPPING = "dropping_rows."
_WHERE_ROWS_ARE_DROPPED = {r"^(transformer\.word_embeddings|lm_head)\.(?=weight)": rf"{_DROPPING}\1."}


def key_mapping(dropped_rows: int) -> dict[str, str]:
    """What ``from_pretrained`` needs as ``key_mapping`` for files whose tables begin with ``dropped_rows``.

    ``lm_head.weight`` has its native name in every format, so that only such files can say that its rows are dropped.
    """
    return dict(_WHERE_ROWS_ARE_DROPPED) if dropped_rows else {}


def loading_name(foreign: str, layout: Layout) -> str:
    """The name that ``key_mapping`` gives a foreign tensor; its own, where no rows are dropped."""
    return _DROPPING + foreign if isinstance(layout, Cropped) else foreign


def mapping() -> list[Any]:
    """Every rule of every format whose two sides differ, as a WeightRenaming or a WeightConverter."""
    users: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Format]] = {}
    for name, rule in _with_scales(_rules()):
        sides = _sides(rule)
        if sides[0] != sides[1]:
            users.setdefault(sides, []).append(name)
    return [_compile(tuple(dict.fromkeys(names)), *sides) for sides, names in users.items()]


def open_folder(folder: Path, spec: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The config fields and the native tensors, made when indexed, of a folder that only :func:`detect` can read.

    None for any other folder. ``spec`` is that of :func:`~glmlike.checkpoint.detection.detect`, whose errors are
    raised.
    """
    if ranked_format(folder) is None:
        return None
    found = detect(folder, spec=spec)
    fields = {**write_config(found.spec, "glmlike"), **carried_fields(found.config)}
    return fields, lazy_tensors(found)


def open_packed(
    folder: Path, spec: Any, generation: Any, keeps: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The same of a folder that GPTQ, AWQ or compressed-tensors quantized: its floats.

    None for any other, and for one that transformers loads as it is: the library is there (``keeps(method)``), it can
    compute with these files, and no matrix of them is several of ours.
    """
    path = folder / "config.json"
    if not path.is_file() or not _become_floats(read_json(path), str(folder), keeps):
        return None
    found = look(folder, generation=generation, spec=spec)
    if not isinstance(found.checkpoint, PackedCheckpoint):
        return None
    require_whole(found)
    fields = {**write_config(found.spec, "glmlike"), **carried(found), "dtype": found.dtype_name}
    return fields, lazy_tensors(found)


def fetch_packed(
    repo: str, config: Mapping[str, Any], hub: Mapping[str, Any], keeps: Callable[[str], bool]
) -> Path | None:
    """The folder, in the Hub's cache, of a repository for :func:`open_packed`; None where that would be None.

    ``config`` are the fields of its config.json, ``hub`` arguments of :func:`~glmlike.checkpoint.sources.weights`; the
    commit is that of ``config``.

    Raises:
        ConfigError: it is packed in a way that is not read, or cannot be downloaded.
    """
    if not _become_floats(config, repo, keeps):
        return None
    read_config(config, f"{repo}: config.json")  # what is not read is refused before it is downloaded
    revision = config.get("_commit_hash") or hub.get("revision")
    return weights(repo, **{**hub, "revision": revision})


def _become_floats(config: Mapping[str, Any], where: str, keeps: Callable[[str], bool]) -> bool:
    """Whether matrices are packed and transformers cannot load them as they are: see :func:`open_packed`."""
    method = method_of(config)
    if method is None:
        return False
    plain = method != "compressed-tensors" or is_plain(config)
    return not (keeps(method) and plain and detect_config(dict(config), where) not in FUSED_FORMATS)


def require_readable(path: Path) -> None:
    """Raise CheckpointError if a file that transformers is going to unpickle is not one of plain tensors."""
    tensors_of(require_inside(path, path.parent))


def lazy_tensors(found: Detection) -> dict[str, LazyTensor]:
    """Every native tensor of a folder, none of them made."""
    shapes, dtype = native_shapes(found.spec), getattr(torch, found.dtype_name)
    packed = isinstance(found.checkpoint, PackedCheckpoint)
    tensors: dict[str, LazyTensor] = {}
    for rule in found.table.steps(found.spec):
        step = LazyStep(partial(to_native, found, rule))
        if packed:  # its embedding and norms may be in another
            dtype = torch_dtype(found.stream(rule.foreign[0]).dtype)
        tensors |= {name: LazyTensor(step, at, shapes[name], dtype) for at, name in enumerate(rule.native)}
    return tensors


def _bare(name: str) -> str:
    """A foreign name without the prefix that files of a decoder without its head leave out."""
    return name.removeprefix("glm.")


def _rules() -> Iterator[tuple[Format, Rule]]:
    """The rules of each format for every kind of spec it can express, heads untied (tying happens after loading)."""
    switches = itertools.product(("pre", "sandwich"), (True, False), (True, False), (True, False), _PAIRINGS)
    for residual, qkv, output, mlp, pairing in switches:
        if (output and not qkv) or (residual == "sandwich" and (output or mlp)):
            continue
        spec = _TINY.replace(residual=residual, qkv_bias=qkv, output_bias=output, mlp_bias=mlp, **pairing)
        for name, fmt in TABLES.items():
            if not fmt.splits and not cannot_express(spec, name):  # rank files are never opened by transformers
                yield from ((name, rule) for rule in fmt.table(spec))
    yield from (("chatglm", rule) for rule in TABLES["chatglm"].table(_TINY.replace(**_PREFIX)))
    for name, kind in (("chatglm-6b", {**_CHATGLM_6B, **_PREFIX}), ("glm-10b", _GLM_10B)):
        yield from ((name, rule) for rule in TABLES[name].table(_TINY.replace(**kind)))
    first_release = table_of("chatglm-6b", dropped_rows=1).table(_TINY.replace(**_CHATGLM_6B))
    yield from (("chatglm-6b", rule) for rule in first_release if isinstance(rule.layout, Cropped))


def _with_scales(rules: Iterator[tuple[Format, Rule]]) -> Iterator[tuple[Format, Rule]]:
    """The rules, and those of the scales where a format has releases with integer matrices."""
    for name, rule in rules:
        yield name, rule
        if name in ("chatglm-6b", "chatglm") and all(native.endswith(_MATRICES) for native in rule.native):
            yield name, scales_of(rule)


_MATRICES = ("_proj.weight", "embed_tokens.weight", "lm_head.weight")

_TINY = DecoderSpec(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)
_PAIRINGS: tuple[dict[str, Any], ...] = (
    {"rotary_pairing": "interleaved", "partial_rotary_factor": 0.5},
    {"rotary_pairing": "halves", "partial_rotary_factor": 1.0},
)
_PREFIX: dict[str, Any] = {"prefix_length": 1, "prefix_projection": True}
_LAYER_NORM: dict[str, Any] = {
    "norm": "layer",
    "attention_mask": "prefix",
    "output_bias": True,
    "mlp_bias": True,
    "num_key_value_heads": 2,
    "rotary_pairing": "halves",
    "partial_rotary_factor": 1.0,
}
_GLM_10B = {**_LAYER_NORM, "feed_forward": "gelu_erf", "positions": "learned_2d", "tie_word_embeddings": True}
_CHATGLM_6B = {
    **_LAYER_NORM,
    "residual": "scaled",
    "residual_scale": 1.0,
    "feed_forward": "gelu_tanh",
    "positions": "rotary_2d",
}


def _compile(fmts: tuple[Format, ...], native: tuple[str, ...], foreign: tuple[str, ...]) -> Any:
    dropping = foreign[0].startswith(_DROPPING)
    sources = [source_pattern(name) for name in foreign]
    targets = [name.replace("{layer}", r"\1") for name in native]
    if len(sources) == len(targets) == 1 and not dropping:
        return WeightRenaming(sources[0], targets[0])
    return LayoutConverter(sources, targets, [ApplyLayout(fmts, native, foreign)])


def source_pattern(name: str) -> str:
    """A foreign name as an anchored pattern; files of a bare decoder leave the leading ``model.`` out."""
    pattern = re.escape(name).replace(r"\{layer\}", r"(\d+)")
    if name.startswith("model."):
        pattern = r"(?:model\.)?" + pattern.removeprefix(r"model\.")
    if name.startswith(
        ("transformer.layers.", "transformer.final", "transformer.position", "transformer.block", "word_")
    ):
        pattern = r"(?:glm\.)?" + pattern
    return f"^{pattern}$"


class LayoutConverter(WeightConverter):
    """A converter whose native tensors are quantized one by one, each if the quantizer would take it by its own name.

    transformers (5.16 to 5.24) asks about the first tensor of a converter alone, and torchao's operation quantizes the
    first and loses the others.
    """

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """The native tensors under their full names, quantized where the model is being quantized."""
        self.quantization_operation = None
        made: dict[str, Any] = super().convert(layer_name, model=model, config=config, loading_info=loading_info)
        if hf_quantizer is None or hf_quantizer.pre_quantized:
            return made
        quantized: dict[str, Any] = {}
        for name, tensor in made.items():
            if not hf_quantizer.param_needs_quantization(model, name):
                quantized[name] = tensor
                continue
            # A part of a fused matrix is a view: as memory of its own, the matrix is let go.
            quantized |= hf_quantizer.get_quantize_ops().convert(
                {name: tensor.clone()},
                source_patterns=self.source_patterns,
                target_patterns=self.target_patterns,
                full_layer_name=name,
                model=model,
                config=config,
                missing_keys=loading_info.missing_keys if loading_info else None,
            )
        return quantized


@dataclass
class ApplyLayout(ConversionOps):
    """The layout of one rule, from foreign to native, with the sizes of the model's own spec.

    ``fmts`` are the formats that have these names; which of them a file is follows from the spec.
    """

    fmts: tuple[Format, ...]
    native: tuple[str, ...]
    foreign: tuple[str, ...]

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """The native tensors under their full names.

        Raises:
            CheckpointError: the rows are not this spec's, which is also what sharding on read leads to.
        """
        tensors = [found[0] if isinstance(found, list) else found for found in input_dict.values()]
        prefix, layer = self._place(kwargs["full_layer_name"])
        try:
            parts = self._layout(kwargs["config"]).to_native(tensors)
        except CheckpointError as error:
            name = self.foreign[0].removeprefix(_DROPPING).format(layer=layer)
            message = (
                f"{name}: {error}. Either config.json is another model's, or the tensor "
                "was sharded while it was read, which a fused matrix does not survive: run `glmlike convert SRC DST "
                "--to glmlike` and load DST."
            )
            failures = conversion_failures.get()
            if failures is not None:
                failures.append(message)
            raise CheckpointError(message) from None
        names = (name.removeprefix("model.").format(layer=layer) for name in self.native)
        return {prefix + name: part for name, part in zip(names, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """None: glmlike saves native names (`save_pretrained`) and writes other formats with `glmlike.convert`."""
        raise NotImplementedError("glmlike writes foreign formats with glmlike.convert, not through save_pretrained.")

    def _place(self, first: str) -> tuple[str, str]:
        """What stands before the first native name without its ``model.``, and the layer's number if it has one."""
        relative = re.escape(self.native[0].removeprefix("model.")).replace(r"\{layer\}", r"(\d+)")
        match = re.fullmatch(f"(.*?){relative}", first)
        if match is None:
            raise CheckpointError(f"{first}: expected a name like {self.native[0]}.")
        return match[1], match[2] if match.re.groups > 1 else ""

    def _layout(self, config: Any) -> Layout:
        spec: DecoderSpec = config.spec
        fmt = next((fmt for fmt in self.fmts if not cannot_express(spec, fmt)), self.fmts[0])
        table = table_of(fmt, config.dropped_rows)
        rules = table.table(spec if fmt == "glm-10b" else spec.replace(tie_word_embeddings=False))
        sides = (self.native, self.foreign)
        return next(rule.layout for _, rule in _with_scales((fmt, rule) for rule in rules) if _sides(rule) == sides)


def _sides(rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The two sides of a rule under the names that loading has for them."""
    return rule.native, tuple(loading_name(_bare(name), rule.layout) for name in rule.foreign)
