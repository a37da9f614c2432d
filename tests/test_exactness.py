"""Our decoder computes what transformers' own classes compute, number for number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from glmlike import GlmLikeForCausalLM
from glmlike.checkpoint.formats import TABLES
from glmlike.renamed import CACHE
from native_models import FAMILIES, native_model, to_native, twin

TOLERANCE = 2e-5  # float32: gate and up in one product and in two are rounded differently
RELATIVE = 1e-4  # logits of random decoders reach tens; a wrong order or mask shows as differences of whole units

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 10_000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 10_000.0,
    },
}


def rope(kind: str, rotary_dim: int) -> dict[str, Any]:
    if kind != "longrope":
        return dict(ROPES[kind])
    factors = [1.0 + index / 4 for index in range(rotary_dim // 2)]
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": [2 * factor for factor in factors],
        "original_max_position_embeddings": 8,
        "factor": 4.0,
        "rope_theta": 10_000.0,
    }


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family and a random decoder of it."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([8, 16, 20]))
    heads = kv_heads * draw(st.integers(1, 3))
    factor = draw(st.sampled_from([0.5, 1.0])) if family.startswith("glm") else 1.0
    kind = draw(st.sampled_from([*ROPES, "longrope"]))
    config: dict[str, Any] = {
        "vocab_size": draw(st.integers(5, 90)),
        "hidden_size": heads * draw(st.sampled_from([1, 4, 8])),  # LlamaConfig asks for a multiple
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 16,  # shorter than the rows, so that dynamic types change with length
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1.5625e-7, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": rope(kind, int(head_dim * factor)),
    }
    if family.startswith("glm"):
        config["rope_parameters"]["partial_rotary_factor"] = factor
    if family != "qwen2":
        config["attention_bias"] = draw(st.booleans())
    if family == "llama":
        config["mlp_bias"] = draw(st.booleans())
    if family == "qwen2" and draw(st.booleans()):
        config |= {"use_sliding_window": True, "sliding_window": draw(st.integers(1, 8)), "max_window_layers": 1}
    return family, config


def random_tokens(vocab_size: int, rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def check_all_ways(theirs: Any, ours: Any) -> None:
    """Forward, left-padded, packed and cached logits of both classes agree."""
    tokens = random_tokens(theirs.config.vocab_size, 2, 21)
    padding = torch.ones_like(tokens)
    padding[1, :6] = 0
    packed = torch.cat((torch.arange(8), torch.arange(13))).expand(2, -1)
    ways: list[dict[str, Any]] = [{}, {"attention_mask": padding}, {"position_ids": packed, "use_cache": False}]
    for way in ways:
        expected, found = (model(tokens, **way).logits for model in (theirs, ours))
        real = way["attention_mask"].bool() if "attention_mask" in way else slice(None)
        assert_close(found[real], expected[real], atol=TOLERANCE, rtol=RELATIVE)
    caches: list[Any] = [None, None]
    for start, stop in ((0, 15), (15, 16), (16, 21)):
        outputs = []
        for which, model in enumerate((theirs, ours)):
            output = model(tokens[:, start:stop], use_cache=True, **{CACHE: caches[which]})
            caches[which] = output[CACHE]
            outputs.append(output.logits)
        assert_close(outputs[1], outputs[0], atol=TOLERANCE, rtol=RELATIVE)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_random_decoders_agree_with_transformers_class(drawn: tuple[str, dict[str, Any]]) -> None:
    family, config = drawn
    theirs = native_model(family, **config)
    check_all_ways(theirs, twin(theirs))


@pytest.mark.parametrize("kind", [*ROPES, "longrope"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rope_type_agrees(family: str, kind: str) -> None:
    parameters = rope(kind, 8 if family.startswith("glm") else 16)
    if family.startswith("glm"):
        parameters["partial_rotary_factor"] = 0.5
    theirs = native_model(family, max_position_embeddings=16, rope_parameters=parameters)
    ours = twin(theirs)
    assert ours.config.spec.rope_type == kind
    check_all_ways(theirs, ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_agree(family: str) -> None:
    theirs = native_model(family)
    ours = twin(theirs)
    tokens = random_tokens(90, 2, 21)
    labels = tokens.masked_fill(tokens % 7 == 0, -100)
    losses = [model(tokens, labels=labels).loss for model in (theirs, ours)]
    assert_close(losses[1], losses[0], atol=TOLERANCE, rtol=RELATIVE)
    for loss in losses:
        loss.backward()
    expected = to_native({name: p.grad for name, p in theirs.named_parameters()}, family, ours.config.spec)
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name], atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_bfloat16_is_within_transformers_own_spread(family: str, tmp_path: Path) -> None:
    """No further from their eager or sdpa than these are from each other."""
    native_model(family).to(torch.bfloat16).save_pretrained(tmp_path)
    tokens = random_tokens(90, 2, 21)
    logits = {}
    for name, model_class in (("theirs", FAMILIES[family][1]), ("ours", GlmLikeForCausalLM)):
        for attention in ("eager", "sdpa"):
            model = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation=attention)
            logits[name, attention] = model(tokens).logits.float()
    spread = (logits["theirs", "eager"] - logits["theirs", "sdpa"]).abs().max()
    assert spread > 0
    for attention in ("eager", "sdpa"):
        assert (logits["ours", attention] - logits["theirs", attention]).abs().max() <= spread


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generated_tokens_agree(family: str, options: dict[str, Any]) -> None:
    theirs = native_model(family)
    ours = twin(theirs)
    tokens = random_tokens(90, 2, 7)
    padding = torch.ones_like(tokens)
    padding[0, :3] = 0
    arguments = {"attention_mask": padding, "max_new_tokens": 12, "do_sample": False, **options}
    expected, found = (model.generate(tokens, **arguments) for model in (theirs, ours))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_own_class_loads_as_ours(family: str, tmp_path: Path) -> None:
    theirs = native_model(family)
    theirs.save_pretrained(tmp_path)
    ours = GlmLikeForCausalLM.from_pretrained(tmp_path)
    tokens = random_tokens(90, 2, 21)
    with torch.no_grad():
        assert_close(ours(tokens).logits, theirs(tokens).logits, atol=TOLERANCE, rtol=0)


def test_tables_name_every_tensor_of_transformers_classes() -> None:
    for family in FAMILIES:
        theirs = native_model(family)
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
        assert TABLES[family].foreign_shapes(twin(theirs).config.spec) == shapes  # type: ignore[index]
