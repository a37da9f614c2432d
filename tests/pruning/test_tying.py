"""One table or two: what is tied or untied is so in the config, in memory and in every file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import glmlike
from glmlike.errors import PruningError
from glmlike.pruning import tie_embeddings, untie_embeddings
from specs import FAMILY, SPECS

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(5))
ALWAYS_TIED = {"glm-10b", "glm-130b"}  # formats without a field for it


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.tie_word_embeddings])
def test_untied_then_trained_apart_then_saved_and_converted(
    name: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    model = make(SPECS[name])
    before, count = model(IDS).logits, model.num_parameters()
    assert untie_embeddings(model)
    assert not untie_embeddings(model)
    assert torch.equal(model(IDS).logits, before)
    assert model.num_parameters() == count + model.lm_head.weight.numel() == model.config.spec.num_parameters
    with torch.no_grad():
        model.lm_head.weight += 1
    after = model(IDS).logits
    assert not torch.allclose(after, before)
    model.save_pretrained(tmp_path / "native")
    assert "lm_head.weight" in names(tmp_path / "native")
    folders = ["native"]
    if name in ALWAYS_TIED:
        with pytest.raises(glmlike.CannotExpressError, match="tie"):
            glmlike.convert(tmp_path / "native", tmp_path / "foreign", to=FAMILY[name])
    else:
        glmlike.convert(tmp_path / "native", tmp_path / "foreign", to=FAMILY[name])
        folders.append("foreign")
    for folder in folders:
        again = glmlike.GlmLikeForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert not again.config.tie_word_embeddings
        assert torch.equal(again(IDS).logits, after)


@pytest.mark.parametrize("name", ["llama-3", "qwen2.5", "glm-edge", "chatglm-6b", "glm-4-0414"])
def test_equal_tables_become_one(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS[name].replace(tie_word_embeddings=False))
    with pytest.raises(PruningError, match="differ by up to"):
        tie_embeddings(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.lm_head.weight[3, 4] += 0.25
    before = model(IDS).logits
    with pytest.raises(PruningError, match="0.25, more than the tolerance 0.2"):
        tie_embeddings(model, tolerance=0.2)
    assert torch.equal(model(IDS).logits, before)
    assert not model.config.tie_word_embeddings
    assert tie_embeddings(model, tolerance=0.3) == pytest.approx(0.25, abs=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == model.config.spec.num_parameters
    logits = model(IDS).logits
    model.save_pretrained(tmp_path / "native")
    assert "lm_head.weight" not in names(tmp_path / "native")
    for target in ("llama", "qwen2", "glm", "glmlike"):
        try:
            glmlike.convert(tmp_path / "native", tmp_path / target, to=target)
        except glmlike.CannotExpressError:
            continue
        again = glmlike.GlmLikeForCausalLM.from_pretrained(tmp_path / target, dtype=torch.float32)
        assert again.config.tie_word_embeddings
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert torch.equal(again(IDS).logits, logits)


def test_force_drops_a_head_that_differs_and_training_moves_both(make: Callable[..., Any]) -> None:
    model = make(SPECS["llama-3"])
    assert tie_embeddings(model, force=True) > 0.1
    model(IDS, labels=IDS).loss.backward()
    assert model.lm_head.weight.grad is model.model.embed_tokens.weight.grad
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = float("nan")
    untie_embeddings(model)
    with pytest.raises(PruningError, match="nan"):
        tie_embeddings(model, tolerance=1.0)


def test_what_has_no_plain_head_says_so(make: Callable[..., Any]) -> None:
    with pytest.raises(PruningError, match="no language-modelling head"):
        untie_embeddings(make(SPECS["chatglm2"], model_class=glmlike.GlmLikeModel))
    model = make(SPECS["chatglm2"])
    model.lm_head = torch.nn.Linear(64, 97, bias=False)
    with pytest.raises(PruningError, match=r"\[97, 64\]"):
        tie_embeddings(model, force=True)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(96, 64))
    with pytest.raises(PruningError, match="expected a plain Linear"):
        untie_embeddings(model)
