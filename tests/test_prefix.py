"""Blank infilling: masks and positions follow from the token ids, whatever the batch, the cache or the attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GlmConfig,
    GlmForCausalLM,
)

from glmlike import (
    CheckpointError,
    ConfigError,
    GlmLikeConfig,
    GlmLikeError,
    GlmLikeForCausalLM,
    GlmLikeModel,
    convert,
    detect,
    verify,
)
from glmlike.prefix import blocks_of_positions, context_blocks, infilling_positions, require_blanks
from glmlike.renamed import CACHE
from specs import SPECS

MASK, SMASK, GMASK, SOP = 90, 91, 92, 93
INFILLING = ("glm-10b", "chatglm-6b", "glm-130b", "infilling-recipe", "chatglm-6b-ptuned-projected")
TOLERANCE = 1e-5


@pytest.fixture(params=INFILLING)
def model(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return make(SPECS[str(request.param)], eos_token_id=None)


def row(*ids: int) -> torch.Tensor:
    return torch.tensor([ids])


CASES: dict[str, tuple[tuple[int, ...], list[int], list[int]]] = {
    "[gMASK] at the end": ((5, 6, GMASK, SOP, 7, 8), [0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]),
    "[MASK] inside": ((5, MASK, 6, SOP, 7), [0, 1, 2, 1, 1], [0, 0, 0, 1, 2]),
    "two blanks, two pieces": ((MASK, 5, SMASK, SOP, 7, SOP, 8), [0, 1, 2, 0, 0, 2, 2], [0, 0, 0, 1, 2, 1, 2]),
    "one blank, two pieces": ((5, MASK, SOP, 7, SOP), [0, 1, 1, 1, 1], [0, 0, 1, 2, 1]),
    "a [gMASK] wins": ((MASK, 5, GMASK, SOP, 7), [0, 1, 2, 2, 2], [0, 0, 0, 1, 2]),
    "a blank in a piece is text": ((5, MASK, SOP, MASK, 6), [0, 1, 1, 1, 1], [0, 0, 1, 2, 3]),
    "no blank": ((5, 6, SOP, 7), [0, 1, 1, 1], [0, 0, 1, 2]),
    "no piece": ((5, MASK, 6), [0, 1, 2], [0, 0, 0]),
    "a piece from the start": ((SOP, 5), [0, 0], [1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_positions_by_hand(case: str) -> None:
    ids, position, block = CASES[case]
    config = GlmLikeConfig.from_spec(
        SPECS["chatglm-6b"], mask_token_id=MASK, smask_token_id=SMASK, gmask_token_id=GMASK, sop_token_id=SOP
    )
    assert infilling_positions(row(*ids), None, config).tolist() == [[position, block]]
    padded, mask = row(0, 0, 0, *ids), row(0, 0, 0, *[1] * len(ids))
    assert infilling_positions(padded, mask, config)[..., 3:].tolist() == [[position, block]]


def test_one_dimensional_positions_of_glm_130b() -> None:
    """[gMASK] counts on; what fills a [MASK] or [sMASK] keeps the blank's position."""
    config = GlmLikeConfig.from_spec(
        SPECS["glm-130b"], mask_token_id=MASK, smask_token_id=SMASK, gmask_token_id=GMASK, sop_token_id=SOP
    )
    for ids, expected in (((5, GMASK, SOP, 7), [0, 1, 2, 3]), ((5, MASK, 6, SOP, 7), [0, 1, 2, 1, 1])):
        assert infilling_positions(row(*ids), None, config).tolist() == [expected]


def test_the_context_is_what_stands_before_the_first_piece(model: Any) -> None:
    ids = row(0, 5, MASK, SOP, 7, SOP, 8)
    assert context_blocks(ids, row(0, 1, 1, 1, 1, 1, 1), model.config).tolist() == [[-1, 0, 0, -1, -1, -1, -1]]
    assert context_blocks(row(5, MASK, 6), None, model.config).tolist() == [[-1, -1, -1]]


@torch.no_grad()
def test_the_context_is_read_both_ways_and_a_piece_only_back(model: Any) -> None:
    ids = row(5, 6, MASK, 8, SOP, 9, 10)
    logits = model(ids).logits
    for changed, seen_from in ((3, 0), (5, 5)):
        other = ids.clone()
        other[0, changed] = 20
        same = (model(other).logits == logits).all(-1)[0]
        assert same[:seen_from].all()
        assert not same[seen_from:].any()


@pytest.mark.parametrize("case", CASES)
def test_two_dimensional_positions_say_the_contexts(case: str, make: Callable[..., Any]) -> None:
    config = make(SPECS["chatglm-6b"]).config
    ids = row(0, 0, *CASES[case][0])
    mask = row(0, 0, *[1] * (ids.shape[1] - 2))
    found = blocks_of_positions(infilling_positions(ids, mask, config), mask, None)
    assert torch.equal(found, context_blocks(ids, mask, config))


UNFIT: dict[str, tuple[tuple[int, ...], str]] = {
    "no blank": ((5, 6, SOP), r"3 tokens: no blank \(mask 90, smask 91, gmask 92\)\. Put one where text is missing"),
    "nothing": ((), r"0 tokens: no blank"),
    "no start": ((5, MASK), r"2 tokens: no start of a piece \(sop 93\)\. End the prompt with it"),
    "the start first": ((5, SOP, MASK), r"3 tokens: no blank before its start of a piece \(sop 93\)"),
    "two [gMASK]": ((GMASK, 5, GMASK, SOP), r"4 tokens: several \[gMASK\] \(92\): each stands for all.*Leave one"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rows_unfit_to_be_filled_are_named(case: str, make: Callable[..., Any]) -> None:
    """Padding is not looked at, whatever its ids; rows that are fit pass."""
    config = make(SPECS["chatglm-6b"]).config
    ids, message = UNFIT[case]
    fit = (GMASK, 5, MASK, SMASK, MASK, SOP, GMASK, SOP)
    rows = torch.tensor([fit, (*[GMASK] * (len(fit) - len(ids)), *ids)])
    mask = torch.tensor([[1] * len(fit), [*[0] * (len(fit) - len(ids)), *[1] * len(ids)]])
    require_blanks(rows[:1], None, config)
    with pytest.raises(GlmLikeError, match="row 1 of 2, " + message):
        require_blanks(rows, mask, config)


def test_filling_needs_the_ids_of_the_blanks() -> None:
    config = GlmLikeConfig.from_spec(SPECS["chatglm-6b"], mask_token_id=MASK)
    with pytest.raises(ConfigError, match="sop_token_id=None: filling blanks needs the ids"):
        require_blanks(row(MASK, SOP), None, config)
    with pytest.raises(ConfigError, match="names no blank and sop_token_id=93"):
        require_blanks(row(MASK, SOP), None, GlmLikeConfig.from_spec(SPECS["chatglm-6b"], sop_token_id=SOP))


@torch.no_grad()
def test_two_gmask_and_rows_without_a_piece_are_no_error_in_a_plain_forward(model: Any) -> None:
    """Training data may hold them: every piece fills the first [gMASK], as in the original."""
    ids = row(GMASK, 5, GMASK, SOP, 7)
    assert model(ids).logits.isfinite().all()
    if model.config.positions != "rotary":
        assert infilling_positions(ids, None, model.config)[0, 0].tolist() == [0, 1, 2, 0, 0]
    plain = row(5, MASK, 6)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    found = model(plain, position_ids=model.infilling_positions(plain), attention_mask=causal).logits
    assert_close(model(plain).logits, found, atol=TOLERANCE, rtol=TOLERANCE)


def mixed_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with [MASK], [sMASK], [gMASK], two blanks, and none, padded on the left."""
    rows = [
        [5, 6, MASK, 8, 9, SOP],
        [11, 12, 13, 14, SMASK, 15, SOP, 17],
        [21, 22, GMASK, SOP],
        [MASK, 31, 32, MASK, SOP, 33, 34, SOP, 35],
        [41, 42, 43],
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_mixed_rows_in_a_batch_are_the_rows_alone(attention: str, model: Any) -> None:
    ids, mask = mixed_batch()
    expected = [model(r[m.bool()][None]).logits[0] for r, m in zip(ids, mask, strict=True)]
    model.set_attn_implementation(attention)
    batched = model(ids, attention_mask=mask).logits
    tolerance = 1e-4 if attention == "flex_attention" else TOLERANCE
    for found, alone, m in zip(batched, expected, mask, strict=True):
        assert_close(found[m.bool()], alone, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_cached_decoding_is_the_full_forward(model: Any) -> None:
    ids = row(5, 6, MASK, 8, SOP, 9, 10, 11)
    full, positions = model(ids).logits, model.infilling_positions(ids)
    cache = DynamicCache(config=model.config)
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 8)):
        part = {"position_ids": positions[..., start:stop], CACHE: cache}
        parts.append(model(ids[:, start:stop], **part).logits)
    assert_close(torch.cat(parts, dim=1), full, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def stepwise(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """Greedy decoding without cache or generate: the whole row anew for every token."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return [int(token) for token in ids[0, -count:]]


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_generation_in_a_batch_is_stepwise_decoding_alone(way: str, model: Any) -> None:
    ids, mask = mixed_batch()
    ids, mask = ids[:4], mask[:4]
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **WAYS[way])
    for r, m, generated in zip(ids, mask, found, strict=True):
        assert generated[-6:].tolist() == stepwise(model, r[m.bool()][None], 6)


@torch.no_grad()
def test_beam_search_scores_are_the_models(model: Any) -> None:
    ids = row(5, 6, MASK, 8, SOP)
    output = model.generate(
        ids, max_new_tokens=4, num_beams=3, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    logs = model(output.sequences).logits.log_softmax(-1)[0, 4:-1]
    total = logs.gather(1, output.sequences[0, 5:, None]).sum()
    assert_close(output.sequences_scores[0] * 4, total, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_explicit_masks_and_positions(model: Any) -> None:
    """A ready bool mask (True: may attend) says the same as the token ids, under eager and sdpa."""
    ids = row(5, 6, MASK, 8, SOP, 9, 10)
    expected, positions = model(ids).logits, model.infilling_positions(ids)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    allowed[:4, :4] = True
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        found = model(ids, position_ids=positions, attention_mask=allowed[None, None]).logits
        assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_cannot_be_derived_is_asked_for(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    ids = row(5, MASK, SOP)
    model(ids, **{CACHE: cache})
    with pytest.raises(ValueError, match="position_ids are needed here"):
        model(row(7), **{CACHE: cache})
    with pytest.raises(ValueError, match="position_ids are needed here"):
        model(inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize("name", ["glm-10b", "chatglm-6b"])
def test_flat_positions_for_a_two_dimensional_decoder_are_an_error(name: str, make: Callable[..., Any]) -> None:
    """Unless they are plain, which is what packing collators write (test_packing.py)."""
    ids = row(5, MASK, SOP)
    for given in ({"position_ids": row(0, 1, 1)}, {"position_ids": row(0, 1, 2), "attention_mask": row(1, 1, 1)}):
        with pytest.raises(ValueError, match=r"position_ids \[1, 3\]: this decoder has two-dimensional positions"):
            make(SPECS[name])(ids, **given)
    wrong = {"position_ids": row(0, 1, 0), "seq_idx": row(0, 1, 1)}
    with pytest.raises(ValueError, match=r"position_ids \[1, 3\]: this decoder has two-dimensional positions"):
        make(SPECS[name])(ids, **wrong)


def test_flash_attention_is_refused_with_the_reason(model: Any) -> None:
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="takes no mask.*Use 'sdpa', 'eager' or 'flex_attention'"):
        model(row(5, MASK, SOP))


def test_continuous_batching_is_refused_with_the_reason(make: Callable[..., Any]) -> None:
    class Paged:
        """As much of transformers' PagedAttentionCache as the decoder looks at."""

    model = make(SPECS["chatglm-6b"])
    with pytest.raises(ConfigError, match="packs rows without their contexts.*Use generate"):
        model(row(5, MASK, SOP), cache=Paged())


def test_gradients_flow_with_activation_checkpointing(model: Any) -> None:
    ids, gradients = row(5, 6, MASK, 8, SOP, 9, 10), []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", INFILLING)
def test_the_tensor_parallel_plan_names_what_there_is(name: str) -> None:
    model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(SPECS[name]))
    names = {name.removeprefix("model.").replace(".1.", ".*.") for name, _ in model.named_modules()}
    assert set(model.config.base_model_tp_plan) <= names
    assert "base_model_tp_plan" not in model.config.to_json_string(use_diff=False)


CHATGLM_CASES = ("gmask", "mask", "mask_partial", "sft")


@pytest.mark.parametrize("case", CHATGLM_CASES)
@torch.no_grad()
def test_chatglm_6b_gives_the_originals_outputs(case: str, golden: Path) -> None:
    expected = load_file(golden / "chatglm" / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(golden / "chatglm", trust_remote_code=True).eval()
    assert type(model) is GlmLikeForCausalLM
    assert model.config.spec.residual_scale == (2 * 3) ** 0.5
    ids, positions = expected[f"{case}.input_ids"], expected[f"{case}.position_ids"]
    assert torch.equal(model.infilling_positions(ids), positions)
    hidden = expected[f"{case}.attention_mask"]  # the original's convention: True is hidden
    for arguments in ({}, {"position_ids": positions, "attention_mask": ~hidden}):
        assert_close(model(ids, **arguments).logits, expected[f"{case}.logits"], atol=5e-5, rtol=0)
    if f"{case}.greedy" in expected:
        count = expected[f"{case}.greedy"].shape[1] - ids.shape[1]
        found = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)
        assert found.tolist() == expected[f"{case}.greedy"].tolist()


def test_chatglm_6b_loss_and_gradient(golden: Path) -> None:
    expected = load_file(golden / "chatglm" / "expected.safetensors")
    model = AutoModelForSeq2SeqLM.from_pretrained(golden / "chatglm").eval()
    loss = model(expected["sft.input_ids"], labels=expected["sft.labels"]).loss
    assert_close(loss.reshape(1), expected["sft.loss"], atol=5e-5, rtol=0)
    loss.backward()
    attention = model.model.layers[0].self_attn
    parts = [getattr(attention, f"{part}_proj").weight.grad.reshape(4, 1, 16, 64) for part in "qkv"]
    assert_close(torch.cat(parts, dim=1).reshape(192, 64), expected["sft.grad.qkv0"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", ["two_spans", "gmask"])
@torch.no_grad()
def test_glm_10b_gives_the_originals_outputs(case: str, golden: Path) -> None:
    """The folder's config names no token ids; the fixture's are 300 [MASK], 301 [gMASK] and 302 or 284 around them."""
    expected = load_file(golden / "glm" / "expected.safetensors")
    ids, positions = expected[f"{case}.input_ids"], expected[f"{case}.position_ids"]
    allowed = expected[f"{case}.attention_mask"].bool()
    model = AutoModelForCausalLM.from_pretrained(
        golden / "glm", mask_token_id=300, gmask_token_id=301, sop_token_id=302
    ).eval()
    assert type(model) is GlmLikeForCausalLM
    assert torch.equal(model.infilling_positions(ids), positions)
    for arguments in ({}, {"position_ids": positions, "attention_mask": allowed}):
        assert_close(model(ids, **arguments).logits, expected[f"{case}.logits"], atol=5e-5, rtol=0)


def test_glm_10b_loss_is_not_shifted_and_its_gradient_agrees(golden: Path) -> None:
    """The original scores logits[t] by labels[t]; ``shift_labels`` says that to transformers' loss."""
    expected = load_file(golden / "glm" / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(golden / "glm").eval()
    labels = expected["two_spans.labels"]
    arguments = {name: expected[f"two_spans.{name}"] for name in ("position_ids", "attention_mask")}
    arguments["attention_mask"] = arguments["attention_mask"].bool()
    output = model(expected["two_spans.input_ids"], labels=labels, shift_labels=labels, **arguments)
    assert_close(output.loss.reshape(1), expected["two_spans.loss"], atol=5e-5, rtol=0)
    output.loss.backward()
    attention = model.model.layers[0].self_attn
    found = torch.cat([getattr(attention, f"{part}_proj").weight.grad for part in "qkv"])
    assert_close(found, expected["two_spans.grad.qkv0"], atol=5e-5, rtol=0)


@pytest.fixture
def bare_glm(golden: Path, tmp_path: Path) -> Path:
    """The GLM-10B fixture as GLMModel saves it: without the prefix ``glm.``."""
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(golden / "glm" / "config.json", folder)
    tensors = load_file(golden / "glm" / "model.safetensors")
    bare = {name.removeprefix("glm."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_files_of_the_bare_glm_10b_decoder_load_too(bare_glm: Path, golden: Path) -> None:
    whole, loaded = (GlmLikeForCausalLM.from_pretrained(folder) for folder in (golden / "glm", bare_glm))
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    decoder = GlmLikeModel.from_pretrained(bare_glm)
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in decoder.state_dict().items())


@pytest.mark.parametrize("to", ["glmlike", "glm-10b"])
def test_files_of_the_bare_glm_10b_decoder_convert_too(to: Any, bare_glm: Path, golden: Path, tmp_path: Path) -> None:
    assert detect(bare_glm).format == "glm-10b"
    count = verify(golden / "glm", bare_glm)
    report = convert(bare_glm, tmp_path / "out", to=to)
    assert report.tensors == count if to == "glmlike" else report.tensors < count
    assert verify(tmp_path / "out", golden / "glm") == count
    if to == "glm-10b":
        assert all(name.startswith("glm.") for name in load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize("prefix", ["", "glm."])
def test_a_copied_head_of_glm_10b_must_be_the_embedding(prefix: str, bare_glm: Path, golden: Path) -> None:
    """Its head is the embedding; some tools write it all the same."""
    tensors = load_file(bare_glm / "model.safetensors")
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    tensors["lm_head.weight"] = tensors[prefix + "word_embeddings.weight"].clone()
    save_file(tensors, bare_glm / "model.safetensors", metadata={"format": "pt"})
    verify(golden / "glm", bare_glm)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, bare_glm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ties '.*lm_head.weight' to 'glm.word_embeddings.weight', but"):
        verify(golden / "glm", bare_glm)


def test_a_mixture_of_bare_and_full_names_is_refused(bare_glm: Path) -> None:
    tensors = load_file(bare_glm / "model.safetensors")
    tensors["glm.word_embeddings.weight"] = tensors.pop("word_embeddings.weight")
    save_file(tensors, bare_glm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors missing.*tensors that config.json has no place for"):
        detect(bare_glm)


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_auto_classes_on_a_glm_10b_folder_run_nothing_of_it(
    bare: bool, trust: bool | None, bare_glm: Path, golden: Path, tmp_path: Path
) -> None:
    """Its model_type is transformers' own ``glm``, and its auto_map names code files, which raise when read."""
    folder = tmp_path / "repo"
    shutil.copytree(bare_glm if bare else golden / "glm", folder)
    for name in ("configuration_glm", "modeling_glm", "tokenization_glm"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the folder was executed')\n")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    assert type(config) is GlmLikeConfig
    for auto in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        assert type(auto.from_pretrained(folder, trust_remote_code=trust)) is GlmLikeForCausalLM
        assert type(auto.from_config(config, trust_remote_code=trust)) is GlmLikeForCausalLM
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=trust)) is GlmLikeModel
    with pytest.raises(ValueError, match="Unrecognized configuration class.*GlmLikeConfig.*AutoModelForMultipleChoice"):
        AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=trust)


@pytest.mark.parametrize("trust", [None, False, True])
def test_auto_classes_on_a_native_glm_folder_stay_transformers_own(trust: bool | None, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = GlmConfig(**sizes, head_dim=16, vocab_size=8, intermediate_size=8, pad_token_id=0, eos_token_id=1)
    GlmForCausalLM(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)) is GlmConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)) is GlmForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=trust)).__module__.startswith("transformers.")


@torch.no_grad()
def test_the_residual_factor_is_the_specs_number(golden: Path, tmp_path: Path) -> None:
    """The fixture's is sqrt(2 x 3 layers), the default; the published code says sqrt(56) at any depth."""
    ids = load_file(golden / "chatglm" / "expected.safetensors")["gmask.input_ids"]
    expected = load_file(golden / "chatglm" / "expected.safetensors")["gmask.logits"]
    shutil.copytree(golden / "chatglm", tmp_path / "repo")
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert "residual_scale" not in config
    for given, scale in ((None, 6**0.5), (6**0.5, 6**0.5), (56**0.5, 56**0.5), (2, 2.0)):
        (tmp_path / "repo" / "config.json").write_text(json.dumps({**config, "residual_scale": given}))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "repo").eval()
        assert model.config.spec.residual_scale == pytest.approx(scale, abs=0)
        assert [layer.residual_scale for layer in model.model.layers] == [scale] * 3
        error = (model(ids).logits - expected).abs().max().item()
        assert error < 5e-5 if scale == 6**0.5 else error > 0.1
        model.save_pretrained(tmp_path / "native")
        assert GlmLikeForCausalLM.from_pretrained(tmp_path / "native").config.spec.residual_scale == scale
