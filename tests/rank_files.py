"""GLM-130B's rank files written from native tensors: a second statement of the cuts, by indices, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmlike.spec import DecoderSpec


def arguments(spec: DecoderSpec, **more: Any) -> dict[str, Any]:
    """SAT's launch arguments of a decoder."""
    return {
        "num_layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "inner_hidden_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "num_attention_heads": spec.num_attention_heads,
        "max_sequence_length": spec.max_position_embeddings,
        "layernorm_order": "post",
        **more,
    }


def rank_module(native: dict[str, Tensor], spec: DecoderSpec, rank: int, ranks: int) -> dict[str, Tensor]:
    """What one rank of ``ranks`` holds."""

    def rows(total: int) -> range:
        return range(rank * total // ranks, (rank + 1) * total // ranks)

    def heads(layer: str, kind: str) -> Tensor:
        parts = []
        for head in rows(spec.num_attention_heads):
            for part in "qkv":
                matrix = native[f"{layer}self_attn.{part}_proj.{kind}"]
                parts.append(matrix[head * spec.head_dim : (head + 1) * spec.head_dim])
        return torch.cat(parts)

    inner, hidden = list(rows(spec.intermediate_size)), list(rows(spec.hidden_size))
    module = {"transformer.word_embeddings.weight": native["model.embed_tokens.weight"][list(rows(spec.vocab_size))]}
    for index in range(spec.num_hidden_layers):
        ours, theirs = f"model.layers.{index}.", f"transformer.layers.{index}."
        for kind in ("weight", "bias"):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                module[f"{theirs}{norm}.{kind}"] = native[f"{ours}{norm}.{kind}"]
            module[f"{theirs}attention.query_key_value.{kind}"] = heads(ours, kind)
            halves = [native[f"{ours}mlp.{part}_proj.{kind}"][inner] for part in ("up", "gate")]
            module[f"{theirs}mlp.dense_h_to_4h.{kind}"] = torch.cat(halves)
        module[f"{theirs}attention.dense.weight"] = native[f"{ours}self_attn.o_proj.weight"][:, hidden]
        module[f"{theirs}attention.dense.bias"] = native[f"{ours}self_attn.o_proj.bias"]
        module[f"{theirs}mlp.dense_4h_to_h.weight"] = native[f"{ours}mlp.down_proj.weight"][:, inner]
        module[f"{theirs}mlp.dense_4h_to_h.bias"] = native[f"{ours}mlp.down_proj.bias"]
    for kind in ("weight", "bias"):
        module[f"transformer.final_layernorm.{kind}"] = native[f"model.norm.{kind}"]
    return {name: tensor.clone() for name, tensor in module.items()}


QUANTIZED = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def quantized(module: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """The four matrices of each layer as tools/convert_tp.py of THUDM/GLM-130B leaves them: integers and scales."""
    found = {}
    for name, tensor in module.items():
        if not name.endswith(QUANTIZED):
            found[name] = tensor
            continue
        scale = (tensor.float().abs().amax(-1) / (2 ** (bits - 1) - 1)).half()
        whole = torch.round(tensor.float() / scale.float()[:, None]).to(torch.int8)
        if bits == 4:
            pairs = [[(row[i] & 15) << 4 | (row[i + 1] & 15) for i in range(0, len(row), 2)] for row in whole.tolist()]
            whole = torch.tensor(pairs, dtype=torch.uint8).view(torch.int8)
        found[name], found[name + "_scale"] = whole, scale
    return found


def rounded(module: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """A rank's matrices as numbers again after :func:`quantized`, in float16."""
    found = {}
    for name, tensor in module.items():
        if name.endswith(QUANTIZED):
            scale = (tensor.float().abs().amax(-1) / (2 ** (bits - 1) - 1)).half()[:, None]
            tensor = torch.round(tensor.float() / scale.float()).to(torch.int8).half() * scale
        found[name] = tensor
    return found


def native_of(modules: list[dict[str, Tensor]], spec: DecoderSpec) -> dict[str, Tensor]:
    """The native tensors that the ranks' modules hold, put back by the indices they were taken by."""
    ranks, dim = len(modules), spec.head_dim
    per_rank, inner = spec.num_attention_heads // ranks, spec.intermediate_size // ranks
    found = {"model.embed_tokens.weight": torch.cat([m["transformer.word_embeddings.weight"] for m in modules])}
    for index in range(spec.num_hidden_layers):
        ours, theirs = f"model.layers.{index}.", f"transformer.layers.{index}."
        for kind in ("weight", "bias"):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{ours}{norm}.{kind}"] = modules[0][f"{theirs}{norm}.{kind}"]
            qkv = [m[f"{theirs}attention.query_key_value.{kind}"] for m in modules]
            for at, part in enumerate("qkv"):
                starts = [(3 * head + at) * dim for head in range(per_rank)]
                found[f"{ours}self_attn.{part}_proj.{kind}"] = torch.cat([m[s : s + dim] for m in qkv for s in starts])
            wide = [m[f"{theirs}mlp.dense_h_to_4h.{kind}"] for m in modules]
            found[f"{ours}mlp.up_proj.{kind}"] = torch.cat([m[:inner] for m in wide])
            found[f"{ours}mlp.gate_proj.{kind}"] = torch.cat([m[inner:] for m in wide])
        for name, part in (("attention.dense", "self_attn.o_proj"), ("mlp.dense_4h_to_h", "mlp.down_proj")):
            found[f"{ours}{part}.weight"] = torch.cat([m[f"{theirs}{name}.weight"] for m in modules], dim=1)
            found[f"{ours}{part}.bias"] = modules[0][f"{theirs}{name}.bias"]
    for kind in ("weight", "bias"):
        found[f"model.norm.{kind}"] = modules[0][f"transformer.final_layernorm.{kind}"]
    return found


def write(folder: Path, modules: list[dict[str, Tensor]], said: dict[str, Any] | None = None) -> Path:
    """A folder of rank files, with ``model_config.json`` if something is said."""
    (folder / "49300").mkdir(parents=True)
    (folder / "latest").write_text("49300\n")
    for rank, module in enumerate(modules):
        torch.save({"module": module}, folder / "49300" / f"mp_rank_{rank:02d}_model_states.pt")
    if said is not None:
        (folder / "model_config.json").write_text(json.dumps(said))
    return folder
