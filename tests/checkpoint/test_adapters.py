"""LoRA adapters between formats and into weights, against PEFT itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import glmlike
from glmlike import CannotExpressError, CheckpointError, ConfigError
from glmlike.checkpoint.adapter_files import Lora, exact_alpha, scaling
from glmlike.checkpoint.adapters import fuse, split
from glmlike.checkpoint.layouts import Fused, Layout, PerHead
from specs import FAMILY, SPECS

peft = pytest.importorskip("peft")

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(5))
FUSED = ["chatglm2", "chatglm-6b", "glm-10b", "glm-4-0414", "glm-edge"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"target_modules": [*ATTENTION, "up_proj"], "use_rslora": True},
    "dora": {"target_modules": ATTENTION, "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "rank_pattern": {"k_proj": 6},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 5},
    },
    "some layers": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
}


def adapt(model: Any, folder: Path, **options: Any) -> Any:
    """A PeftModel of ``model`` with an adapter of random numbers, saved to ``folder``."""
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7, **options})
    tuned = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.2 * (0.1 if "magnitude" in name else 1.0))
    tuned.save_pretrained(folder)
    return tuned


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@st.composite
def loras(draw: st.DrawFn) -> tuple[list[Lora | None], list[int], Layout]:
    heads, head = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    per_head = draw(st.booleans())
    sizes = [heads * head] * 3 if per_head else draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    layout: Layout = PerHead(heads, head) if per_head else Fused(tuple(sizes))
    stabilized, rank, alpha = draw(st.booleans()), draw(st.integers(1, 7)), draw(st.integers(1, 33))
    present = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)).filter(any))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    one = torch.randn(rank, 5, generator=generator) if draw(st.booleans()) else None
    members: list[Lora | None] = []
    for size, is_there in zip(sizes, present, strict=True):
        shared = torch.randn(rank, 5, generator=generator) if one is None else one
        rows = torch.randn(size, rank, generator=generator)
        members.append(Lora(rows, shared, alpha, stabilized) if is_there else None)
    return members, sizes, layout


@given(loras())
@settings(max_examples=60, deadline=None)
def test_fusing_and_splitting_gives_the_parts_back_bit_for_bit(case: Any) -> None:
    members, sizes, layout = case
    fused = fuse(members, sizes, layout)
    present = [member for member in members if member is not None]
    assert all(fused.scaling == member.scaling for member in present)
    products = [torch.zeros(n, 5) if m is None else m.rows @ m.shared for m, n in zip(members, sizes, strict=True)]
    assert_close(fused.rows @ fused.shared, layout.to_foreign(products)[0])
    for before, after in zip(members, split(fused, layout), strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert torch.equal(before.rows, after.rows)
            assert torch.equal(before.shared, after.shared)
            assert before.alpha == after.alpha


@given(st.floats(1e-3, 1e3), st.integers(1, 4), st.booleans())
def test_a_power_of_four_has_an_alpha_for_every_scaling(factor: float, power: int, stabilized: bool) -> None:
    alpha = exact_alpha(factor, 4**power, stabilized)
    assert alpha is not None
    assert scaling(alpha, 4**power, stabilized) == factor


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_there_and_back_is_the_same_adapter(name: str, options: str, make: Callable[..., Any], tmp_path: Path) -> None:
    base = make(SPECS[name])
    base.save_pretrained(tmp_path / "base")
    expected = adapt(base, tmp_path / "native", **OPTIONS[options])(IDS).logits
    there = glmlike.convert_adapter(
        tmp_path / "native", tmp_path / "foreign", to=FAMILY[name], base=tmp_path / "base", base_name="theirs"
    )
    assert (there.source_format, there.target_format) == ("glmlike", FAMILY[name])
    assert json.loads((tmp_path / "foreign" / "adapter_config.json").read_text())["base_model_name_or_path"] == "theirs"
    glmlike.convert_adapter(tmp_path / "foreign", tmp_path / "again", to="glmlike", base=tmp_path / "base")
    before, after = tensors(tmp_path / "native"), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    if options != "patterns":  # where q's and k's scalings differ, one of them is rescaled
        assert all(torch.equal(before[key], after[key]) for key in before)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "again").eval()
    assert_close(again(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def their_model(name: str, native: Any, folder: Path) -> Any:
    """A module tree with the published names of ``name``'s layers, to train adapters on as remote code has them."""
    native.save_pretrained(folder / "base")
    glmlike.convert(folder / "base", folder / "theirs", to=FAMILY[name])
    weights = load_file(folder / "theirs" / "model.safetensors")
    root = torch.nn.Module()
    for key, weight in weights.items():
        *path, leaf, kind = key.split(".")
        if kind != "weight" or weight.dim() != 2 or "embedding" in leaf:
            continue
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        linear = torch.nn.Linear(*reversed(weight.shape), bias=key.replace("weight", "bias") in weights)
        linear.weight.data.copy_(weight)
        if linear.bias is not None:
            linear.bias.data.copy_(weights[key.replace("weight", "bias")])
        node.add_module(leaf, linear)
    return root


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_an_adapter_on_fused_modules_loads_onto_ours(
    name: str, options: dict[str, Any], make: Callable[..., Any], tmp_path: Path
) -> None:
    """Trained on modules with the published names, merged there by PEFT, converted: the same as loaded onto ours."""
    native = make(SPECS[name])
    root = their_model(name, native, tmp_path)
    fused = "gate_up_proj" if FAMILY[name] in ("glm", "glm4") else "query_key_value"
    targets = [fused, *(["dense"] if fused == "query_key_value" else [])]
    tuned = adapt(root, tmp_path / "adapter", task_type=None, target_modules=targets, **options)
    merged = tuned.merge_and_unload()
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    weights |= {key: value for key, value in merged.state_dict().items() if key in weights}
    save_file(weights, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()(IDS).logits
    assert (expected - native(IDS).logits).abs().max() > 0.01
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    if "use_dora" in options:
        with pytest.raises(CheckpointError, match="glmlike.load_adapter"):
            base.load_adapter(tmp_path / "adapter")
    else:
        base.load_adapter(tmp_path / "adapter")
        assert_close(base(IDS).logits, expected, atol=2e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    loaded = glmlike.load_adapter(base, tmp_path / "adapter").eval()
    assert isinstance(loaded, peft.PeftModel)
    assert_close(loaded(IDS).logits, expected, atol=2e-4, rtol=1e-4)
    glmlike.load_adapter(loaded, tmp_path / "adapter", "second")
    loaded.set_adapter("second")
    assert_close(loaded(IDS).logits, expected, atol=2e-4, rtol=1e-4)


MERGES: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "dora embeddings": {"target_modules": ["embed_tokens", "lm_head", "k_proj"], "use_dora": True},
    "biases": {"target_modules": ["q_proj", "k_proj", "v_proj"], "lora_bias": True, "bias": "all"},
}


def ulps(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance in units of the last place of ``expected``."""
    spacing = torch.finfo(expected.dtype).eps * expected.abs().float().log2().floor().exp2().clamp(min=2.0**-20)
    return float(((found.float() - expected.float()).abs() / spacing).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", MERGES)
@torch.no_grad()
def test_merging_is_what_peft_does(options: str, dtype: torch.dtype, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2"]).to(dtype).save_pretrained(tmp_path / "base")
    glmlike.convert(tmp_path / "base", tmp_path / "theirs", to="chatglm")

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)

    adapt(load(), tmp_path / "adapter", **MERGES[options])
    expected = peft.PeftModel.from_pretrained(load(), tmp_path / "adapter").merge_and_unload().state_dict()
    report = glmlike.merge(tmp_path / "theirs", tmp_path / "adapter", tmp_path / "merged", max_shard_size="40KB")
    assert report.target_format == "chatglm"
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 3
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype).state_dict()
    base = load().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ulps(found[name], tensor) <= 1, name
    changed = {name for name in found if not torch.equal(found[name], base[name])}
    assert changed
    assert len(changed) <= report.changed
    assert {name for name in found if not torch.equal(expected[name], base[name])} == changed


def test_the_same_adapter_is_not_merged_twice(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    for seed, target in enumerate(("q_proj", "v_proj")):
        adapt(make(SPECS["chatglm2"]), tmp_path / f"{seed}", target_modules=[target])
    glmlike.merge(tmp_path / "base", tmp_path / "0", tmp_path / "once")
    glmlike.convert_adapter(tmp_path / "0", tmp_path / "fused", to="chatglm", base=tmp_path / "base")
    glmlike.convert(tmp_path / "once", tmp_path / "theirs", to="chatglm")
    for base in ("once", "theirs"):
        for adapter in ("0", "fused"):
            with pytest.raises(CheckpointError, match="merged into .* already"):
                glmlike.merge(tmp_path / base, tmp_path / adapter, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    records = [json.loads((tmp_path / name / "glmlike.json").read_text()) for name in ("once", "theirs")]
    assert records[0]["merged_adapters"] == records[1]["merged_adapters"]
    assert [entry["name"] for entry in records[0]["merged_adapters"]] == ["0"]
    assert records[0]["tensors"]["model.safetensors"].keys() == load_file(tmp_path / "once/model.safetensors").keys()
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert records[0]["source"]["files"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert records[0]["source"]["files"] == records[1]["source"]["converted_from"]["files"]
    glmlike.merge(tmp_path / "once", tmp_path / "0", tmp_path / "twice", force=True)
    glmlike.merge(tmp_path / "once", tmp_path / "1", tmp_path / "both")
    glmlike.merge(tmp_path / "base", [tmp_path / "0", tmp_path / "1"], tmp_path / "at once")
    assert glmlike.verify(tmp_path / "both", tmp_path / "at once")
    with pytest.raises(CheckpointError, match="merged into .* already"):
        glmlike.merge(tmp_path / "base", [tmp_path / "0", tmp_path / "fused"], tmp_path / "repeated")


@torch.no_grad()
def test_an_adapter_of_a_tied_embedding_alone_unties_the_head(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["tied-recipe"])
    model.save_pretrained(tmp_path / "base")
    expected = adapt(model, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])(IDS).logits
    report = glmlike.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert "no longer tied" in report.notes[-1]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not merged.config.tie_word_embeddings
    assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["chatglm2", "tied-recipe"])
@torch.no_grad()
def test_new_tokens_in_the_adapter(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS[name]).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    model.resize_token_embeddings(101)
    tuned = adapt(model, tmp_path / "unused", target_modules=["q_proj"])
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    ids = torch.cat((IDS, torch.full((2, 1), 99)), dim=1)
    glmlike.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.vocab_size == 101
    assert merged.config.tie_word_embeddings == SPECS[name].tie_word_embeddings
    assert_close(merged(ids).logits, tuned(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_done_is_said(make: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("chatglm2", "glm-10b"):
        make(SPECS[name]).save_pretrained(tmp_path / name)
    model = make(SPECS["chatglm2"])
    adapt(model, tmp_path / "plain", target_modules=["q_proj"])
    other = SPECS["chatglm2"].replace(hidden_size=128, intermediate_size=192)
    make(other).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"'model.layers.0.self_attn.q_proj' .*\[64, 64\].*\[64, 128\]"):
        glmlike.merge(tmp_path / "other", tmp_path / "plain", tmp_path / "out")
    with pytest.raises(ConfigError, match="Pass base"):
        glmlike.convert_adapter(tmp_path / "plain", tmp_path / "out", to="chatglm")
    adapt(make(SPECS["chatglm2"]), tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CannotExpressError, match="DoRA on some"):
        glmlike.convert_adapter(tmp_path / "dora", tmp_path / "out", to="chatglm", base=tmp_path / "chatglm2")
    adapt(make(SPECS["glm-10b"]), tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(CannotExpressError, match="no place in the format 'glm-10b'"):
        glmlike.convert_adapter(tmp_path / "head", tmp_path / "out", to="glm-10b", base=tmp_path / "glm-10b")
    said = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    for field, value, message in (
        ("r", 5, "gives it rank 5"),
        ("init_lora_weights", "pissa", "path_initial_model_for_weight_conversion"),
        ("layer_replication", [[0, 2]], "layer_replication"),
        ("peft_type", "LOHA", "expected 'LORA'"),
        ("use_dora", True, "use_dora=True"),
    ):
        (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps({**said, field: value}))
        with pytest.raises((ConfigError, CheckpointError), match=message):
            glmlike.merge(tmp_path / "chatglm2", tmp_path / "plain", tmp_path / "out")
    assert not (tmp_path / "out").exists()
