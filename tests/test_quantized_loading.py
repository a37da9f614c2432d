"""Quantizing as files are loaded: every method, spec, format and head; what is saved reloads to the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeForCausalLM, GlmLikeModel, packed_loading
from glmlike.quantizing import METHODS
from glmlike.spec import DecoderSpec
from specs import FAMILY, SPECS

IDS = torch.arange(3, 19)[None]
LIBRARIES = [name for name, method in METHODS.items() if method.engine in ("bitsandbytes", "torchao")]
FUSED = ("chatglm2", "glm-4-0414", "chatglm-6b", "glm-10b", "chatglm2-ptuned-projected")
"""One spec of each layout that joins matrices."""
HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
}


def config_of(method: str) -> Any:
    for package in ("bitsandbytes", "torchao"):
        if METHODS[method].engine == package:
            pytest.importorskip(package)
    assert METHODS[method].config is not None
    return METHODS[method].config()


def wide(name: str) -> DecoderSpec:
    """A spec with rows that every method's blocks divide."""
    spec = SPECS[name]
    inner = 512 if spec.feed_forward.startswith("gelu_") else 256
    layers = {"num_hidden_layers": 2, "layer_types": spec.layer_types and spec.layer_types[:2]}
    return spec.replace(hidden_size=128, intermediate_size=inner, head_dim=32, **layers)


@pytest.fixture(scope="module")
def folders(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """``folders(name)``: a decoder of a spec in native names, and in the format its checkpoints are published in."""
    made: dict[str, dict[str, Path]] = {}

    def folders_of(name: str) -> dict[str, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            make(wide(name)).save_pretrained(place / "native")
            made[name] = {"native": place / "native"}
            if FAMILY[name] != "glmlike":
                glmlike.convert(place / "native", place / "foreign", to=FAMILY[name])
                made[name]["foreign"] = place / "foreign"
        return made[name]

    return folders_of


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    found = model.eval()(IDS)
    return torch.cat([part.flatten() for part in found.to_tuple() if isinstance(part, torch.Tensor)]).float()


def load(auto: Any, folder: Path, **arguments: Any) -> Any:
    torch.manual_seed(0)  # of new heads
    return auto.from_pretrained(folder, dtype=torch.float32, **arguments)


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "nf4") for name in SPECS), *((name, "torchao-int8-wo") for name in FUSED), ("chatglm-6b", "int8")],
)
def test_fused_files_give_what_native_ones_give_and_reload_exactly(
    name: str, method: str, folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    """Saved after a forward, which on some CPUs changes bitsandbytes' 4-bit matrices in place."""
    found = []
    for folder in folders(name).values():
        model = load(GlmLikeForCausalLM, folder, quantization_config=config_of(method))
        found.append(outputs(model))
        assert torch.equal(outputs(model), found[-1])
    assert all(torch.equal(other, found[0]) for other in found)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(model), found[0])
    assert torch.equal(outputs(load(GlmLikeForCausalLM, tmp_path / "saved")), found[0])


@pytest.mark.parametrize("method", LIBRARIES)
def test_every_method_quantizes_every_matrix_of_a_fused_file(
    method: str, folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    for auto in (AutoModelForCausalLM, GlmLikeModel):
        native, fused = (
            load(auto, folder, quantization_config=config_of(method)) for folder in folders("chatglm2").values()
        )
        kinds = {path: type(module.weight) for path, module in fused.named_modules() if path.endswith("_proj")}
        assert len(kinds) == 14
        assert len(set(kinds.values())) == 1
        assert set(kinds.values()) != {torch.nn.Parameter}
        expected = outputs(native)
        assert torch.equal(outputs(fused), expected)
        fused.save_pretrained(tmp_path / auto.__name__)
        assert torch.equal(outputs(load(auto, tmp_path / auto.__name__)), expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", LIBRARIES)
def test_classifiers_keep_their_head_of_floats(
    method: str, head: str, folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    """Of a float folder, and of one that was quantized as a language model; saved with the head, it reloads exactly."""
    folder = folders("chatglm2")["foreign"]
    model = load(HEADS[head], folder, quantization_config=config_of(method))
    layer = model.qa_outputs if head == "question" else model.score
    assert type(layer) is torch.nn.Linear
    assert type(layer.weight) is torch.nn.Parameter
    expected = outputs(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(load(HEADS[head], tmp_path / "saved")), expected)
    language = load(AutoModelForCausalLM, folder, quantization_config=config_of(method))
    language.save_pretrained(tmp_path / "language")
    assert torch.equal(outputs(load(HEADS[head], tmp_path / "language")), expected)


def test_a_list_of_skipped_modules_is_asked_about_every_part_of_a_fused_matrix(
    folders: Callable[[str], dict[str, Path]],
) -> None:
    """The first part of query_key_value is skipped, the others are not; and the other way round."""
    config = config_of("nf4")
    for skipped, others in ((["q_proj"], ["k_proj", "v_proj"]), (["k_proj", "v_proj"], ["q_proj"])):
        config.llm_int8_skip_modules = ["lm_head", *skipped]
        native, fused = (
            load(AutoModelForCausalLM, folder, quantization_config=config) for folder in folders("chatglm2").values()
        )
        attention = fused.model.layers[1].self_attn
        assert all(type(attention.get_submodule(part)) is torch.nn.Linear for part in skipped)
        assert all(hasattr(attention.get_submodule(part).weight, "quant_state") for part in others)
        assert torch.equal(outputs(fused), outputs(native))


@pytest.mark.parametrize("method", ["nf4", "nf4-double"])
def test_an_evaluation_between_steps_changes_no_gradient(
    method: str, folders: Callable[[str], dict[str, Path]]
) -> None:
    """On CPUs where inference puts 4-bit matrices in a form that has no backward pass."""
    peft = pytest.importorskip("peft")
    base = load(AutoModelForCausalLM, folders("chatglm2")["foreign"], quantization_config=config_of(method))
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, lora)

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    evaluated = outputs(model)
    after = gradients()
    assert before.keys() == after.keys()
    for name, gradient in before.items():  # the scales were rounded to bfloat16, where that CPU was
        assert (gradient - after[name]).norm() <= 0.1 * gradient.norm(), name
    peft.get_peft_model_state_dict(model)
    assert torch.equal(outputs(model), evaluated)


def test_torchao_files_of_a_language_model_are_not_those_of_a_bare_decoder(
    folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    model = load(AutoModelForCausalLM, folders("chatglm2")["native"], quantization_config=config_of("float8"))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"Load it with AutoModelForCausalLM and use its \.model"):
        load(AutoModel, tmp_path)


def test_compressed_tensors_load_and_save_again(folders: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    """4-bit groups written by the library itself; saved before or after a forward, which decompresses them."""
    compressed, floats = write_compressed(folders("glm-4-9b")["native"], tmp_path)
    model = load(AutoModelForCausalLM, compressed)
    model.save_pretrained(tmp_path / "before")
    found = outputs(model)
    assert torch.allclose(found, floats, atol=1e-4)
    model.save_pretrained(tmp_path / "after")
    assert torch.equal(outputs(model), found)
    for name in ("before", "after"):
        assert torch.equal(outputs(load(AutoModelForCausalLM, tmp_path / name)), found)
    for auto in (AutoModel, *HEADS.values()):
        assert torch.isfinite(outputs(load(auto, compressed))).all()
    report = glmlike.convert(compressed, tmp_path / "glm", to="glm")
    assert "compressed-tensors, 4 bits, groups of 32" in report.notes[0]
    assert torch.allclose(outputs(load(GlmLikeForCausalLM, tmp_path / "glm")), floats, atol=1e-4)


def test_compressed_tensors_with_zeros_are_read_as_floats(
    folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    """transformers cannot read what the library itself writes of asymmetric integers; here their floats load."""
    compressed, floats = write_compressed(folders("glm-4-9b")["native"], tmp_path, symmetric=False)
    model = load(AutoModelForCausalLM, compressed)
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, torch.nn.Parameter)
    assert torch.allclose(outputs(model), floats, atol=1e-4)


def write_compressed(source: Path, place: Path, *, symmetric: bool = True) -> tuple[Path, torch.Tensor]:
    """A folder in compressed-tensors' 4-bit format, and the outputs of the floats that it stands for."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization import apply_quantization_config as apply

    model = load(AutoModelForCausalLM, source)
    args = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": symmetric}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="compressed"
    )
    apply(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.unflatten(-1, (-1, 32))
            scale, zero = groups.abs().amax(-1) / 7, torch.zeros(groups.shape[:-1])
            if not symmetric:
                scale = (groups.amax(-1) - groups.amin(-1)) / 15
                zero = (-8 - groups.amin(-1) / scale).round()
                module.weight_zero_point.data = zero.to(torch.int8)
            module.weight_scale.data = scale
            integers = ((groups / scale[..., None]).round() + zero[..., None]).clamp(-8, 7)
            module.weight.data = ((integers - zero[..., None]) * scale[..., None]).flatten(-2)
    for module in model.modules():
        if hasattr(module, "quantization_enabled"):
            module.quantization_enabled = False
    floats = outputs(model)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(place / "compressed")
    compressor.update_config(place / "compressed")
    return place / "compressed", floats


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "gptq",
            r"by GPTQ, and gptqmodel is not installed\. Run `pip install optimum gptqmodel` \(which needs a GPU\)",
        ),
        ("awq", "quantized by AWQ, and gptqmodel is not installed"),
        ("compressed-tensors", "quantized by compressed-tensors, and compressed-tensors is not installed"),
    ],
)
def test_a_missing_library_is_named(
    method: str,
    says: str,
    folders: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not a module of it that some import inside transformers did not find."""
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: None if name != "optimum" else object())
    folder = Path(shutil.copytree(folders("chatglm2")["native"], tmp_path / method))
    fields = json.loads((folder / "config.json").read_text())
    stored = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 32}}
    (folder / "config.json").write_text(json.dumps({**fields, **stored}))
    for auto in (AutoModelForCausalLM, AutoModel, *HEADS.values()):
        with pytest.raises(ConfigError, match=says):
            load(auto, folder)
