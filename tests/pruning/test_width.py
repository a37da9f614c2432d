"""Feed-forward channels that go: which, and that gate, up, down and their biases are cut together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import glmlike
from glmlike.errors import PruningError
from glmlike.pruning import channel_importance, keep_channels, prune_width
from specs import SPECS

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(5))


def test_glm_10b_narrowed_has_no_place_in_its_format(make: Callable[..., Any], tmp_path: Path) -> None:
    """Its width is four times the hidden size, said by no field; our own format says any."""
    model = make(SPECS["glm-10b"])
    prune_width(model, [IDS], intermediate_size=32)
    model.save_pretrained(tmp_path / "native")
    with pytest.raises(glmlike.CannotExpressError, match="intermediate_size"):
        glmlike.convert(tmp_path / "native", tmp_path / "foreign", to="glm-10b")
    again = glmlike.GlmLikeForCausalLM.from_pretrained(tmp_path / "native")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", ["chatglm2", "llama-biased", "glm-10b", "chatglm-6b", "glm-130b"])
def test_channels_that_reach_nothing_go_first_and_change_nothing(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    size = model.config.intermediate_size
    idle = torch.arange(1, size, 2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0
    before = model(IDS).logits
    pruned = prune_width(model, [IDS], intermediate_size=size // 2)
    assert pruned.kept == (tuple(range(0, size, 2)),) * 3
    assert pruned.share == pytest.approx((1.0, 1.0, 1.0))
    assert_close(model(IDS).logits, before, atol=1e-4, rtol=1e-4)
    assert model.model.layers[0].mlp.up_proj.out_features == size // 2


@pytest.mark.parametrize("name", ["qwen2.5", "chatglm-6b"])
def test_importance_is_activation_times_down_column_over_text(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    found = channel_importance(model, [{"input_ids": IDS, "attention_mask": mask}])
    seen: list[torch.Tensor] = []
    down = model.model.layers[2].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(IDS, attention_mask=mask)
    hook.remove()
    expected = seen[0][mask.bool()].abs().mean(0) * down.weight.norm(dim=0)
    assert_close(found[2].float(), expected, atol=1e-6, rtol=1e-5)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_channels_of_equal_number(make: Callable[..., Any], data: st.DataObject) -> None:
    """What is left computes what the uncut branch computes with the other channels' activations at zero."""
    model = make(SPECS[data.draw(st.sampled_from(["llama-biased", "chatglm-6b", "glm-130b"]))])
    size = model.config.intermediate_size
    width = data.draw(st.integers(1, size))
    order = st.permutations(range(size)).map(lambda channels: sorted(channels[:width]))
    kept = [data.draw(order) for _ in range(3)]

    def silence(channels: list[int]) -> Any:
        mask = torch.zeros(size)
        mask[channels] = 1
        return lambda _, args: (args[0] * mask,)

    downs = [layer.mlp.down_proj for layer in model.model.layers]
    hooks = [down.register_forward_pre_hook(silence(c)) for down, c in zip(downs, kept, strict=True)]
    expected = model(IDS).logits
    for hook in hooks:
        hook.remove()
    keep_channels(model, kept)
    assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_frozen_matrix_stays_frozen_and_a_pruned_model_trains(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    model.model.layers[0].mlp.requires_grad_(False)
    prune_width(model, [IDS], intermediate_size=40)
    assert not any(parameter.requires_grad for parameter in model.model.layers[0].mlp.parameters())
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.layers[1].parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intermediate_size": 97}, "97 channels, but this decoder has 96"),
        ({"intermediate_size": 90, "multiple_of": 64}, "128 channels"),
        ({"intermediate_size": 0}, "at least 1"),
        ({"intermediate_size": 64, "multiple_of": 0}, "at least 1"),
    ],
)
def test_impossible_sizes(arguments: dict[str, int], message: str, make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    with pytest.raises(PruningError, match=message):
        prune_width(model, [IDS], **arguments)
    assert model.config.intermediate_size == model.model.layers[0].mlp.up_proj.out_features == 96


@pytest.mark.parametrize("channels", [[[0]], [[0], [1], [0, 1]], [[0, 0]] * 3, [[96]] * 3, [[]] * 3])
def test_impossible_channels(channels: list[list[int]], make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    with pytest.raises(PruningError, match="channels of"):
        keep_channels(model, channels)
    assert model.model.layers[0].mlp.up_proj.out_features == 96


def test_quantized_matrices_are_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    make(SPECS["chatglm2"].replace(hidden_size=128, intermediate_size=192, head_dim=64)).save_pretrained(tmp_path)
    model = glmlike.GlmLikeForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    with pytest.raises(PruningError, match="Prune the floats"):
        prune_width(model, [IDS], intermediate_size=64)
