"""``glmlike inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import glmlike
from glmlike.commands.options import AsJson, Generation, Source, SpecName
from glmlike.commands.printing import print_table, short


def inspect(folder: Source, generation: Generation = None, spec: SpecName = None, as_json: AsJson = False) -> None:
    """What a folder holds: its format, its decoder, its tensors, and the formats it converts to.

    Of a repository on the Hub only config and headers are read, where its weights are .safetensors files.
    """
    from glmlike.checkpoint.sources import headers

    with headers(folder) as local:
        facts = _facts(local, generation, spec)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print_table(str(folder), {name: short(value) for name, value in facts.items() if name != "spec"} | facts["spec"])


def _facts(folder: Path, generation: Any, spec: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from glmlike.checkpoint.gguf_fields import can_be_gguf
    from glmlike.checkpoint.packed import PackedCheckpoint
    from glmlike.hub_json import FORMATS, cannot_express

    found = glmlike.detect(folder, generation=generation, spec=spec)
    tensors = found.checkpoint.tensors.values()
    return {
        "format": found.format,
        "parameters": found.spec.num_parameters,
        "tensors": len(tensors),
        "dtypes": dict(Counter(info.dtype for info in tensors)),
        **({"quantized": str(found.checkpoint.config)} if isinstance(found.checkpoint, PackedCheckpoint) else {}),
        "notes": list(found.notes),
        "files": [path.name for path in found.checkpoint.files],
        "converts_to": [
            *(fmt for fmt in FORMATS if fmt != found.format and not cannot_express(found.spec, fmt)),
            *(["gguf"] if folder.suffix != ".gguf" and can_be_gguf(found.spec) else []),
        ],
        **({"converted_from": found.record["source"].get("name")} if found.record else {}),
        "spec": {**asdict(found.spec), "rope_scaling": dict(found.spec.rope_scaling)},
    }
