"""Packed rows: every sample of a row gives what it gives alone, whatever the attention, the padding or the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening, DynamicCache

from glmlike import GlmLikeConfig
from glmlike.packing import Samples
from glmlike.prefix import context_blocks, infilling_positions
from glmlike.renamed import CACHE
from specs import SPECS

MASK, SMASK, GMASK, SOP = 90, 91, 92, 93
INFILLING = ("glm-10b", "chatglm-6b", "glm-130b", "infilling-recipe")
CAUSAL = ("chatglm2", "glm-4-0414", "qwen2-sliding")
TOLERANCE = 1e-5

SAMPLES = [
    [5, 6, MASK, 8, 9, SOP, 10, 11],
    [11, MASK, 13, 14, SMASK, 15, SOP, 17, SOP, 18, 19],
    [21, 22, GMASK, SOP, 23, 24, 25],
    [41, 42, 43],
    [SOP, 44],
    [51, MASK, SOP],
    [52],
]
PADS = ((0, 0), (2, 3))
"""Padding before and after the samples of each packed row."""


def packed(*, padding: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of ids, mask and seq_idx: the samples in order, and in reverse; padded on both sides or cut to fit."""
    rows: list[list[list[int]]] = []
    for order, (left, right) in zip((SAMPLES, SAMPLES[::-1]), PADS if padding else PADS[:1] * 2, strict=True):
        ids = [0] * left + [token for sample in order for token in sample] + [0] * right
        real = [0] * left + [1] * sum(map(len, order)) + [0] * right
        number = [0] * left + [i for i, sample in enumerate(order) for _ in sample] + [len(order) - 1] * right
        rows.append([ids + [0] * (5 * padding - left - right), real, number])
    length = len(rows[0][0])
    for row in rows:
        row[1] += [0] * (length - len(row[1]))
        row[2] += [row[2][-1]] * (length - len(row[2]))
    ids, mask, seq_idx = (torch.tensor([row[i] for row in rows]) for i in range(3))
    return ids, mask, seq_idx


@pytest.fixture(params=(*INFILLING, *CAUSAL))
def model(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return make(SPECS[str(request.param)], eos_token_id=None)


def alone(model: Any) -> list[torch.Tensor]:
    return [model(torch.tensor([sample])).logits[0] for sample in SAMPLES]


def check_packed(model: Any, attention: str, padding: bool, tolerance: float) -> None:
    ids, mask, seq_idx = packed(padding=padding)
    expected = alone(model)
    model.set_attn_implementation(attention)
    output = model(ids, attention_mask=mask if padding else None, seq_idx=seq_idx, use_cache=True)
    assert output.logits.isfinite().all()
    assert not any(isinstance(value, DynamicCache) for value in output.values())
    for found, row_mask, order in zip(output.logits, mask, (expected, expected[::-1]), strict=True):
        assert_close(found[row_mask.bool()], torch.cat(order), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_packed_samples_are_the_samples_alone(attention: str, padding: bool, model: Any) -> None:
    check_packed(model, attention, padding, TOLERANCE)


@pytest.mark.parametrize("name", ["glm-10b", "qwen2-sliding"])
def test_flex_attention_is_refused(name: str, make: Callable[..., Any]) -> None:
    ids, mask, seq_idx = packed(padding=True)
    model = make(SPECS[name], eos_token_id=None)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="compiled kernels can mix up the samples of a row. Use 'sdpa' or 'eager'"):
        model(ids, attention_mask=mask, seq_idx=seq_idx)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_of_packed_samples_are_the_sum_of_the_samples(
    attention: str, checkpointing: bool, model: Any
) -> None:
    ids, mask, seq_idx = packed(padding=True)
    weights = torch.randn(96, generator=torch.Generator().manual_seed(0))
    for logits in alone(model):
        (2 * logits @ weights).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation(attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    logits = model(ids, attention_mask=mask, seq_idx=seq_idx).logits
    (logits[mask.bool()] @ weights).sum().backward()
    model.gradient_checkpointing_disable()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        # Without rotary positions a bias of all keys changes no attention weight: its gradient is rounding alone.
        scale = max(expected[name].abs().max().item(), 1e-2 * largest)
        assert_close(parameter.grad / scale, expected[name] / scale, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


def config_of(name: str) -> GlmLikeConfig:
    blanks = {"mask_token_id": MASK, "smask_token_id": SMASK, "gmask_token_id": GMASK, "sop_token_id": SOP}
    return GlmLikeConfig.from_spec(SPECS[name], **blanks)


@pytest.mark.parametrize("name", INFILLING)
def test_positions_and_blocks_are_those_of_each_sample(name: str) -> None:
    config = config_of(name)
    ids, mask, seq_idx = packed(padding=True)
    positions = infilling_positions(ids, mask, config, seq_idx)
    blocks = context_blocks(ids, mask, config, seq_idx)
    for row, order in enumerate((SAMPLES, SAMPLES[::-1])):
        real = mask[row].bool()
        rows = [torch.tensor([sample]) for sample in order]
        expected = torch.cat([infilling_positions(ids, None, config)[0] for ids in rows], dim=-1)
        assert torch.equal(positions[row][..., real], expected)
        contexts = [torch.where(context_blocks(ids, None, config)[0] == 0, i, -1) for i, ids in enumerate(rows)]
        assert torch.equal(blocks[row][real], torch.cat(contexts))
        assert (blocks[row][~real] == -1).all()


@pytest.mark.parametrize("seed", range(5))
def test_sums_within_samples_are_those_of_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seq_idx = torch.randint(0, 2, (3, 20), generator=generator).cumsum(-1)
    values = torch.randint(-5, 9, (3, 20), generator=generator)
    samples = Samples(seq_idx, values)
    for row in range(3):
        for number in seq_idx[row].unique():
            inside = seq_idx[row] == number
            part = values[row][inside]
            assert samples.count(values)[row][inside].tolist() == part.cumsum(-1).tolist()
            assert (samples.first[row][inside] == inside.nonzero()[0]).all()
            for how in ("sum", "amax", "amin"):
                assert (samples.over(values, how)[row][inside] == getattr(part, how)()).all()


def test_padding_inside_a_sample_is_no_border() -> None:
    config = config_of("chatglm-6b")
    ids, mask = torch.tensor([[5, 0, MASK, SOP, 7, SOP]]), torch.tensor([[1, 0, 1, 1, 1, 1]])
    positions = infilling_positions(ids, mask, config, torch.tensor([[0, 0, 0, 0, 0, 1]]))
    assert positions[0][:, mask[0].bool()].tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 2, 1]]


@torch.no_grad()
def test_explicit_positions_and_masks_win_over_derived_ones(model: Any) -> None:
    ids, _, seq_idx = packed(padding=False)
    if model.config.attention_mask == "prefix":
        derived = infilling_positions(ids, None, model.config, seq_idx)
    else:
        derived = torch.arange(ids.shape[1])[None] - Samples(seq_idx, ids).first
    expected = model(ids, seq_idx=seq_idx).logits
    assert torch.equal(model(ids, seq_idx=seq_idx, position_ids=derived).logits, expected)
    moved = derived + 3 * seq_idx.reshape(2, *[1] * (derived.ndim - 2), -1)
    other = model(ids, seq_idx=seq_idx, position_ids=moved).logits
    if model.config.positions == "learned_2d":
        assert not torch.allclose(other[0, 8:], expected[0, 8:], atol=1e-3)
    else:  # rotary positions are relative, and samples do not see each other
        assert_close(other, expected, atol=1e-4, rtol=1e-4)
    if model.config.sliding_window is None:
        everything = torch.ones(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        ready = model(ids, seq_idx=seq_idx, position_ids=derived, attention_mask=everything).logits
        assert not torch.allclose(ready, expected, atol=1e-3)


@pytest.mark.parametrize("name", [*INFILLING, *CAUSAL])
@torch.no_grad()
def test_what_transformers_own_collator_packs(name: str, make: Callable[..., Any]) -> None:
    """Its position_ids are plain; an infilling decoder leaves them out, a causal one may take both."""
    model = make(SPECS[name], eos_token_id=None)
    causal = model.config.attention_mask == "causal"
    collate = DataCollatorWithFlattening(return_seq_idx=True, return_position_ids=causal, return_tensors="pt")
    batch = collate([{"input_ids": sample} for sample in SAMPLES])
    labels = batch.pop("labels")
    output = model(**batch, labels=labels)
    assert_close(output.logits[0], torch.cat(alone(model)), atol=TOLERANCE, rtol=TOLERANCE)
    assert output.loss.isfinite()


@pytest.mark.parametrize("with_seq_idx", [False, True])
@torch.no_grad()
def test_plain_positions_of_a_collator_say_where_samples_begin(with_seq_idx: bool, model: Any) -> None:
    """The default of DataCollatorWithFlattening, and both together, as TRL packs; with the cache left on."""
    two = model.config.positions in ("rotary_2d", "learned_2d")
    if two or model.config.attention_mask == "causal":
        samples = [sample for sample in SAMPLES if sample[0] != SOP or two]
    else:  # one-dimensional positions are taken as given: plain ones are those of text and of [gMASK]
        samples = [SAMPLES[2], SAMPLES[3], SAMPLES[6], SAMPLES[2]]
    collate = DataCollatorWithFlattening(return_seq_idx=with_seq_idx, return_tensors="pt")
    batch = collate([{"input_ids": sample} for sample in samples])
    output = model(**batch, use_cache=True)
    expected = [model(torch.tensor([sample])).logits[0] for sample in samples]
    assert_close(output.logits[0], torch.cat(expected), atol=TOLERANCE, rtol=TOLERANCE)
    one = collate([{"input_ids": samples[0]}])
    assert_close(model(**one).logits[0], expected[0], atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_a_piece_at_the_first_place_is_no_packed_sample(make: Callable[..., Any]) -> None:
    model = make(SPECS["glm-130b"], eos_token_id=None)
    ids = torch.tensor([[MASK, 5, 6, SOP, 7, 8]])
    positions = model.infilling_positions(ids)
    assert positions.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert torch.equal(model(ids, position_ids=positions).logits, model(ids).logits)


@pytest.mark.slow
@torch.no_grad()
def test_packed_rows_are_one_graph(model: Any) -> None:
    ids, mask, seq_idx = packed(padding=True)
    expected = model(ids, attention_mask=mask, seq_idx=seq_idx).logits
    torch.compiler.reset()  # each model of this process counts as a recompilation of the same code
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(ids, attention_mask=mask, seq_idx=seq_idx).logits
    assert_close(found[mask.bool()], expected[mask.bool()], atol=TOLERANCE, rtol=TOLERANCE)


def test_what_cannot_be_packed_is_refused(model: Any) -> None:
    ids, mask, seq_idx = packed(padding=True)
    with pytest.raises(ValueError, match="seq_idx with a key-value cache.*Leave the cache out"):
        model(ids, seq_idx=seq_idx, **{CACHE: DynamicCache(config=model.config)})
    with pytest.raises(ValueError, match="generate with seq_idx.*one sample a row"):
        model.generate(ids, attention_mask=mask, seq_idx=seq_idx, max_new_tokens=2)
    for wrong in (seq_idx[:, 1:], seq_idx[:1], seq_idx.float()):
        with pytest.raises(ValueError, match=r"seq_idx \[.*expected integers \[2, 40\]"):
            model(ids, seq_idx=wrong)
    with pytest.raises(ValueError, match=r"attention_mask \[2, 39\] beside seq_idx \[2, 40\]"):
        model(ids, attention_mask=mask[:, 1:], seq_idx=seq_idx)


def test_flash_attention_packs_one_row_only(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    model.config._attn_implementation_internal = "flash_attention_2"
    ids, _, seq_idx = packed(padding=False)
    with pytest.raises(ValueError, match="2 rows: flash attention keeps samples apart in a single row"):
        model(ids, seq_idx=seq_idx)
    with pytest.raises(ValueError, match="1 rows: flash attention keeps samples apart in a single row"):
        model(ids[:1], seq_idx=seq_idx[:1], attention_mask=torch.ones_like(ids[:1]))
