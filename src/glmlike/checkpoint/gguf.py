"""GGUF files of llama.cpp, out and in: a checkpoint folder to one file, and one file to a checkpoint folder.

Both are conversions as any other (:mod:`glmlike.checkpoint.convert`): planned from headers, within a bound of memory, a
stretch of rows at a time, whole or not at all, resumable, read back. The package ``gguf`` (llama.cpp's own) packs and
unpacks blocks and writes headers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast, get_args

from glmlike.checkpoint import gguf_vocabulary
from glmlike.checkpoint.convert import ConversionReport, Watch, convert
from glmlike.checkpoint.detection import Detection, detect, look
from glmlike.checkpoint.gguf_blocks import FLOATS, gguf_package
from glmlike.checkpoint.gguf_fields import architecture_of
from glmlike.checkpoint.gguf_reading import GgufCheckpoint, GgufDetection, detect_gguf
from glmlike.checkpoint.gguf_writing import GgufDtype, plan_gguf, steps_of, write_planned
from glmlike.checkpoint.plan import Plan, Verify
from glmlike.checkpoint.shards import parse_size
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import Format, Generation
from glmlike.spec import DecoderSpec

__all__ = ["GgufCheckpoint", "GgufDetection", "GgufDtype", "convert_to_gguf", "detect_gguf", "read_gguf", "write_gguf"]


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` names a GGUF file, by the end of its name."""
    return Path(path).suffix == ".gguf"


def write_gguf(
    source: str | Path,
    file: str | Path,
    *,
    dtype: GgufDtype = "f16",
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    pre_tokenizer: str | None = None,
    with_tokenizer: bool = True,
    **options: Any,
) -> ConversionReport:
    """Write the checkpoint folder ``source`` to the new file ``file`` for llama.cpp, with its tokenizer and template.

    ``dtype`` is that of the matrices; norms and biases are float32, as llama.cpp's converter keeps them. Rows that a
    block size does not divide fall back to float16, and below 8 bits the output matrix (a tied embedding) is ``q8_0``,
    since llama-quantize keeps it above the rest. The report's notes say both, how far a number may be off, and what
    llama.cpp does otherwise than the source's tokenizer. ``pre_tokenizer`` is llama.cpp's name of how text is cut into
    words, where tokenizer.json has a way of its own that llama.cpp knows under a name; ``with_tokenizer=False`` writes
    a file that takes token ids only. ``generation`` and ``spec`` are those of :func:`glmlike.detect`; ``options``
    (``max_memory``, ``workers``, ``verify``, ``resume``, ``watch``) those of :func:`glmlike.convert`. ``file`` appears
    whole or not at all.

    Raises:
        CannotExpressError: llama.cpp has no architecture that computes this decoder.
        CheckpointError: ``source`` is damaged, its tokenizer is none llama.cpp has, or ``file`` exists.
        GlmLikeError: the package ``gguf`` is missing, or ``dtype`` is none of its.
    """
    found = convert_to_gguf(
        source,
        file,
        dtype=dtype,
        generation=generation,
        spec=spec,
        pre_tokenizer=pre_tokenizer,
        with_tokenizer=with_tokenizer,
        **options,
    )
    return cast(ConversionReport, found)


def convert_to_gguf(
    source: str | Path,
    file: str | Path,
    *,
    dtype: str | None = None,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
    pre_tokenizer: str | None = None,
    with_tokenizer: bool = True,
    max_memory: str | int | None = None,
    workers: int | None = None,
    verify: Verify | None = None,
    sha256: bool | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    dry_run: bool = False,
) -> ConversionReport | Plan:
    """:func:`write_gguf`, with ``dtype`` the source's own by default; ``dry_run`` returns the plan."""
    started = time.perf_counter()
    target = require_file(file)
    if is_gguf(source):
        raise ConfigError(f"{source}: is GGUF already. Change its type with llama.cpp's llama-quantize.")
    dtype = {name: kind.lower() for kind, name in FLOATS.items()}.get(str(dtype), dtype)
    if dtype is not None and dtype not in get_args(GgufDtype):
        raise ConfigError(
            f"dtype={dtype!r}: expected one of {', '.join(get_args(GgufDtype))}. For others, such as q4_k, write f16 "
            "and run llama.cpp's llama-quantize on the file."
        )
    gguf_package()
    found = (look if dry_run else detect)(source, generation=generation, spec=spec)
    architecture = architecture_of(found.spec)
    vocabulary = (
        gguf_vocabulary.read(found.folder, found.config, found.spec, architecture, generation, pre_tokenizer)
        if with_tokenizer
        else gguf_vocabulary.no_tokenizer(found.folder, found.config)
    )
    plan = plan_gguf(
        found,
        target,
        architecture,
        cast(GgufDtype, dtype or exact_dtype(found)),
        vocabulary,
        max_memory=None if max_memory is None else parse_size(max_memory),
        workers=workers,
        verify=verify,
        sha256=sha256,
    )
    if dry_run:
        return plan
    resumed = write_planned(plan, resume, watch)
    return ConversionReport.of(plan, resumed, time.perf_counter() - started)


def planned_file(found: Detection, dtype: GgufDtype) -> tuple[int, dict[str, str]]:
    """What :func:`write_gguf` would write: the bytes of its tensors, and the type of each matrix, by GGUF's names.

    Raises:
        CannotExpressError, GlmLikeError: those of :func:`write_gguf`.
    """
    steps = list(steps_of(found, architecture_of(found.spec), dtype, "model.gguf"))
    matrices = {step.name: step.kind for step in steps if step.numbers is not None and len(step.numbers.shape) > 1}
    return sum(step.bytes for step in steps), matrices


def require_file(file: str | Path) -> Path:
    """The new file to write. Raises CheckpointError: it is there, or its name does not end in .gguf."""
    target = Path(file)
    if not is_gguf(target):
        raise CheckpointError(f"{file}: GGUF is one file. Pass a new file name that ends in .gguf.")
    if target.exists():
        raise CheckpointError(f"{file}: exists already. Choose a new file, or remove this one.")
    return target


def exact_dtype(found: Detection) -> GgufDtype:
    """The float type of a folder's matrices; float32 where they differ, or are of none that GGUF has."""
    kinds = {info.dtype for info in found.checkpoint.tensors.values() if len(info.shape) > 1}
    exact: dict[str, GgufDtype] = {"F16": "f16", "BF16": "bf16"}
    return exact.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32"


def read_gguf(
    file: str | Path, folder: str | Path, *, to: Format = "glmlike", dtype: str | None = None, **options: Any
) -> ConversionReport:
    """Write the model in a GGUF file to the new ``folder`` in the format ``to``, with tokenizer and chat template.

    ``dtype`` is that of :func:`detect_gguf`; blocks of integers are dequantized to it. The tokenizer becomes
    tokenizer.json where it can be rebuilt exactly; the report's notes say where it cannot. ``options`` are those of
    :func:`glmlike.convert`.

    Raises:
        CheckpointError: ``file`` cannot be read, or ``folder`` holds something already.
        CannotExpressError: ``to`` has no way to say this decoder.
    """
    if not is_gguf(file):
        raise CheckpointError(f"{file}: expected a file whose name ends in .gguf. Rename it if it is one.")
    found: ConversionReport = convert(file, folder, to=to, dtype=dtype, **options)
    return found
