"""Pre-quantized ChatGLM folders: floats by default, integers on request, the same outputs; bad input is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

import glmlike
from glmlike import CheckpointError, ConfigError, GlmIntConfig, GlmLikeForCausalLM, GlmLikeModel
from glmlike.quantization import IntEmbedding, IntLinear
from released_integers import with_the_tables, write_released
from specs import SPECS

TOLERANCE = 2e-5
KEEP = GlmIntConfig(dequantize=False)
BITS = (4, 8)
QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"


@pytest.fixture(params=BITS)
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def released(golden: Path, tmp_path: Path, bits: int) -> Path:
    """A copy of a released ChatGLM2 folder, its weights as .safetensors."""
    folder = Path(shutil.copytree(golden / f"chatglm2_int{bits}", tmp_path / f"int{bits}"))
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_model.bin").unlink()
    return folder


@pytest.fixture(params=["layers", "layers and tables"])
def early(request: pytest.FixtureRequest, golden: Path, tmp_path: Path, bits: int) -> Path:
    """A ChatGLM-6B release made of the golden floats; beside it, the floats that its integers stand for."""
    chosen = {"chosen": with_the_tables} if request.param == "layers and tables" else {}
    return write_released(golden / "chatglm", tmp_path / "early", bits, **chosen)  # type: ignore[arg-type]


def integer_modules(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (IntLinear, IntEmbedding))]


def load(folder: Path, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **arguments)


@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_the_released_layout_gives_the_originals_logits(golden: Path, bits: int, keep: bool) -> None:
    """From the .bin file as it is published; dequantized, nothing of the integers is left."""
    folder = golden / f"chatglm2_int{bits}"
    assert json.loads((folder / "cases.json").read_text())["tolerance"] == TOLERANCE
    expected = load_file(folder / "expected.safetensors")
    for cls in (AutoModel, AutoModelForCausalLM, GlmLikeForCausalLM):
        model = cls.from_pretrained(folder, **({"quantization_config": KEEP} if keep else {}))
        assert type(model) is GlmLikeForCausalLM
        assert_close(model(expected["input_ids"]).logits, expected["logits"], atol=TOLERANCE, rtol=0)
        assert len(integer_modules(model)) == (14 if keep else 0)
        assert hasattr(model.config, "quantization_config") is keep
        assert model.dtype == torch.float32


@torch.no_grad()
def test_chatglm_6b_releases_are_the_floats_their_integers_stand_for(early: Path, golden: Path) -> None:
    """Against the golden ChatGLM-6B quantized by a restatement of the original quantizer, prompts with blanks."""
    meant, exact = load(early.parent / "floats"), load(golden / "chatglm")
    default, kept = load(early), load(early, quantization_config=KEEP)
    ids = load_file(golden / "chatglm" / "expected.safetensors")["gmask.input_ids"]
    assert not torch.allclose(meant(ids).logits, exact(ids).logits, atol=1e-3)  # quantizing did something
    assert torch.equal(default(ids).logits, meant(ids).logits)
    assert_close(kept(ids).logits, meant(ids).logits, atol=TOLERANCE, rtol=0)
    state = meant.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in default.state_dict().items())
    tables = "transformer.word_embeddings.weight_scale" in load_file(early / "model.safetensors")
    assert [type(m) for m in (kept.model.embed_tokens, kept.lm_head)] == (
        [IntEmbedding, IntLinear] if tables else [torch.nn.Embedding, torch.nn.Linear]
    )
    assert len(integer_modules(kept)) == 3 * 6 + 2 * tables


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_floats_is_the_configs_or_the_one_asked_for(released: Path, dtype: torch.dtype) -> None:
    """Every number is its exact product rounded once; what is not of integers is cast, kept or not."""
    for arguments in ({}, {"quantization_config": KEEP}):
        model = load(released, dtype=dtype, **arguments)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.config.dtype == dtype
        output = model(torch.arange(6)[None])
        assert output.logits.dtype == dtype
        assert torch.isfinite(output.logits).all()
    exact = load(released).state_dict()  # float32 holds int x float16 exactly
    for name, tensor in load(released, dtype=dtype).state_dict().items():
        assert torch.equal(tensor, exact[name].to(dtype)), name
    fields = json.loads((released / "config.json").read_text()) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (released / "config.json").write_text(json.dumps(fields))
    assert load(released).dtype == dtype


def test_matrices_and_scales_may_lie_in_different_shards(released: Path) -> None:
    whole = [load(released, **arguments).state_dict() for arguments in ({}, {"quantization_config": KEEP})]
    tensors = load_file(released / "model.safetensors")
    (released / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        save_file(part, released / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, f"part-{number}.safetensors"))
    assert weight_map[QKV] != weight_map[f"{QKV}_scale"]
    (released / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for state, arguments in zip(whole, ({}, {"quantization_config": KEEP}), strict=True):
        again = load(released, **arguments).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_a_dequantized_model_is_an_ordinary_one(released: Path, tmp_path: Path) -> None:
    """It saves, reloads, converts, trains, and quantizes again by other means."""
    from transformers import BitsAndBytesConfig

    model = load(released)
    ids = torch.arange(1, 17)[None]
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    assert glmlike.verify(released, tmp_path / "saved") == len(model.state_dict())
    again = load(tmp_path / "saved", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert "Int8Params" in type(again.model.layers[0].self_attn.q_proj.weight).__name__


def test_kept_integers_save_and_reload_exactly(early: Path, tmp_path: Path) -> None:
    model = load(early, quantization_config=KEEP)
    model.save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert names["model.layers.0.self_attn.q_proj.weight"].dtype == torch.int8
    assert names["model.layers.0.self_attn.q_proj.weight_scale"].dtype == torch.float16
    again, floats = load(tmp_path / "saved"), load(tmp_path / "saved", quantization_config=GlmIntConfig())
    assert again.state_dict().keys() == names.keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(t, floats.state_dict()[name]) for name, t in load(early).state_dict().items())
    assert integer_modules(floats) == []
    assert glmlike.verify(early, tmp_path / "saved") == len(floats.state_dict())


def test_kept_integers_take_their_share_of_memory(released: Path, bits: int) -> None:
    kept, floats = load(released, quantization_config=KEEP, dtype=torch.float16), load(released, dtype=torch.float16)
    for path in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        integers, matrix = kept.get_submodule(path), floats.get_submodule(path).weight
        assert integers.weight.nbytes * 16 == matrix.nbytes * bits
        assert integers.weight_scale.numel() == matrix.shape[0]
    assert f"bits={bits}" in repr(kept)


def test_kept_integers_generate_the_same_tokens(released: Path) -> None:
    prompt = torch.arange(3, 12).repeat(2, 1)
    arguments: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    kept = load(released, quantization_config=KEEP).generate(prompt, **arguments)
    assert torch.equal(kept, load(released).generate(prompt, **arguments))


def test_gradients_pass_through_kept_integers(released: Path) -> None:
    """Of embeddings, norms and biases: those of the dequantized model; the integers have none."""
    kept, floats = load(released, quantization_config=KEEP), load(released)
    ids = torch.arange(1, 17)[None]
    for model in (kept, floats):
        model(ids, labels=ids).loss.backward()
    expected = {name: parameter.grad for name, parameter in floats.named_parameters()}
    found = {name: parameter.grad for name, parameter in kept.named_parameters()}
    assert len(found) == len(expected) - 14
    for name, gradient in found.items():
        assert_close(gradient, expected[name], atol=TOLERANCE, rtol=1e-4)


def test_lora_trains_on_top_of_kept_integers(released: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(
        load(released, quantization_config=KEEP), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}
    ids = torch.arange(1, 17)[None]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(released, quantization_config=KEEP), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_kept_model_dequantizes_itself(early: Path) -> None:
    model, floats = load(early, quantization_config=KEEP), load(early)
    model.dequantize(dtype=torch.float32)
    assert integer_modules(model) == []
    assert not hasattr(model.config, "quantization_config")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in floats.state_dict().items())


def test_other_heads_and_the_bare_decoder_take_the_integers(released: Path, tmp_path: Path) -> None:
    reference = load(released).model.state_dict()
    for arguments in ({}, {"quantization_config": KEEP}):
        classifier = AutoModelForSequenceClassification.from_pretrained(released, num_labels=3, **arguments)
        assert classifier.score.weight.shape == (3, 64)
        bare = GlmLikeModel.from_pretrained(released, **arguments)
        bare.save_pretrained(tmp_path / f"bare{len(arguments)}")
        again = GlmLikeModel.from_pretrained(tmp_path / f"bare{len(arguments)}", **arguments)
        for model in (classifier.model, bare, again):
            assert len(integer_modules(model)) == (14 if arguments else 0)
            if arguments:
                model.requires_grad_(False)
                for module in list(integer_modules(model)):
                    assert module.weight.dtype == torch.int8
            else:
                assert all(torch.equal(tensor, reference[name]) for name, tensor in model.state_dict().items())


def test_the_width_may_be_said_by_the_argument(released: Path, bits: int) -> None:
    """Integers whose config.json lost its quantization_bit."""
    expected = load(released).state_dict()
    edit(released, quantization_bit=...)
    with pytest.raises(CheckpointError, match=r"scales of integer weights .*no \"quantization_bit\". Add the one"):
        load(released)
    with pytest.raises(CheckpointError, match="pre-quantized weights, but config.json has no 'quantization_bit'"):
        glmlike.detect(released)
    with pytest.raises(ConfigError, match="GlmIntConfig without bits, and config.json does not say them"):
        load(released, quantization_config=KEEP)
    found = load(released, quantization_config=GlmIntConfig(bits=bits)).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert len(integer_modules(load(released, quantization_config=GlmIntConfig(bits=bits, dequantize=False)))) == 14


def test_the_config_alone_says_what_the_files_are(released: Path, bits: int) -> None:
    config = AutoConfig.from_pretrained(released)
    assert config.quantization_config == {"quant_method": "glm_int", "bits": bits, "dequantize": True}
    assert not hasattr(config, "quantization_embeddings")
    model = load(released, config=config, quantization_config={"quant_method": "glm_int", "dequantize": False})
    assert len(integer_modules(model)) == 14
    assert config.quantization_config["dequantize"] is True  # the caller's object is the caller's


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(fields)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shorter_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{QKV}_scale"] = tensors[f"{QKV}_scale"][:-8].clone()


def floats_beside_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[QKV] = torch.zeros(128, 64)


def integer_norm(tensors: dict[str, torch.Tensor]) -> None:
    name = "transformer.encoder.final_layernorm.weight"
    tensors.update({name: torch.ones(64, dtype=torch.int8), f"{name}_scale": torch.ones(64)})


BAD_FILES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a missing scale": (lambda t: t.pop(f"{QKV}_scale"), f"'{QKV}' is I8, but no file holds '{QKV}_scale'"),
    "a missing matrix": (lambda t: t.pop(QKV), f"holds '{QKV}_scale', but no file holds '{QKV}'"),
    "a scale of other rows": (shorter_scale, rf"'{QKV}_scale' has shape \[120\], but config.json asks for \[128\]"),
    "a matrix of other rows": (
        lambda t: t.update({QKV: t[QKV][:-8].clone()}),
        rf"'{QKV}' has shape \[120, .*\], but config.json asks for \[128, ",
    ),
    "floats beside a scale": (floats_beside_scale, f"'{QKV}_scale' is F16 beside '{QKV}', which is F32"),
    "scales of integers": (
        lambda t: t.update({f"{QKV}_scale": torch.ones(128, dtype=torch.int32)}),
        f"'{QKV}_scale' is I32 .*: expected scales of float16, bfloat16 or float32 beside int8",
    ),
    "unsigned integers": (
        lambda t: t.update({QKV: t[QKV].view(torch.uint8)}),
        f"beside '{QKV}', which is U8: expected .* int8",
    ),
    "an integer norm": (integer_norm, "final_layernorm.weight' is I8: only matrices are published as integers"),
    "a norm of another size": (
        lambda t: t.update({"transformer.encoder.final_layernorm.weight": torch.ones(63)}),
        r"final_layernorm.weight' has shape \[63\], but config.json asks for \[64\]",
    ),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("case", BAD_FILES)
def test_contradictory_files_are_named(case: str, keep: bool, released: Path, tmp_path: Path) -> None:
    change, message = BAD_FILES[case]
    rewrite(released, change)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(released, **({"quantization_config": KEEP} if keep else {}))
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match=message):
        glmlike.convert(released, tmp_path / "out", to="glm")
    assert not (tmp_path / "out").exists()


def test_the_other_width_is_recognized(released: Path, bits: int) -> None:
    edit(released, quantization_bit=12 - bits)
    message = rf"is \[.*\] in {bits} bits, but config.json says {12 - bits}. Correct it: \"quantization_bit\": {bits}"
    for read in (load, glmlike.detect):
        with pytest.raises(CheckpointError, match=message):
            read(released)
    edit(released, quantization_bit=bits)
    with pytest.raises(ConfigError, match=rf"GlmIntConfig\(bits={12 - bits}\), but config.json says {bits}"):
        load(released, quantization_config=GlmIntConfig(bits=12 - bits))


@pytest.mark.parametrize("said", [3, 16, "4", 4.0, True, -8])
def test_other_widths_are_refused(said: Any, golden: Path, tmp_path: Path) -> None:
    for name in ("chatglm2_int4", "chatglm"):
        folder = Path(shutil.copytree(golden / name, tmp_path / name))
        edit(folder, quantization_bit=said)
        for read in (load, glmlike.detect):
            with pytest.raises(ConfigError, match=rf"quantization_bit={said!r}: expected 4 or 8"):
                read(folder)
    with pytest.raises(ConfigError, match=f"bits={said!r}: expected 4 or 8"):
        GlmIntConfig(bits=said)


def test_another_quantization_of_integers_is_refused_with_what_to_do(released: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    asked = BitsAndBytesConfig(load_in_8bit=True)
    for cls in (AutoModelForCausalLM, GlmLikeForCausalLM):
        with pytest.raises(ConfigError, match=r"quantized already .*BitsAndBytesConfig .*glmlike convert .* DST --to"):
            cls.from_pretrained(released, quantization_config=asked)
    glmlike.convert(released, tmp_path / "floats", to="glmlike")  # what the sentence says
    assert load(tmp_path / "floats", quantization_config=asked).config.quantization_config.load_in_8bit
    edit(released, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ConfigError, match="beside a 'quantization_config': weights are quantized one way or the other"):
        load(released)


def test_a_state_dict_of_integers_is_refused(released: Path) -> None:
    tensors = load_file(released / "model.safetensors")
    with pytest.raises(ConfigError, match="integers are loaded from files, and a state_dict was passed"):
        GlmLikeForCausalLM.from_pretrained(None, config=AutoConfig.from_pretrained(released), state_dict=tensors)


def test_tied_tables_of_integers_are_pointed_to_conversion(make: Callable[..., Any], tmp_path: Path) -> None:
    """A tied head that is stored twice, both times as integers: conversion checks that they agree."""
    make(SPECS["tied-recipe"]).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "chatglm", to="chatglm")
    folder = write_released(tmp_path / "chatglm", tmp_path / "released", 8, with_the_tables)
    for arguments in ({}, {"quantization_config": KEEP}):
        with pytest.raises(CheckpointError, match="embedding is of integers and also its head.*glmlike convert"):
            load(folder, **arguments)
    glmlike.convert(folder, tmp_path / "floats", to="glmlike")  # what the sentence says
    assert glmlike.verify(tmp_path / "floats", folder.parent / "floats") > 0
    assert load(tmp_path / "floats").config.tie_word_embeddings


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What our logger says, once-warnings forgotten before."""
    import logging

    transformers_logging.get_logger().warning_once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("glmlike").addHandler(handler)
    yield messages
    logging.getLogger("glmlike").removeHandler(handler)


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
def test_floats_under_a_quantization_bit_are_floats(name: str, golden: Path, tmp_path: Path, log: list[str]) -> None:
    """ChatGLM-6B slim has float weights and a quantization_bit, which its own code would act on after loading."""
    folder = Path(shutil.copytree(golden / name, tmp_path / name))
    edit(folder, quantization_bit=4)
    expected = load(golden / name).state_dict()
    for _ in range(2):
        model = load(folder)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
        assert not hasattr(model.config, "quantization_config")
    assert len([message for message in log if "quantization_bit=4, but the weights are floats" in message]) == 1
    with pytest.raises(CheckpointError, match="asks to keep integers, but its matrices are of floats"):
        load(folder, quantization_config=KEEP)
    found = glmlike.detect(folder)
    assert found.notes == ("quantization_bit=4, but every matrix is of floats: read as they are",)
    assert glmlike.verify(folder, golden / name) == len(expected)


def test_floats_need_no_config_of_integers(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GlmIntConfig without bits"):
        load(golden / "chatglm2", quantization_config=GlmIntConfig())
    folder = Path(shutil.copytree(golden / "chatglm2", tmp_path / "x"))
    edit(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ConfigError, match="has the quantization_config of another method than 'glm_int'"):
        load(folder, quantization_config=GlmIntConfig(bits=4))
    with pytest.raises(ConfigError, match="quant_method='gptq': expected 'glm_int'"):
        GlmIntConfig(quant_method="gptq")


def test_slims_own_config_speaks_of_a_wish(shared: Path) -> None:
    config = json.loads((shared / "originals" / "chatglm-6b-slim" / "config.json").read_text())
    assert glmlike.hub_json.integer_bits(config, "slim") == 4  # type: ignore[attr-defined]


def test_conversion_makes_floats_and_says_so(released: Path, bits: int, tmp_path: Path) -> None:
    report = glmlike.convert(released, tmp_path / "out", to="glm", max_shard_size="20KB")
    assert report.notes == (f"8 matrices of {bits}-bit integers, read as int x scale in float32",)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_bit", "quantization_config"} & config.keys()
    expected = load_file(released / "expected.safetensors")
    from transformers import GlmForCausalLM

    with torch.no_grad():
        logits = GlmForCausalLM.from_pretrained(tmp_path / "out")(expected["input_ids"]).logits
    assert_close(logits, expected["logits"], atol=TOLERANCE, rtol=0)


def test_conversion_takes_the_dtype_of_the_config(released: Path, tmp_path: Path) -> None:
    edit(released, torch_dtype=...)
    assert "int x scale in float16" in glmlike.detect(released).notes[0]
    edit(released, torch_dtype="bfloat16")
    glmlike.convert(released, tmp_path / "out", to="glmlike")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert made["model.norm.weight"].dtype == torch.float32  # not of integers: bit for bit
    edit(released, torch_dtype="int8")
    with pytest.raises(ConfigError, match="torch_dtype='int8': expected one such as 'float16'"):
        glmlike.convert(released, tmp_path / "out2", to="glmlike")


def test_inspection_of_integers_needs_no_torch(released: Path) -> None:
    import subprocess
    import sys

    code = f"import sys, glmlike; print(glmlike.detect({str(released)!r}).notes[0][:1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["8", "False"]
