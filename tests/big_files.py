"""ChatGLM folders of any size, written without a model: random bytes that are no NaN, or one hole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from glmlike.checkpoint.containers import SafetensorsFile
from glmlike.checkpoint.formats import TABLES
from glmlike.hub_json import write_config
from glmlike.spec import DecoderSpec

_SHARD = 2 * 10**9


def write_big(
    folder: Path, *, layers: int, sparse: bool = False, hidden: int = 512, inner: int = 1024, vocab: int = 8192
) -> Path:
    """A bfloat16 checkpoint in ChatGLM2's format; ``sparse`` takes no room on the disk."""
    spec = DecoderSpec(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=2,
        head_dim=64,
    )
    folder.mkdir()
    config = {**write_config(spec, "chatglm"), "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf8")
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    for name, shape in TABLES["chatglm"].foreign_shapes(spec).items():
        if sum(2 * math.prod(found) for _, _, found in shards[-1]) + 2 * math.prod(shape) > _SHARD:
            shards.append([])
        shards[-1].append((name, "BF16", shape))
    weight_map = {}
    for number, tensors in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number}.safetensors"
        _write(folder / file, SafetensorsFile(file, tensors, lambda sums: {"format": "pt"}), sparse)
        weight_map.update(dict.fromkeys((name for name, _, _ in tensors), file))
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf8")
    return folder


def _write(path: Path, container: SafetensorsFile, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(2**19, generator=generator).bfloat16().view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        for _, content in container.frame({}):
            file.write(content)
        if sparse:
            file.truncate(container.size)
            return
        while file.tell() < container.size:
            file.write(block[: container.size - file.tell()])
