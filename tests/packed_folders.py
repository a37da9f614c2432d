"""Folders as GPTQ, AWQ and compressed-tensors publish them, written anew from the formats' descriptions with numpy.

A restatement to test against, not our code: each packing is written field by field, as the descriptions say it. What a
matrix stands for is computed in float64, from the integers before they are packed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MATRICES = ("_proj.weight", "query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


@dataclass(frozen=True)
class Kind:
    """One way to quantize: ``packing`` as in checkpoint/packed_streams.py, groups of ``size`` columns (-1: all)."""

    packing: str
    bits: int = 4
    size: int = 32
    symmetric: bool = False
    act_order: bool = False
    scale: Any = np.float16

    @property
    def config(self) -> dict[str, Any]:
        """The ``quantization_config`` that says so."""
        if self.packing == "awq":
            fields = {"zero_point": True, "version": "gemm"}
            return {"quant_method": "awq", "bits": self.bits, "group_size": self.size, **fields}
        if self.packing in ("gptq", "gptq_v2"):
            fields = {"desc_act": self.act_order, "sym": self.symmetric, "checkpoint_format": self.packing}
            return {"quant_method": "gptq", "bits": self.bits, "group_size": self.size, **fields}
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.size == -1 else "group",
            "group_size": None if self.size == -1 else self.size,
            "actorder": "group" if self.act_order else None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized" if self.packing == "plain" else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }


@dataclass(frozen=True)
class Integers:
    """Integers [O, I] with zeros and scales [O, G], and the group of each column."""

    values: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    def floats(self, dtype: torch.dtype) -> torch.Tensor:
        """What they stand for, rounded once."""
        scales = self.scales.astype(np.float64)[:, self.groups]
        return torch.from_numpy((self.values - self.zeros[:, self.groups]) * scales).to(dtype)


def quantize(weight: np.ndarray, kind: Kind, seed: int = 0) -> Integers:
    """Integers nearest to a matrix [O, I], each group from its own least to its own largest number."""
    columns = weight.shape[1]
    size = columns if kind.size == -1 else kind.size
    groups = np.arange(columns) // size
    if kind.act_order:
        order = np.random.default_rng(seed).permutation(columns)
        groups = groups[np.argsort(order)]
    most = 2**kind.bits - 1
    count = groups.max() + 1
    zeros = np.zeros((len(weight), count), np.int64)
    scales = np.zeros((len(weight), count), kind.scale)
    for group in range(count):
        part = weight[:, groups == group]
        if kind.symmetric:
            step = 2 * np.abs(part).max(1) / most
            zero = np.full(len(weight), 2 ** (kind.bits - 1))
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            step = (high - low) / most
            zero = np.rint(-low / np.where(step == 0, 1, step)).astype(np.int64)
        zeros[:, group], scales[:, group] = zero, np.where(step == 0, 1, step)
    values = np.rint(weight / scales.astype(np.float64)[:, groups]) + zeros[:, groups]
    return Integers(np.clip(values, 0, most).astype(np.int64), zeros, scales, groups)


def pack(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """[R, N] to int32 words [R, N / (32 / bits)]; field f of a word is the ``order[f]``-th of its numbers."""
    count = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % count)))
    words = np.zeros((len(values), padded.shape[1] // count), np.uint32)
    for word in range(words.shape[1]):
        for place in range(count):
            number = padded[:, word * count + (place if order is None else order[place])]
            words[:, word] |= number.astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def less_one(words: np.ndarray, bits: int) -> np.ndarray:
    """GPTQModel's way from the zeros of "gptq_v2" to those of "gptq": one is taken from all fields at once."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return (words.view(np.uint32) - np.uint32(ones)).view(np.int32)


def stored(found: Integers, kind: Kind) -> dict[str, np.ndarray]:
    """The tensors of one matrix, by the last part of their names."""
    bits = kind.bits
    if kind.packing == "awq":
        return {
            "qweight": pack(found.values.T, bits, AWQ_ORDER),
            "qzeros": pack(found.zeros.T, bits, AWQ_ORDER),
            "scales": found.scales.T,
        }
    if kind.packing in ("gptq", "gptq_v2"):
        zeros = pack(found.zeros.T, bits)
        return {
            "qweight": pack(found.values, bits).T,
            "qzeros": less_one(zeros, bits) if kind.packing == "gptq" else zeros,
            "scales": found.scales.T,
            "g_idx": found.groups.astype(np.int32),
        }
    half = 2 ** (bits - 1)
    if kind.packing == "plain":
        made = {"weight": (found.values - half).astype(np.int8), "weight_scale": found.scales}
        zeros = (found.zeros - half).astype(np.int8)
    else:
        shape = np.array(found.values.shape)
        made = {"weight_packed": pack(found.values, bits), "weight_scale": found.scales, "weight_shape": shape}
        zeros = pack(found.zeros.T, bits).T
    if not kind.symmetric:
        made["weight_zero_point"] = zeros
    if kind.act_order:
        made["weight_g_idx"] = found.groups.astype(np.int32)
    return made


def is_quantized(name: str) -> bool:
    """Whether the libraries quantize a tensor: the matrices of the layers."""
    return name.endswith(MATRICES)


def write_packed(
    source: Path,
    target: Path,
    kind: Kind,
    chosen: Callable[[str], bool] = is_quantized,
    dtype: torch.dtype = torch.float16,
    **fields: Any,
) -> tuple[Path, Path]:
    """``source``, a folder of floats, as ``target``/packed and, with what that stands for, as ``target``/floats."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    packed, meant = dict(tensors), dict(tensors)
    for seed, name in enumerate(filter(chosen, sorted(tensors))):
        found = quantize(packed.pop(name).double().numpy(), kind, seed)
        meant[name] = found.floats(dtype)
        for part, array in stored(found, kind).items():
            packed[name.removesuffix("weight") + part] = torch.from_numpy(np.ascontiguousarray(array))
    config = json.loads((source / "config.json").read_text(encoding="utf8"))
    config |= {"dtype": str(dtype).removeprefix("torch.")}
    said = {"quantization_config": {**kind.config, **fields}}
    for folder, content, more in (("packed", packed, said), ("floats", meant, {})):
        (target / folder).mkdir(parents=True)
        save_file(content, target / folder / "model.safetensors", metadata={"format": "pt"})
        (target / folder / "config.json").write_text(json.dumps({**config, **more}), encoding="utf8")
    return target / "packed", target / "floats"
