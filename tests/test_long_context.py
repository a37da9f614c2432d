"""Stretched positions: what each scaling is, that it survives files, and who refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import glmlike
from glmlike import ConfigError, GlmLikeConfig, GlmLikeForCausalLM
from glmlike.long_context import longest_text, scale, stretched
from specs import SPECS

IDS = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(5))
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": 16.0},
    "llama3": {},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]},
}
SHORT = {"max_position_embeddings": 16}
ROTARY = [  # interleaved and partial; halves and whole; sandwiched; with a window; with a prefix
    *("chatglm2", "glm-edge", "llama-3", "qwen2.5", "glm-4-0414", "qwen2-sliding", "chatglm2-ptuned"),
]


def parameters(kind: str, pairs: int) -> dict[str, Any]:
    """As many searched factors as there are pairs."""
    return {
        name: value * (pairs // len(value)) if isinstance(value, list) else value for name, value in KINDS[kind].items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chatglm2", "llama-3"])
def test_frequencies_are_transformers_own_and_survive_every_file(
    name: str, kind: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    spec = SPECS[name].replace(**SHORT)
    make(spec).save_pretrained(tmp_path / "plain")
    config = scale(GlmLikeConfig.from_pretrained(tmp_path / "plain"), kind, 4, **parameters(kind, spec.rotary_dim // 2))  # type: ignore[arg-type]
    found = config.spec
    assert found.replace(rope_scaling=spec.rope_scaling, **SHORT) == spec  # nothing else changed
    assert found.max_position_embeddings == (16 if kind == "dynamic" else 64)
    model = GlmLikeForCausalLM.from_pretrained(tmp_path / "plain", config=config)
    rotary = model.model.rotary_emb
    expected, attention = ROPE_INIT_FUNCTIONS[kind](config)
    assert torch.equal(rotary.inv_freq, expected)
    assert rotary.attention_scaling == attention
    with torch.no_grad():
        plain, stretched = GlmLikeForCausalLM.from_pretrained(tmp_path / "plain")(IDS).logits, model(IDS).logits
    assert not torch.allclose(plain, stretched, atol=1e-2)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.spec == found
    assert torch.equal(again(IDS).logits, stretched)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("name", ROTARY)
def test_cached_decoding_beyond_the_trained_length_is_the_full_forward(
    name: str, kind: str, make: Callable[..., Any]
) -> None:
    model = make(SPECS[name].replace(**SHORT))
    model = GlmLikeForCausalLM.from_pretrained(None, config=scale(model.config, kind, 4), state_dict=model.state_dict())  # type: ignore[arg-type]
    with torch.no_grad():
        full = model(IDS).logits
        if kind == "dynamic":  # the base moves with the length, cached keys do not: transformers' known limit
            short = model(IDS[:, :12]).logits
            unscaled = make(SPECS[name].replace(**SHORT))
            assert_close(short, unscaled(IDS[:, :12]).logits, atol=1e-5, rtol=1e-5)
            return
        first = model(IDS[:, :20], use_cache=True)
        rest = model(IDS[:, 20:], past_key_values=first.past_key_values).logits
    assert_close(torch.cat((first.logits, rest), dim=1), full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_as_the_commands_say_it(kind: str, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2"].replace(**SHORT)).save_pretrained(tmp_path)
    config = stretched(tmp_path, f"{kind}:2.5")
    assert config.spec == scale(GlmLikeConfig.from_pretrained(tmp_path), kind, 2.5).spec  # type: ignore[arg-type]
    assert longest_text(config) == 40
    for wrong in (kind, f"{kind}:", f"{kind}:much"):
        with pytest.raises(ConfigError, match="KIND:FACTOR"):
            stretched(tmp_path, wrong)


def test_linear_on_linear_multiplies() -> None:
    config = scale(GlmLikeConfig.from_spec(SPECS["chatglm2-32k"]), "linear", 2)
    assert dict(config.spec.rope_scaling)["factor"] == 8
    assert config.max_position_embeddings == longest_text(config) == 512


@pytest.mark.parametrize(
    ("name", "kind", "arguments", "message"),
    [
        ("glm-10b", "yarn", {"factor": 2}, "a learned table"),
        ("chatglm-6b", "linear", {"factor": 2}, "two-dimensional"),
        ("infilling-recipe", "dynamic", {"factor": 2}, "two-dimensional"),
        ("glm-130b", "yarn", {"factor": 2}, "float16"),
        ("llama-3.1", "yarn", {"factor": 2}, "rope_type='llama3' already"),
        ("llama-3", "stretch", {"factor": 2}, "expected one of linear, dynamic"),
        ("llama-3", "yarn", {"factor": 1}, "above 1"),
        ("llama-3", "yarn", {"factor": float("nan")}, "above 1"),
        ("llama-3", "longrope", {"factor": 2}, "nothing as short_factor: expected 8 numbers"),
        ("llama-3", "longrope", {"factor": 2, "short_factor": [1.0] * 8, "long_factor": [1.0]}, "1 numbers as long"),
    ],
)
def test_what_cannot_be_stretched_says_why(name: str, kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scale(GlmLikeConfig.from_spec(SPECS[name]), kind, **arguments)


@pytest.mark.parametrize("target", ["chatglm", "glm", "glmlike", "native"])
def test_an_override_at_loading_keeps_the_base_the_share_and_the_trained_length(
    target: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    """An override that reset the base to 10000 would load without a word and be wrong."""
    spec = SPECS["glm-4-9b"].replace(**SHORT)
    make(spec).save_pretrained(tmp_path / "native")
    if target != "native":
        glmlike.convert(tmp_path / "native", tmp_path / target, to=target)
    rope = {"rope_type": "yarn", "factor": 4.0}
    model = GlmLikeForCausalLM.from_pretrained(tmp_path / target, rope_parameters=rope, dtype=torch.float32)
    found = model.config.spec
    assert (found.rope_theta, found.partial_rotary_factor) == (spec.rope_theta, 0.5)
    assert dict(found.rope_scaling)["original_max_position_embeddings"] == 16
    expected = scale(GlmLikeConfig.from_spec(spec), "yarn", 4.0)
    assert torch.equal(model.model.rotary_emb.inv_freq, ROPE_INIT_FUNCTIONS["yarn"](expected)[0])
    based = GlmLikeForCausalLM.from_pretrained(tmp_path / target, rope_parameters={**rope, "rope_theta": 7.0})
    assert based.config.spec.rope_theta == 7.0
    if target in ("chatglm", "glmlike"):
        assert AutoConfig.from_pretrained(tmp_path / target, rope_parameters=rope).spec == found


def test_an_override_replaces_a_scaling_whole(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["llama-3.1"]).save_pretrained(tmp_path)
    model = GlmLikeForCausalLM.from_pretrained(tmp_path, rope_parameters={"rope_type": "default"})
    assert model.config.spec == SPECS["llama-3.1"].replace(rope_scaling={"rope_type": "default"})


def test_a_window_of_qwen2_slides_where_its_fields_say(make: Callable[..., Any]) -> None:
    """``use_sliding_window`` is off in every published Qwen2.5, whose config still has a window."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 1, "sliding_window": 4}
    off, on = (GlmLikeForCausalLM(Qwen2Config(**sizes, use_sliding_window=said)).eval() for said in (False, True))
    cached = [
        [layer.keys.shape[2] for layer in model(IDS, use_cache=True).past_key_values.layers] for model in (off, on)
    ]
    assert cached == [[40, 40, 40], [40, 3, 3]]
