"""P-tuning prefixes of their own: onto a base model, begun and trained, and as PEFT adapters there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeError, GlmLikeForCausalLM, SpecError
from glmlike.ptuning import freeze_decoder, from_peft, load_prefix, save_prefix, start_prefix, to_peft
from specs import SPECS

TOLERANCE = 2e-5
PTUNED = [name for name, spec in SPECS.items() if spec.prefix_length]
TABLE = "transformer.prefix_encoder.embedding.weight"
PROJECTED = SPECS["chatglm2-ptuned-projected"]


@pytest.fixture
def original(golden: Path) -> Path:
    return golden / "chatglm2_ptuning"


@pytest.fixture
def expected(original: Path) -> dict[str, torch.Tensor]:
    return load_file(original / "expected.safetensors")


def write_base(original: Path, folder: Path) -> Path:
    """The golden decoder without its prefix, in the original's names."""
    folder.mkdir()
    config = json.loads((original / "config.json").read_text())
    del config["pre_seq_len"], config["prefix_projection"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(original / "model.safetensors")
    del tensors[TABLE]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_prefix(original: Path, folder: Path, config: bool = True, **fields: Any) -> Path:
    """What the P-tuning scripts save: a .bin of the tensors that trained, and the model's config.json."""
    folder.mkdir()
    torch.save({TABLE: load_file(original / "model.safetensors")[TABLE]}, folder / "pytorch_model.bin")
    if config:
        text = json.dumps({**json.loads((original / "config.json").read_text()), **fields})
        (folder / "config.json").write_text(text)
    return folder


def save_plain(model: Any, folder: Path) -> Any:
    """A model's decoder without its prefix, saved and loaded."""
    spec = model.config.spec.replace(prefix_length=0, prefix_projection=False)
    plain = GlmLikeForCausalLM(glmlike.GlmLikeConfig.from_spec(spec, pad_token_id=0, eos_token_id=1))
    plain.load_state_dict(model.state_dict(), strict=False)
    plain.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("config", [True, False])
@torch.no_grad()
def test_a_prefix_from_one_folder_and_its_base_from_another(
    config: bool, original: Path, expected: Any, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(write_base(original, tmp_path / "base")).eval()
    assert (base(expected["input_ids"]).logits - expected["logits"]).abs().max() > 0.1
    assert load_prefix(base, write_prefix(original, tmp_path / "prefix", config)) is base
    assert_close(base(expected["input_ids"]).logits, expected["logits"], atol=TOLERANCE, rtol=0)
    base.save_pretrained(tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert torch.equal(whole(expected["input_ids"]).logits, base(expected["input_ids"]).logits)
    glmlike.convert(tmp_path / "whole", tmp_path / "chatglm", to="chatglm")
    assert glmlike.verify(tmp_path / "chatglm", original)


@pytest.mark.parametrize("name", PTUNED)
@torch.no_grad()
def test_a_saved_prefix_loads_onto_the_base_again(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model, ids = make(SPECS[name]), torch.tensor([[5, 6, 90, 93, 7]])
    base = save_plain(model, tmp_path / "base")
    save_prefix(model, tmp_path / "prefix")
    names = {f"model.{key}" for key in model.model.state_dict() if "prefix_encoder" in key}
    assert load_file(tmp_path / "prefix" / "model.safetensors").keys() == names
    load_prefix(base, tmp_path / "prefix")
    for config in (base.config, model.config):
        config.sop_token_id, config.mask_token_id = 93, 90
    assert torch.equal(base(ids).logits, model(ids).logits)
    load_prefix(base, tmp_path / "prefix")  # in place of the one it has
    assert torch.equal(base(ids).logits, model(ids).logits)
    with pytest.raises(CheckpointError, match="exists already"):
        save_prefix(model, tmp_path / "prefix")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_a_new_prefix_trains_and_nothing_else(
    projection: bool, checkpointing: bool, make: Callable[..., Any], tmp_path: Path
) -> None:
    model = start_prefix(make(SPECS["chatglm2"]), 6, projection=projection)
    assert (model.config.prefix_length, model.config.prefix_projection) == (6, projection)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{"input_ids": torch.arange(10, 22), "labels": torch.arange(10, 22)}] * 4
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=12,
        learning_rate=0.05,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=checkpointing,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]) == ("prefix_encoder" not in name), name
    save_prefix(model, tmp_path / "prefix")
    again = load_prefix(make(SPECS["chatglm2"]), tmp_path / "prefix").eval()
    ids = torch.arange(10, 22)[None]
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_new_prefix_is_float32_and_alone_in_having_gradients(make: Callable[..., Any]) -> None:
    model = start_prefix(make(SPECS["chatglm-6b"]).to(torch.bfloat16), 3, projection=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.prefix_encoder.{name}" for name in model.model.prefix_encoder.state_dict()}
    assert {p.dtype for p in model.model.prefix_encoder.parameters()} == {torch.float32}
    model(torch.tensor([[5, 90, 93, 7]]), labels=torch.tensor([[5, 90, 93, 7]])).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.prefix_encoder.parameters())


def test_what_has_no_prefix_says_so(make: Callable[..., Any], tmp_path: Path) -> None:
    plain = make(SPECS["chatglm2"])
    for call in (lambda: freeze_decoder(plain), lambda: save_prefix(plain, tmp_path / "out")):
        with pytest.raises(ConfigError, match="no P-tuning prefix. Begin one with start_prefix"):
            call()
    with pytest.raises(ConfigError, match="length=0"):
        start_prefix(plain, 0)
    with pytest.raises(SpecError, match="prefix_length=-2"):
        start_prefix(plain, -2)
    with pytest.raises(SpecError, match="only decoders of the ChatGLM-6B and ChatGLM2 kinds"):
        start_prefix(make(SPECS["glm-4-0414"]), 4)
    with pytest.raises(ConfigError, match="expected a glmlike model, got Linear"):
        load_prefix(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]
    assert plain.model.prefix_encoder is None
    assert plain.config.prefix_length == 0


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no prefix": ({}, {TABLE: ...}, "found no prefix_encoder tensor"),
    "half a projection": ({}, {TABLE.replace("embedding", "trans.0"): torch.ones(64, 128)}, "found .*trans.0.weight"),
    "another length": ({"pre_seq_len": 9}, {}, "pre_seq_len=9, but .* has 4 rows"),
    "no projection": ({"prefix_projection": True}, {}, "prefix_projection=true, but the files hold no .*trans"),
    "another width": (
        {},
        {TABLE: torch.ones(4, 192)},
        r"shape \[4, 192\], but this decoder asks for \[4, 128\] \(2 x 2 layers x 2 key-value heads x 16 = 128",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_prefix_that_does_not_fit_is_one_sentence(case: str, original: Path, tmp_path: Path) -> None:
    fields, tensors, message = BAD[case]
    folder = write_prefix(original, tmp_path / "prefix", **fields)
    held = {**torch.load(folder / "pytorch_model.bin"), **tensors, "other": torch.ones(1)}
    torch.save({name: tensor for name, tensor in held.items() if tensor is not ...}, folder / "pytorch_model.bin")
    base = AutoModelForCausalLM.from_pretrained(write_base(original, tmp_path / "base"))
    for call in (
        lambda: load_prefix(base, folder),
        lambda: to_peft(folder, tmp_path / "adapter", base=tmp_path / "base"),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()
    assert base.model.prefix_encoder is None
    assert base.config.prefix_length == 0
    assert not (tmp_path / "adapter").exists()


def test_a_projection_the_config_denies(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(PROJECTED)
    save_prefix(model, tmp_path / "prefix")
    config = json.loads((tmp_path / "prefix" / "config.json").read_text())
    (tmp_path / "prefix" / "config.json").write_text(json.dumps({**config, "prefix_projection": False}))
    with pytest.raises(CheckpointError, match="prefix_projection=false, but the files hold also .*trans"):
        load_prefix(model, tmp_path / "prefix")


peft = pytest.importorskip("peft")
IDS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[1, :4] = 0


def generate(model: Any, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": PADDED, **options}
    found: list[list[int]] = model.generate(input_ids=IDS, **options).tolist()
    return found


@torch.no_grad()
def test_the_originals_prefix_as_an_adapter_and_back(original: Path, expected: Any, tmp_path: Path) -> None:
    """From the scripts' folder: the adapter on the base gives the original logits; so does the prefix it becomes."""
    base_folder = write_base(original, tmp_path / "base")
    to_peft(write_prefix(original, tmp_path / "prefix", config=False), tmp_path / "adapter", base=base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    tuned = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert type(tuned.active_peft_config) is peft.PrefixTuningConfig
    for arguments in ({}, {"attention_mask": expected["attention_mask"]}):
        logits = tuned(input_ids=expected["input_ids"], **arguments).logits
        assert_close(logits, expected["logits"], atol=TOLERANCE, rtol=0)
    tuned.train()  # PEFT takes another way to its prefix in training; the decoder has no dropout
    assert_close(tuned(input_ids=expected["input_ids"]).logits, expected["logits"], atol=TOLERANCE, rtol=0)

    from_peft(tmp_path / "adapter", base_folder, tmp_path / "back")
    fresh = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    logits = load_prefix(fresh, tmp_path / "back")(expected["input_ids"]).logits
    assert_close(logits, expected["logits"], atol=TOLERANCE, rtol=0)
    table = load_file(tmp_path / "back" / "model.safetensors")["model.prefix_encoder.embedding.weight"]
    assert_close(table, load_file(original / "model.safetensors")[TABLE], atol=2e-7, rtol=0)
    to_peft(tmp_path / "back", tmp_path / "again")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert_close(one, other, atol=2e-7, rtol=0)


SHAPES = {
    "interleaved, half rotated": SPECS["chatglm2-ptuned"],
    "projected": PROJECTED,
    "linear positions": SPECS["chatglm2-32k"].replace(prefix_length=5),
    "halves, whole head": SPECS["llama-3.1"].replace(prefix_length=5),
}


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_an_adapter_gives_the_logits_and_the_tokens_of_the_prefix(
    shape: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    model = make(SHAPES[shape])
    for name, parameter in model.model.prefix_encoder.named_parameters():
        parameter.mul_(4 if name.startswith("embedding") else 1)  # a prefix to be reckoned with
    model.save_pretrained(tmp_path / "prefix")
    to_peft(tmp_path / "prefix", tmp_path / "adapter")
    tuned = peft.PeftModel.from_pretrained(save_plain(model, tmp_path / "base"), tmp_path / "adapter").eval()
    for mask in (None, PADDED):
        ours, theirs = model(IDS, attention_mask=mask).logits, tuned(input_ids=IDS, attention_mask=mask).logits
        real = torch.ones_like(PADDED) if mask is None else mask
        assert_close(theirs[real.bool()], ours[real.bool()], atol=TOLERANCE, rtol=TOLERANCE)
    plain = generate(tuned.get_base_model())
    for options in ({}, {"num_beams": 3}, {"use_cache": False}):
        assert generate(tuned, **options) == generate(model, **options) != plain, options
    from_peft(tmp_path / "adapter", tmp_path / "base", tmp_path / "back")
    again = load_prefix(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), tmp_path / "back")
    assert not again.config.prefix_projection
    assert_close(again(IDS).logits, model(IDS).logits, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("projection", [False, True])
@torch.no_grad()
def test_an_adapter_that_peft_made_becomes_a_prefix(projection: bool, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=projection, encoder_hidden_size=24
    )
    tuned = peft.get_peft_model(base, config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned(input_ids=IDS).logits
    from_peft(tmp_path / "adapter", tmp_path / "base", tmp_path / "prefix")
    model = load_prefix(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), tmp_path / "prefix")
    assert_close(model(IDS).logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert generate(model) == generate(tuned)


def test_chatglm_6b_and_peft_are_refused_with_the_way_that_works(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm-6b-ptuned"]).save_pretrained(tmp_path / "prefix")
    with pytest.raises(ConfigError, match="ChatGLM-6B and PEFT: .*cache of past tokens.* load_prefix"):
        to_peft(tmp_path / "prefix", tmp_path / "adapter")
    scaled = SPECS["chatglm2-ptuned"].replace(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    make(scaled).save_pretrained(tmp_path / "dynamic")
    with pytest.raises(ConfigError, match="rope_type='dynamic' and PEFT"):
        to_peft(tmp_path / "dynamic", tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynamic", "prefix"]


BAD_ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "LoRA": ({"peft_type": "LORA"}, {}, "peft_type='LORA': expected 'PREFIX_TUNING'"),
    "layers": ({"num_layers": 28}, {}, "num_layers=28, but this decoder's keys and values ask for 3"),
    "heads": ({"num_attention_heads": 4}, {}, "num_attention_heads=4, .* ask for 2"),
    "width": ({"token_dim": 64}, {}, "token_dim=64, .* ask for 32"),
    "encoder and decoder": ({"num_transformer_submodules": 2}, {}, "num_transformer_submodules=2, .* ask for 1"),
    "no length": ({"num_virtual_tokens": None}, {}, "num_virtual_tokens=None"),
    "another length": ({"num_virtual_tokens": 6}, {}, r"holds \{'prompt_embeddings': \(5, 192\)\}, but .*\(6, 192\)"),
    "more than a prefix": ({}, {"base_model.score.weight": torch.ones(2, 2)}, "modules_to_save"),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_one_sentence(case: str, make: Callable[..., Any], tmp_path: Path) -> None:
    fields, tensors, message = BAD_ADAPTERS[case]
    make(SPECS["chatglm2-ptuned"]).save_pretrained(tmp_path / "base")
    to_peft(tmp_path / "base", tmp_path / "adapter")
    config, weights = tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "adapter_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    save_file({**load_file(weights), **tensors}, weights)
    with pytest.raises(GlmLikeError, match=message):
        from_peft(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_occupied_folders(make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPECS["chatglm2-ptuned"]).save_pretrained(tmp_path / "prefix")
    with pytest.raises(CheckpointError, match="not a folder"):
        to_peft(tmp_path / "nowhere", tmp_path / "out", base=tmp_path / "prefix")
    with pytest.raises(ConfigError, match="adapter_config.json: not there"):
        from_peft(tmp_path / "prefix", tmp_path / "prefix", tmp_path / "out")
    to_peft(tmp_path / "prefix", tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for call in (
        lambda: to_peft(tmp_path / "prefix", tmp_path / "full"),
        lambda: from_peft(tmp_path / "adapter", tmp_path / "prefix", tmp_path / "full"),
    ):
        with pytest.raises(CheckpointError, match="exists already"):
            call()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors: not there"):
        from_peft(tmp_path / "adapter", tmp_path / "prefix", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "full", "prefix"]
