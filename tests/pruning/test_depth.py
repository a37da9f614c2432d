"""Layers that go: which, and that what stays is an ordinary decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import glmlike
from glmlike.errors import PruningError
from glmlike.pruning import block_influence, keep_layers, prune_depth, prune_width
from specs import FAMILY, SPECS

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SPECS)
def test_what_stays_saves_reloads_generates_and_converts(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    """Layers and channels go; GLM-10B's keep their width, which its format has no field for."""
    model = make(SPECS[name])
    layers = [copy.deepcopy(model.model.layers[number]) for number in (0, 2)]
    assert keep_layers(model, [0, 2]) is model
    for ours, original in zip(model.model.layers, layers, strict=True):
        assert all(torch.equal(new, old) for new, old in zip(ours.parameters(), original.parameters(), strict=True))
    if name != "glm-10b":
        pruned = prune_width(model, [IDS], intermediate_size=30, multiple_of=16)
        assert pruned.intermediate_size == model.config.spec.intermediate_size == 32
        assert [len(kept) for kept in pruned.kept] == [32, 32]
        assert all(0 < share < 1 for share in pruned.share)
    assert model.config.spec.num_hidden_layers == 2
    assert model.num_parameters() == model.config.spec.num_parameters
    logits = model(IDS).logits
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [90, 91, 92, 93]}  # none begins a piece
    assert model.generate(IDS, **options).tolist() == model.generate(IDS, **options, use_cache=False).tolist()
    model.save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "foreign", to=FAMILY[name])
    for folder in ("native", "foreign"):
        again = glmlike.GlmLikeForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert again.config.spec == model.config.spec
        assert torch.equal(again(IDS).logits, logits)


@pytest.mark.parametrize("name", ["chatglm2", "glm-4-0414", "qwen2-sliding"])
def test_a_layer_that_adds_nothing_has_no_influence_and_goes_first(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    idle = model.model.layers[1]
    with torch.no_grad():
        for matrix in (idle.self_attn.o_proj, idle.mlp.down_proj):
            matrix.weight.zero_()
    before = model(IDS).logits
    pruned = prune_depth(model, [IDS[:1], {"input_ids": IDS[1:], "labels": IDS[1:]}], keep=2)
    assert (pruned.kept, pruned.removed) == ((0, 2), (1,))
    assert abs(pruned.influence[1]) < 1e-6 < min(pruned.influence[0], pruned.influence[2])
    assert_close(model(IDS).logits, before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama-3", "chatglm-6b", "glm-10b", "glm-130b"])
def test_influence_is_one_minus_the_mean_cosine_of_text(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name]).train()
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    found = block_influence(model, [{"input_ids": IDS, "attention_mask": mask}])
    assert model.training
    model.eval()
    states, passed = [], lambda _, args, out: states.append((args[0], out))
    hooks = [layer.register_forward_hook(passed) for layer in model.model.layers]
    with torch.no_grad():
        model(IDS, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    for influence, (entering, leaving) in zip(found, states, strict=True):
        cosine = torch.nn.functional.cosine_similarity(entering, leaving, dim=-1)[mask.bool()]
        assert influence == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_layer_types_follow_and_vanish_with_the_last_window(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["qwen2-sliding"])
    keep_layers(model, [0, 2])
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    keep_layers(model, [0])
    assert model.config.spec.layer_types is None
    assert model.config.spec.sliding_window is None
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


def test_a_classifier_is_cut_too(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["glm-4-9b"], model_class=glmlike.GlmLikeForSequenceClassification)
    prune_depth(model, [IDS], keep=1)
    model.save_pretrained(tmp_path)
    again = glmlike.GlmLikeForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("layers", [[], [2, 0], [0, 0], [3], [-1, 0]])
def test_impossible_layers_leave_the_model_as_it_was(layers: list[int], make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    with pytest.raises(PruningError, match="from 0 to 2"):
        keep_layers(model, layers)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3


def test_what_cannot_be_pruned_says_why(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    with pytest.raises(PruningError, match="keep=4: this decoder has 3 layers"):
        prune_depth(model, [IDS], keep=4)
    with pytest.raises(PruningError, match="no token"):
        prune_depth(model, [], keep=2)
    with torch.device("meta"):
        empty = glmlike.GlmLikeForCausalLM(model.config)
    with pytest.raises(PruningError, match="meta"):
        prune_depth(empty, [IDS], keep=2)
    with pytest.raises(PruningError, match="expected a model of a class of glmlike"):
        prune_depth(torch.nn.Linear(2, 2), [IDS], keep=2)  # type: ignore[arg-type]
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(PruningError, match="merge it"):
        prune_depth(model, [IDS], keep=2)
