"""The released pre-quantized layout, written anew from its description: a restatement to test against, not our code.

For each row of a matrix: scale = its largest absolute value / (2^(bits - 1) - 1), stored as float16; integers = row /
scale, rounded; in 4 bits two integers a byte, the even column in the high half (quantization.py of the repositories).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LAYER_MATRICES = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def of_the_layers(name: str) -> bool:
    """Whether most releases quantize a tensor: the four matrices of each layer."""
    return name.endswith(LAYER_MATRICES)


def with_the_tables(name: str) -> bool:
    """Whether ChatGLM-6B int4-qe quantizes a tensor: embedding and head as well."""
    return of_the_layers(name) or name.endswith(("word_embeddings.weight", "lm_head.weight", "output_layer.weight"))


def quantize(matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The stored integers and scales of a float32 matrix, and the float32 matrix that they stand for."""
    rows = matrix.numpy()
    scales = (np.abs(rows).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float16)
    integers = np.rint(rows / scales.astype(np.float32)[:, None]).astype(np.int8)
    meant = integers.astype(np.float32) * scales.astype(np.float32)[:, None]
    if bits == 4:
        even, odd = integers[:, 0::2].astype(np.int64), integers[:, 1::2].astype(np.int64)
        integers = ((even % 16) * 16 + odd % 16).astype(np.uint8).view(np.int8)
    return torch.from_numpy(integers), torch.from_numpy(scales), torch.from_numpy(meant)


def write_released(
    source: Path, target: Path, bits: int, chosen: Callable[[str], bool] = of_the_layers, **fields: Any
) -> Path:
    """``source``, a folder of floats, as a release of integers in ``target``/integers.

    ``target``/floats is the same folder with the floats that those integers stand for. Returns ``target``/integers.
    """
    tensors = load_file(source / "model.safetensors")
    stored, meant = dict(tensors), dict(tensors)
    for name in filter(chosen, tensors):
        stored[name], stored[f"{name}_scale"], meant[name] = quantize(tensors[name], bits)
    config = json.loads((source / "config.json").read_text(encoding="utf8")) | fields
    for folder, content, said in (("integers", stored, {"quantization_bit": bits}), ("floats", meant, {})):
        (target / folder).mkdir(parents=True)
        save_file(content, target / folder / "model.safetensors", metadata={"format": "pt"})
        (target / folder / "config.json").write_text(json.dumps({**config, **said}), encoding="utf8")
    if (source / "expected.safetensors").exists():
        shutil.copy(source / "expected.safetensors", target)
    return target / "integers"
