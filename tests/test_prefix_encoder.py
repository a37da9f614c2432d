"""P-tuning prefixes run as they are: the original's logits, the same thing said by hand, and bad files refused."""

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
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeConfig, GlmLikeForCausalLM, SpecError
from glmlike.hub_json import read_spec
from glmlike.prefix_encoder import PrefixEncoder, PrefixLinear
from glmlike.renamed import CACHE
from specs import SPECS

PTUNED = [name for name, spec in SPECS.items() if spec.prefix_length]
TOLERANCE = 2e-5  # of the golden file
MASK, SOP = 90, 93
ROW = torch.tensor([[5, 6, MASK, 8, SOP, 9, 10], [11, 12, 13, MASK, SOP, 14, 15]])
TABLE, FIRST = "transformer.prefix_encoder.embedding.weight", "transformer.prefix_encoder.trans.0.weight"


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """The original's ChatGLM2 folder with a prefix, to damage."""
    return Path(shutil.copytree(golden / "chatglm2_ptuning", tmp_path / "ptuned"))


def edit(folder: Path, **fields: Any) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_logits_are_the_originals(attention: str, golden: Path) -> None:
    where = golden / "chatglm2_ptuning"
    assert json.loads((where / "cases.json").read_text())["tolerance"] == TOLERANCE
    expected = load_file(where / "expected.safetensors")
    for auto in (AutoModel, AutoModelForCausalLM):
        model = auto.from_pretrained(where, attn_implementation=attention).eval()
        assert type(model) is GlmLikeForCausalLM
        for mask in (None, expected["attention_mask"]):
            logits = model(expected["input_ids"], attention_mask=mask).logits
            assert_close(logits, expected["logits"], atol=TOLERANCE, rtol=0)


def by_hand(model: Any) -> DynamicCache:
    """The prefix as a cache of past tokens, made of the bare tensors as the original code reads them."""
    spec, state = model.config.spec, model.state_dict()
    rows = state["model.prefix_encoder.embedding.weight"]
    if spec.prefix_projection:
        for layer, last in ((0, False), (2, True)):
            weight, bias = (state[f"model.prefix_encoder.trans.{layer}.{kind}"] for kind in ("weight", "bias"))
            rows = rows @ weight.T + bias if last else torch.tanh(rows @ weight.T + bias)
    width, cache = spec.key_value_size, DynamicCache()
    for layer in range(spec.num_hidden_layers):
        for_layer = rows[:, 2 * layer * width : 2 * (layer + 1) * width]
        heads = [part.view(-1, spec.num_key_value_heads, spec.head_dim) for part in for_layer.split(width, dim=1)]
        key, value = (part.transpose(0, 1)[None].expand(len(ROW), -1, -1, -1).contiguous() for part in heads)
        cache.update(key, value, layer)
    return cache


@pytest.mark.parametrize("name", PTUNED)
@torch.no_grad()
def test_a_prefix_is_a_cache_that_no_position_counts_and_no_mask_hides(name: str, make: Callable[..., Any]) -> None:
    """The same logits from the decoder without a prefix, given keys, values, positions and mask by hand."""
    model = make(SPECS[name])
    plain = make(SPECS[name].replace(prefix_length=0, prefix_projection=False))
    left_over = plain.load_state_dict(model.state_dict(), strict=False)
    assert left_over.missing_keys == []
    assert all("prefix_encoder" in name for name in left_over.unexpected_keys)
    length, tokens = model.config.prefix_length, ROW.shape[1]
    position_ids = torch.arange(tokens)[None].expand(2, -1)
    mask = torch.ones(2, 1, tokens, length + tokens, dtype=torch.bool).tril(length)
    if model.config.attention_mask == "prefix":
        place = torch.tensor([[0, 1, 2, 3, 2, 2, 2], [0, 1, 2, 3, 3, 3, 3]])
        position_ids = torch.stack((place, torch.tensor([[0, 0, 0, 0, 1, 2, 3]] * 2)), dim=1)
        mask[..., : length + 4] = True  # the context, up to <sop>, is seen both ways
    expected = plain(ROW, position_ids=position_ids, attention_mask=mask, **{CACHE: by_hand(model)}).logits
    assert_close(model(ROW).logits, expected, atol=1e-5, rtol=1e-5)
    assert (model(ROW).logits - plain(ROW).logits).abs().max() > 0.1
    bare = model(ROW, position_ids=position_ids, attention_mask=mask[..., length:]).logits
    assert_close(bare, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PTUNED)
@torch.no_grad()
def test_padding_moves_no_token_away_from_the_prefix(name: str, make: Callable[..., Any]) -> None:
    """Its keys have no positions, so the place in the row is seen, not only the distance between tokens."""
    model, padding = make(SPECS[name]), torch.zeros(2, 3, dtype=ROW.dtype)
    ids = torch.cat((padding, ROW), dim=1)
    output = model(ids, attention_mask=torch.cat((padding, torch.ones_like(ROW)), dim=1), use_cache=True)
    assert_close(output.logits[:, 3:], model(ROW).logits, atol=1e-5, rtol=1e-5)


def test_the_cache_holds_tokens_only(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2-ptuned"])
    assert getattr(model(ROW, use_cache=True), CACHE).get_seq_length() == ROW.shape[1]
    assert getattr(model(ROW, use_cache=False), CACHE) is None


def test_dropout_acts_on_rows_in_training_only() -> None:
    config = GlmLikeConfig.from_spec(SPECS["chatglm2-ptuned"].replace(prefix_length=50), prefix_dropout=0.25)
    encoder, like = PrefixEncoder(config), torch.zeros(8, 1, 64)
    still = torch.stack([torch.stack(pair) for pair in encoder.eval()(like)])
    torch.manual_seed(0)
    dropped = torch.stack([torch.stack(pair) for pair in encoder.train()(like)])
    gone = dropped == 0
    assert 0.24 < gone.float().mean() < 0.26  # of 76800 numbers: six standard deviations
    assert_close(dropped[~gone], still[~gone] / 0.75)
    assert not torch.equal(gone[:, :, 0], gone[:, :, 1])  # each row of a batch drops its own
    assert GlmLikeConfig().prefix_dropout == 0.1


@pytest.mark.parametrize("name", PTUNED)
def test_saving_writes_native_names_and_reloads_exactly(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS[name], prefix_dropout=0.3)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["prefix_length"], config["prefix_projection"]) == (5, SPECS[name].prefix_projection)
    assert config["prefix_dropout"] == 0.3
    assert "model.prefix_encoder.embedding.weight" in load_file(tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ROW).logits, model(ROW).logits)
    scored = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert torch.equal(scored.model(ROW).last_hidden_state, model.model(ROW).last_hidden_state)


@pytest.mark.parametrize("name", ["chatglm2-ptuned", "chatglm-6b-ptuned"])
def test_a_promised_prefix_that_is_in_no_file_is_left_out_and_said_once(
    name: str, make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in chatglm-6b-slim, whose config has pre_seq_len 128; never a random prefix."""
    fmt = "chatglm-6b" if "6b" in name else "chatglm"
    plain = make(SPECS[name].replace(prefix_length=0))
    plain.save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "slim", to=fmt)  # type: ignore[arg-type]
    edit(tmp_path / "slim", pre_seq_len=128, prefix_projection=False)
    caplog.set_level("WARNING")
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        for options in ({}, {"ignore_mismatched_sizes": True}):
            model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "slim", output_loading_info=True, **options)
            assert torch.equal(model.eval()(ROW).logits, plain(ROW).logits)
            assert (model.config.prefix_length, len(info["missing_keys"])) == (0, 0)
    finally:
        logging.disable_propagation()
    said = [record.message for record in caplog.records if "loaded without a prefix" in record.message]
    assert len(said) == 1
    assert "pre_seq_len=128, but the files hold no prefix_encoder" in said[0]
    assert glmlike.detect(tmp_path / "slim").spec == plain.config.spec
    assert "pre_seq_len=128, but the files hold no prefix: read without one" in caplog.text
    assert glmlike.verify(tmp_path / "native", tmp_path / "slim")


def test_the_published_slim_config_has_a_prefix_of_128(shared: Path) -> None:
    config = json.loads((shared / "originals" / "chatglm-6b-slim" / "config.json").read_text())
    spec = read_spec({**config, "quantization_bit": None})
    assert (spec.prefix_length, spec.prefix_projection, spec.prefix_row_size) == (128, False, 28 * 4096 * 2)
    assert spec.replace(prefix_projection=True).prefix_row_size == 4096


def test_a_prefix_asked_for_when_loading_a_base_is_not_made_up(golden: Path) -> None:
    """The originals' recipe, pre_seq_len in the config of a base model, gives the base; load_prefix does the rest."""
    config = AutoConfig.from_pretrained(golden / "chatglm2", pre_seq_len=4)
    assert config.prefix_length == config.pre_seq_len == 4
    model = AutoModelForCausalLM.from_pretrained(golden / "chatglm2", config=config)
    assert model.model.prefix_encoder is None
    assert model.config.prefix_length == 0


Change = Callable[[dict[str, torch.Tensor]], Any]
BAD: dict[str, tuple[dict[str, Any], Change, str]] = {
    "another length": (
        {"pre_seq_len": 7},
        lambda _: None,
        r"shape \[4, 128\] in the files, but pre_seq_len=7 .*\[7, 128\]",
    ),
    "another width": (
        {},
        lambda tensors: tensors.update({TABLE: torch.ones(4, 64)}),
        r"shape \[4, 64\] .* ask for \[4, 128\]: a row holds 2 x 2 layers x 2 key-value heads x 16 = 128 numbers",
    ),
    "a projection without tensors": (
        {"prefix_projection": True},
        lambda _: None,
        "4 tensors of the P-tuning prefix are in none .*trans.0.bias.* config.json has prefix_projection=true",
    ),
    "tensors without a projection": (
        {},
        lambda tensors: tensors.update({FIRST: torch.ones(64, 128)}),
        "hold .*prefix_encoder.trans.0.weight', but config.json has pre_seq_len=4, prefix_projection=false",
    ),
    "a prefix the config does not mention": (
        {"pre_seq_len": None},
        lambda _: None,
        "hold .*prefix_encoder.embedding.weight', but config.json has pre_seq_len=None",
    ),
    "nothing but a prefix": (
        {},
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name != TABLE],
        "hold a P-tuning prefix and no decoder. Load the base model .* load_prefix",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_and_config_that_contradict_each_other(case: str, folder: Path) -> None:
    fields, change, message = BAD[case]
    edit(folder, **fields)
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"prefix_encoder|tensors missing"):
        glmlike.detect(folder)


BAD_SPECS: dict[str, tuple[str, dict[str, Any], str]] = {
    "negative": ("chatglm2", {"prefix_length": -1}, "prefix_length=-1 .*whole number of prefix tokens"),
    "text": ("chatglm2", {"prefix_length": "128"}, "prefix_length='128'"),
    "truth": ("chatglm2", {"prefix_length": True}, "prefix_length=True"),
    "absurd": ("chatglm2", {"prefix_length": 10**9}, "prefix_length=1000000000 .*at most"),
    "nothing projected": ("chatglm2", {"prefix_projection": True}, "there is nothing to project"),
    "projection of a number": ("chatglm2", {"prefix_length": 1, "prefix_projection": 3}, "prefix_projection=3"),
    "a kind without": ("glm-4-0414", {"prefix_length": 4}, "only decoders of the ChatGLM-6B and ChatGLM2 kinds"),
    "a learned position": ("glm-10b", {"prefix_length": 4}, "only decoders of the ChatGLM-6B and ChatGLM2 kinds"),
    "a window": ("qwen2-sliding", {"prefix_length": 4}, "layer_types="),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_prefixes_that_cannot_be(case: str) -> None:
    name, fields, message = BAD_SPECS[case]
    with pytest.raises(SpecError, match=message):
        SPECS[name].replace(**fields)


def test_what_would_drop_the_prefix_is_refused(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2-ptuned"])
    with pytest.raises(ConfigError, match="continuous batching .* P-tuning prefix"):
        model(ROW, cache=object()) if CACHE != "cache" else model(ROW, **{CACHE: PagedLike()})
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="'flash_attention_2' with a P-tuning prefix"):
        model(ROW)


class PagedLike:
    """What continuous batching passes: a cache without a sequence length."""


def test_sharded_loading_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2-ptuned"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tp_plan with a P-tuning prefix \(prefix_length=5\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path, tp_plan="auto")


def test_a_quantized_model_keeps_its_prefix(make: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    spec = SPECS["chatglm2-ptuned-projected"].replace(hidden_size=128, intermediate_size=192, head_dim=64)
    model = make(spec)
    model.save_pretrained(tmp_path / "native")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    options = {"quantization_config": quantization, "dtype": "float32"}
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "native", **options)
    assert "4bit" in type(quantized.model.layers[0].self_attn.q_proj).__name__
    kept, expected = quantized.model.prefix_encoder.state_dict(), model.model.prefix_encoder.state_dict()
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    quantized.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(ROW).logits, quantized(ROW).logits)


def test_a_projection_is_no_linear_layer(make: Callable[..., Any]) -> None:
    encoder = make(SPECS["chatglm-6b-ptuned-projected"]).model.prefix_encoder
    assert [type(part) for part in encoder.trans] == [PrefixLinear, torch.nn.Tanh, PrefixLinear]
    assert not any(isinstance(part, torch.nn.Linear) for part in encoder.modules())
