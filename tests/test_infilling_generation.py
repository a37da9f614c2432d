"""Everything generate may be asked for by a caller of an infilling decoder, checked by whole forwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from glmlike.errors import ConfigError
from glmlike.renamed import CACHE
from specs import SPECS

MASK, SMASK, GMASK, SOP = 90, 91, 92, 93
INFILLING = ("glm-10b", "chatglm-6b", "glm-130b", "infilling-recipe")
TOLERANCE = 1e-5
ROWS = [
    [5, 6, MASK, 8, 9, SOP],
    [11, 12, 13, 14, SMASK, 15, SOP, 17],
    [21, 22, GMASK, SOP],
    [MASK, 31, 32, MASK, SOP, 33, 34, SOP, 35],
    [41, 42, 43],
]
NEW = 6


@pytest.fixture(params=INFILLING)
def model(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return make(SPECS[str(request.param)], eos_token_id=None)


def row(*ids: int) -> torch.Tensor:
    return torch.tensor([ids])


def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the left, with their mask."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def stepwise(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """Greedy decoding without cache or generate: the whole row anew for every token."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return [int(token) for token in ids[0, -count:]]


@torch.no_grad()
def logits_alone(model: Any, sequence: torch.Tensor, prompt: list[int], padded: int) -> torch.Tensor:
    """The logits that made each new token of a generated row, from one forward of the row without its padding."""
    ids = torch.tensor([[*prompt, *sequence[padded:].tolist()]])
    return model(ids).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_sampled_rows_of_every_kind_have_the_logits_of_the_rows_alone(cache: str, attention: str, model: Any) -> None:
    inputs = batch(ROWS)
    padded = inputs["input_ids"].shape[1]
    model.set_attn_implementation(attention)
    torch.manual_seed(0)
    output = model.generate(
        **inputs,
        max_new_tokens=NEW,
        do_sample=True,
        temperature=3.0,
        num_return_sequences=2,
        cache_implementation=cache,
        suppress_tokens=[SOP],  # it would turn the plain row into one with a context, which no cache can hold
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert output.sequences.shape[0] == 2 * len(ROWS)
    assert len({tuple(sequence.tolist()) for sequence in output.sequences}) == 2 * len(ROWS)
    found = torch.stack(output.logits, dim=1)
    for index, sequence in enumerate(output.sequences):
        alone = logits_alone(model, sequence, ROWS[index // 2], padded)
        assert_close(found[index], alone, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_beams_of_a_mixed_batch_have_the_scores_of_the_rows_alone(model: Any) -> None:
    inputs = batch(ROWS)
    padded = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        max_new_tokens=NEW,
        num_beams=4,
        num_return_sequences=2,
        do_sample=False,
        length_penalty=0.0,
        suppress_tokens=[SOP],
        return_dict_in_generate=True,
        output_scores=True,
    )
    for index, sequence in enumerate(output.sequences):
        logs = logits_alone(model, sequence, ROWS[index // 2], padded).log_softmax(-1)
        total = logs.gather(1, sequence[padded:, None]).sum()
        assert_close(output.sequences_scores[index], total, atol=1e-4, rtol=1e-4)


def test_assisted_generation_gives_the_greedy_tokens(model: Any, make: Callable[..., Any]) -> None:
    ids = row(5, 6, MASK, 8, MASK, 5, 6, SOP)
    expected = stepwise(model, ids, 12)
    for assistant in (make(model.config.spec, seed=7, eos_token_id=None), model):
        found = model.generate(ids, assistant_model=assistant, max_new_tokens=12, do_sample=False)
        assert found[0, 8:].tolist() == expected
    found = model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=12, do_sample=False)
    assert found[0, 8:].tolist() == expected


def test_contrastive_search_is_not_run_as_something_else(model: Any) -> None:
    """transformers keeps it in a repository of code, which it does not fetch unasked."""
    with pytest.raises((ValueError, OSError)):
        model.generate(row(5, MASK, SOP), penalty_alpha=0.6, top_k=4, max_new_tokens=3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_returned_cache_continues_with_all_the_ids(cache: str, model: Any) -> None:
    inputs = batch(ROWS[:4])
    arguments: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    whole = model.generate(**inputs, max_new_tokens=9, **arguments).sequences
    caches = {
        "dynamic": DynamicCache(config=model.config),
        "static": StaticCache(config=model.config, max_cache_len=40),
    }
    first = model.generate(**inputs, max_new_tokens=4, **{CACHE: caches[cache]}, **arguments)
    mask = torch.cat((inputs["attention_mask"], torch.ones(4, 4, dtype=torch.long)), dim=1)
    again = model.generate(first.sequences, attention_mask=mask, max_new_tokens=5, **{CACHE: first[CACHE]}, **arguments)
    assert again.sequences.tolist() == whole.tolist()


def test_continuing_adds_the_callers_own_tokens(model: Any) -> None:
    ids = row(5, 6, MASK, 8, MASK, 9, SOP)
    first = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, row(SOP, 20)), dim=1)
    real = torch.ones_like(longer)  # a generated token may be the padding's
    found = model.generate(longer, attention_mask=real, max_new_tokens=4, do_sample=False, **{CACHE: first[CACHE]})
    assert found[0, -4:].tolist() == stepwise(model, longer, 4)


@torch.no_grad()
def test_what_a_cache_cannot_continue_is_refused(model: Any) -> None:
    ids, cache = row(5, MASK, 6, SOP, 7), DynamicCache(config=model.config)
    model(ids[:, :2], **{CACHE: cache})
    with pytest.raises(ValueError, match="row 0: its context ends after the 2 tokens in the cache"):
        model.generate(ids, max_new_tokens=2, **{CACHE: cache})
    cache = DynamicCache(config=model.config)
    model(ids, **{CACHE: cache})
    with pytest.raises(ValueError, match="1 tokens beside a cache of 5: .*all token ids"):
        model.generate(row(9), attention_mask=torch.ones(1, 6), max_new_tokens=2, **{CACHE: cache})
    with pytest.raises(ValueError, match="whole rows.*leave prefill_chunk_size out"):
        model.generate(ids, max_new_tokens=2, prefill_chunk_size=3)


def explicit(model: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two rows of two blanks, of which the second is to be filled first, and positions that say so."""
    inputs = batch([[5, MASK, 6, MASK, 7, SOP], [11, MASK, 12, 13, SMASK, SOP]])
    positions = model.infilling_positions(**inputs).clone()
    positions.reshape(2, -1, 6)[:, 0, -1] = torch.tensor([3, 4])
    return inputs, positions


@torch.no_grad()
def stepwise_at(model: Any, ids: torch.Tensor, positions: torch.Tensor, count: int) -> list[list[int]]:
    """Greedy decoding by whole forwards of rows whose last piece stays where it stands."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids, position_ids=positions).logits[:, -1:].argmax(-1)), dim=1)
        new = positions[..., -1:].clone()
        if positions.ndim == 3:
            new[:, 1] += 1
        positions = torch.cat((positions, new), dim=-1)
    return ids[:, -count:].tolist()


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "one beam of two": {"num_beams": 2, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_explicit_positions_of_a_prompt_are_used_and_continued(way: str, model: Any) -> None:
    inputs, positions = explicit(model)
    arguments = {"max_new_tokens": NEW, "do_sample": False, **WAYS[way]}
    found = model.generate(**inputs, position_ids=positions, **arguments)
    derived = model.generate(**inputs, **arguments)
    assert found.tolist() != derived.tolist()
    if "num_beams" not in arguments:
        assert found[:, 6:].tolist() == stepwise_at(model, inputs["input_ids"], positions, NEW)
    arguments["suppress_tokens"] = [SOP]  # derived positions begin a new piece there, given ones go on
    same = model.generate(**inputs, position_ids=model.infilling_positions(**inputs), **arguments)
    assert same.tolist() == model.generate(**inputs, **arguments).tolist()


@torch.no_grad()
def test_explicit_positions_in_beam_search_have_the_scores_of_the_model(model: Any) -> None:
    inputs, positions = explicit(model)
    output = model.generate(
        **inputs,
        position_ids=positions,
        max_new_tokens=NEW,
        num_beams=3,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    whole = positions
    for _ in range(NEW):
        new = whole[..., -1:].clone()
        if whole.ndim == 3:
            new[:, 1] += 1
        whole = torch.cat((whole, new), dim=-1)
    logs = model(output.sequences, position_ids=whole).logits.log_softmax(-1)[:, 5:-1]
    totals = logs.gather(2, output.sequences[:, 6:, None]).sum((1, 2))
    assert_close(output.sequences_scores, totals, atol=1e-4, rtol=1e-4)


def test_explicit_positions_with_an_assistant(model: Any, make: Callable[..., Any]) -> None:
    inputs, positions = explicit(model)
    ids, positions = inputs["input_ids"][:1], positions[:1]
    for help_ in (
        {"assistant_model": make(model.config.spec, seed=7, eos_token_id=None)},
        {"prompt_lookup_num_tokens": 2},
    ):
        found = model.generate(ids, position_ids=positions, max_new_tokens=NEW, do_sample=False, **help_)
        assert found[:, 6:].tolist() == stepwise_at(model, ids, positions, NEW)


def test_explicit_positions_of_the_wrong_shape_are_refused(model: Any) -> None:
    ids = row(5, MASK, SOP)
    positions = model.infilling_positions(ids)
    for wrong in (positions[..., :2], positions[None], positions.expand(2, *positions.shape[1:])):
        with pytest.raises(ValueError, match=r"position_ids \[.*for a prompt \[1, 3\]: expected \[1, .*infilling_pos"):
            model.generate(ids, position_ids=wrong, max_new_tokens=2)


@torch.no_grad()
def test_embeddings_take_two_dimensional_positions_for_the_mask(model: Any) -> None:
    inputs = batch(ROWS[:4])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embeddings, positions = model.get_input_embeddings()(ids), model.infilling_positions(ids, mask)
    two_dimensional = positions.ndim == 3
    if two_dimensional:
        found = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits
        expected = model(ids, attention_mask=mask).logits
        assert_close(found[mask.bool()], expected[mask.bool()], atol=TOLERANCE, rtol=TOLERANCE)
        generated = model.generate(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, max_new_tokens=NEW, do_sample=False
        )
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, suppress_tokens=[SOP])
        first = generated[:, 0].tolist()
        assert first == tokens[:, ids.shape[1]].tolist()
        explicit_ids = model.generate(
            ids, attention_mask=mask, position_ids=positions, max_new_tokens=NEW, do_sample=False
        )
        assert generated.tolist() == explicit_ids[:, ids.shape[1] :].tolist()
    else:
        with pytest.raises(ValueError, match=r"neither embeddings nor one-dimensional positions.*Pass input_ids"):
            model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions)
    with pytest.raises(ValueError, match="generate with input_ids, inputs_embeds and position_ids: pass one"):
        model.generate(ids, inputs_embeds=embeddings, position_ids=positions, max_new_tokens=2)
    with pytest.raises(ValueError, match="generate with inputs_embeds.*Pass input_ids alone"):
        model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=2)


def test_one_dimensional_pieces_that_count_on_and_those_that_stay(make: Callable[..., Any]) -> None:
    """What GLM-130B's positions say of a prompt: a [gMASK] counts on, a [MASK] stays, whatever stands between."""
    model = make(SPECS["glm-130b"], eos_token_id=None)
    for prompt in ((5, GMASK, SOP, 7), (5, MASK, SOP), (MASK, MASK, SOP, 6, SOP), (5, 6), (GMASK, SOP), (0, 5, SOP)):
        ids, mask = row(0, *prompt), row(0, *[1] * len(prompt))
        arguments = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "suppress_tokens": [SOP]}
        given = model.generate(ids, position_ids=model.infilling_positions(ids, mask), **arguments)
        assert given.tolist() == model.generate(ids, **arguments).tolist()


@torch.no_grad()
def test_text_without_a_blank_is_continued_as_plain_text(model: Any) -> None:
    ids = row(41, 42, 43, 44)
    found = model.generate(ids, max_new_tokens=4, do_sample=False, suppress_tokens=[SOP])
    plain = torch.arange(8)[None]
    positions = torch.stack((plain, torch.zeros_like(plain)), dim=1) if model.config.positions != "rotary" else plain
    allowed = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    logits = model(found, position_ids=positions, attention_mask=allowed).logits
    logits[..., SOP] = -torch.inf
    assert logits[0, 3:-1].argmax(-1).tolist() == found[0, 4:].tolist()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: apt-get install g++")
def test_compiled_decoding_gives_the_same_tokens(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm-6b"], eos_token_id=None)
    inputs = batch(ROWS[:4])
    expected = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    torch.compiler.reset()  # each model of this process counts as a recompilation of the same code
    model.forward = torch.compile(model.forward, fullgraph=True)
    found = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, cache_implementation="static")
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["chatglm-6b", "infilling-recipe", "chatglm2-ptuned"])
def test_continuous_batching_is_refused_at_its_entry(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    with pytest.raises(ConfigError, match=r"continuous batching \(generate_batch\) with"):
        model.generate_batch(inputs=[[3, 4, 5]], progress_bar=False)
    with pytest.raises(ConfigError, match=r"continuous batching \(generate_batch\) with"):
        model.init_continuous_batching()
