"""Folders of GPTQ, AWQ and compressed-tensors, read as the floats that their integers stand for, to the bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeForCausalLM, GlmLikeModel, packed_loading
from glmlike.checkpoint import packed_streams
from glmlike.checkpoint.packed import PackedCheckpoint, unpacked
from glmlike.checkpoint.packed_configs import read_config
from glmlike.checkpoint.shards import open_checkpoint
from glmlike.checkpoint.streams import stretches
from glmlike.cli import app
from glmlike.quantizing import METHODS, quantize
from packed_folders import Integers, Kind, stored, write_packed
from packed_folders import quantize as packed_of
from specs import FAMILY, SPECS

GPTQ, AWQ = Kind("gptq", act_order=True), Kind("awq")
PUBLISHED = {
    "gptq": Kind("gptq", symmetric=True),
    "gptq-desc_act": GPTQ,
    "gptq-8": Kind("gptq", bits=8, size=-1, symmetric=True),
    "gptq-2": Kind("gptq_v2", bits=2),
    "awq": AWQ,
    "compressed": Kind("compressed"),
    "compressed-8": Kind("compressed", bits=8, size=-1, symmetric=True),
    "int8": Kind("plain", bits=8, size=-1, symmetric=True),
}


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    packing = draw(st.sampled_from(("gptq", "gptq_v2", "awq", "compressed", "plain")))
    bits = draw(st.sampled_from({"awq": (4,), "compressed": (4, 8), "plain": (8,)}.get(packing, (2, 4, 8))))
    size = draw(st.sampled_from((-1, 8, 16, 32)))
    symmetric = packing != "awq" and draw(st.booleans())
    scale = draw(st.sampled_from((np.float16, np.float32)))
    return Kind(packing, bits, size, symmetric, packing != "awq" and draw(st.booleans()), scale)


@settings(max_examples=40, deadline=None)
@given(
    kind=kinds(),
    rows=st.integers(1, 5),
    columns=st.integers(1, 20),
    whole=st.booleans(),
    dtype=st.sampled_from((torch.float16, torch.bfloat16, torch.float32)),
    at_most=st.integers(1, 2000),
    short=st.sampled_from((0, 2**14)),
    seed=st.integers(0, 99),
)
def test_a_packed_matrix_streams_as_the_floats_it_stands_for(
    kind: Kind, rows: int, columns: int, whole: bool, dtype: torch.dtype, at_most: int, short: int, seed: int
) -> None:
    """Any width, group, order and dtype, read in stretches of any size; where the format allows it, ragged shapes."""
    shape = (rows * 8, columns * 8) if whole or kind.packing == "awq" else (rows * 8 - 3, columns * 8 - 5)
    found = packed_of(np.random.default_rng(seed).normal(size=shape), kind, seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_streams, "_SHORT_ROW", short)
        patch.setattr(packed_streams, "_BLOCK", 100)
        checkpoint = as_floats(Path(folder), found, kind, dtype)
        stream = checkpoint.stream("m.weight")
        buffer = bytearray(shape[0] * shape[1] * dtype.itemsize)
        for start, stop in stretches(stream, at_most):
            stream.read_into(memoryview(buffer)[start:stop], start)
    assert not stream.exact
    assert torch.equal(torch.frombuffer(buffer, dtype=dtype).view(shape), found.floats(dtype))


def as_floats(folder: Path, found: Integers, kind: Kind, dtype: torch.dtype) -> Any:
    tensors = {f"m.{part}": torch.from_numpy(np.array(array, order="C")) for part, array in stored(found, kind).items()}
    save_file(tensors, folder / "model.safetensors")
    config = read_config({"quantization_config": kind.config}, "config.json")
    assert config is not None
    shapes = {"m.weight": found.values.shape}
    return unpacked(open_checkpoint(folder), config, shapes, str(dtype).removeprefix("torch."))


def test_zeros_of_the_first_gptq_format_lend_and_are_given_back(tmp_path: Path) -> None:
    """A zero of 0 is stored as 15 with one taken from the field after it, and read back as GPTQModel does."""
    found = packed_of(np.abs(np.random.default_rng(0).normal(size=(16, 32))), GPTQ)
    assert (found.zeros == 0).all()
    assert (stored(found, GPTQ)["qzeros"] != -1).any()
    read = as_floats(tmp_path, found, GPTQ, torch.float16).read("m.weight")
    assert torch.equal(read, found.floats(torch.float16))


Folders = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def folders(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """``folders(spec, kind)``: a decoder in the layout it is published in, packed, and the floats that are meant."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def folders_of(name: str, kind: str) -> tuple[Path, Path]:
        if (name, kind) not in made:
            place = tmp_path_factory.mktemp(name)
            make(SPECS[name].replace(num_hidden_layers=2, layer_types=None, sliding_window=None)).save_pretrained(
                place / "native"
            )
            glmlike.convert(place / "native", place / "foreign", to=FAMILY[name], dtype="float16", verify="none")
            made[name, kind] = write_packed(place / "foreign", place, PUBLISHED[kind])
        return made[name, kind]

    return folders_of


CASES = [
    *(("glm-4-9b", kind) for kind in PUBLISHED),
    *(("llama-3", kind) for kind in ("gptq-desc_act", "awq")),
    *(("qwen2.5-tied", kind) for kind in ("gptq", "awq", "int8")),
    *(("glm-4-0414", kind) for kind in ("gptq-desc_act", "awq", "compressed")),
    *(("tied-recipe", kind) for kind in ("gptq", "compressed")),
    ("chatglm2", "gptq"),
    ("chatglm-6b", "gptq"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_converting_gives_the_floats_that_are_meant(name: str, kind: str, folders: Folders, tmp_path: Path) -> None:
    packed, floats = folders(name, kind)
    report = glmlike.convert(packed, tmp_path / "made", to="glmlike", max_shard_size="200KB")
    glmlike.convert(floats, tmp_path / "meant", to="glmlike")
    assert "matrices of packed integers (" in report.notes[0]
    assert "read as (integer - zero) x scale in F16" in report.notes[0]
    made, meant = (GlmLikeForCausalLM.from_pretrained(tmp_path / which).state_dict() for which in ("made", "meant"))
    assert made.keys() == meant.keys()
    assert all(torch.equal(made[key], meant[key]) for key in meant)
    assert "quantization_config" not in json.loads((tmp_path / "made" / "config.json").read_text())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_loading_gives_the_floats_that_are_meant(
    name: str, kind: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: None)
    packed, floats = folders(name, kind)
    made, meant = (GlmLikeForCausalLM.from_pretrained(folder) for folder in (packed, floats))
    assert made.dtype == meant.dtype == torch.float16
    assert all(torch.equal(made.state_dict()[key], tensor) for key, tensor in meant.state_dict().items())
    assert not hasattr(made.config, "quantization_config")
    made.save_pretrained(tmp_path)
    assert torch.equal(GlmLikeForCausalLM.from_pretrained(tmp_path).lm_head.weight, meant.lm_head.weight)


def test_every_class_loads_them_and_another_method_quantizes_them_as_they_are_read(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: None if name == "gptqmodel" else object())
    packed, floats = folders("chatglm2", "gptq")
    ids = torch.arange(3, 9)[None]
    for auto in (AutoModelForCausalLM, GlmLikeModel, AutoModelForSequenceClassification):
        found = []
        for folder in (packed, floats):
            torch.manual_seed(0)  # of a new head
            model = auto.from_pretrained(folder, dtype=torch.float32).eval()
            with torch.no_grad():
                found.append(model(ids)[0])
        assert torch.equal(*found)
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    eight = AutoModelForCausalLM.from_pretrained(packed, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert eight.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8


def test_a_config_object_of_ones_own_and_arguments_are_heeded(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: None)
    packed, _ = folders("chatglm2", "gptq")
    config = glmlike.ChatGLMConfig.from_pretrained(packed, generation="chatglm2").native()
    config.max_position_embeddings = 77
    said = config.quantization_config
    assert GlmLikeForCausalLM.from_pretrained(packed, config=config).config.max_position_embeddings == 77
    assert config.quantization_config == said
    model = GlmLikeForCausalLM.from_pretrained(packed, generation="chatglm2", use_cache=False)
    assert not model.config.use_cache
    with pytest.raises(ConfigError, match=r"with a folder of packed integers.*`glmlike convert"):
        GlmLikeForCausalLM.from_pretrained(packed, device_map={"": "disk"})


def test_what_transformers_can_keep_as_integers_it_does(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the method's own library there, of unfused matrices: then loading is transformers', and not ours."""
    packed, _ = folders("tied-recipe", "gptq")
    asked = []
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: asked.append(name) or object())
    assert packed_loading.open_packed(packed, packed, None, None, {}) is None
    assert asked == ["optimum", "gptqmodel"]
    fused, _ = folders("glm-4-9b", "gptq")
    assert packed_loading.open_packed(fused, fused, None, None, {}) is not None
    for asked in ({"quant_method": "gptq"}, glmlike.GlmIntConfig()):
        with pytest.raises(ConfigError, match="can only become floats: .* Leave quantization_config out"):
            GlmLikeForCausalLM.from_pretrained(fused, quantization_config=asked)


@pytest.mark.parametrize("method", ["int8", "torchao-int8-wo", "float8"])
@pytest.mark.parametrize("name", ["chatglm2", "tied-recipe"])
def test_another_method_quantizes_the_floats(
    name: str, method: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the integers could stay; what is saved is of that method, and reloads exactly."""
    pytest.importorskip(METHODS[method].engine)
    packed, floats = folders(name, "gptq")
    config = METHODS[method].config
    assert config is not None
    with monkeypatch.context() as patch:
        patch.setattr(packed_loading, "find_spec", lambda name: object())
        made, meant = (
            GlmLikeForCausalLM.from_pretrained(folder, quantization_config=config(), dtype=torch.float32).eval()
            for folder in (packed, floats)
        )
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        found = made(ids).logits
        assert torch.equal(found, meant(ids).logits)
        assert type(made.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
        made.save_pretrained(tmp_path)
        said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"]
        assert said == METHODS[method].engine
        assert torch.equal(GlmLikeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).logits, found)


def test_inspect_says_the_method_and_quantize_what_to_do(folders: Folders, tmp_path: Path) -> None:
    packed, _ = folders("glm-4-9b", "awq")
    facts = json.loads(CliRunner().invoke(app, ["inspect", str(packed), "--json"]).stdout)
    assert facts["quantized"] == "AWQ, 4 bits, groups of 32"
    assert facts["notes"][0].startswith("12 matrices of packed integers (AWQ, 4 bits, groups of 32)")
    assert facts["dtypes"] == {"F16": facts["tensors"]}
    for method, target in (("nf4", "x"), ("gguf-q8_0", "x.gguf")):
        with pytest.raises(ConfigError, match=r"quantized already \(AWQ.* `glmlike convert .* --to glmlike`"):
            quantize(packed, tmp_path / target, method=method)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_within_its_memory_and_names_the_stored_tensors(folders: Folders, tmp_path: Path) -> None:
    packed, _ = folders("glm-4-9b", "gptq-desc_act")
    plan = glmlike.convert(packed, tmp_path / "x", to="glm", dry_run=True)
    assert plan.memory.peak <= plan.memory.bound
    assert not plan.lossless
    assert {step.how for step in plan.steps} == {"bytes", "dequantize"}
    found = glmlike.detect(packed)
    assert isinstance(found.checkpoint, PackedCheckpoint)
    parts = [name for _, name in found.checkpoint.parts("model.layers.0.mlp.down_proj.weight")]
    ends = ("qweight", "scales", "qzeros", "g_idx")
    assert parts == [f"model.layers.0.mlp.down_proj.{end}" for end in ends]


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("gptq", {"bits": 3}, r"GPTQ with bits=3: its files are not read here \(what is: 2 or 4 or 8\)"),
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ with checkpoint_format='marlin'"),
        ("gptq", {"is_marlin_format": True}, "GPTQ with checkpoint_format='marlin'"),
        ("gptq", {"pack_dtype": "int16"}, "GPTQ with pack_dtype='int16'"),
        ("gptq", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "other bits or groups for some modules"),
        ("gptq", {"group_size": 0}, "group_size=0: expected a number of columns, or -1"),
        ("awq", {"version": "gemv"}, "AWQ with version='gemv'"),
        ("awq", {"backend": "llm-awq"}, "AWQ with version='llm-awq'"),
        ("awq", {"bits": 8}, "AWQ with bits=8"),
        *(
            (
                "compressed",
                {"format": fmt},
                f"compressed-tensors with format='{fmt}'.*'pack-quantized', 'int-quantized', ",
            )
            for fmt in ("mxfp6-pack-quantized", "marlin-24", "sparse-24-bitmask", "sparse-bitmask", "dense", "new")
        ),
        ("compressed", {"format": "float-quantized"}, r"in format='float-quantized'.*\(what is: floats of 8 bits by "),
        ("compressed", {"format": "mixed-precision"}, "compressed-tensors with format='mixed-precision'"),
        ("compressed", {"transform_config": {"config_groups": {"u": {}}}}, "with a transform_config"),
        (
            "compressed",
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "a sparsity_config of format 'sparse-24-bitmask'",
        ),
        ("compressed", {"config_groups": {}}, "compressed-tensors with weights={}"),
        (
            "compressed",
            {"config_groups": {"a": {"weights": {"num_bits": 3, "type": "int", "strategy": "channel"}}}},
            "compressed-tensors with bits=3",
        ),
        (
            "compressed",
            {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "strategy": "group"}}}},
            "compressed-tensors with weights=.*'type': 'float'",
        ),
        ("gptq", {"group_size": 16}, r"GPTQ, 4 bits, groups of 16 makes them .*config.json is of another checkpoint"),
        ("gptq", {"bits": 8}, "GPTQ, 8 bits, groups of 32 makes them"),
    ],
)
def test_what_is_not_read_is_refused_in_a_sentence(
    kind: str, fields: dict[str, Any], says: str, folders: Folders, tmp_path: Path
) -> None:
    folder = changed(folders("glm-4-9b", kind)[0], tmp_path, fields)
    for read in (glmlike.detect, GlmLikeForCausalLM.from_pretrained):
        with pytest.raises((ConfigError, CheckpointError), match=says):
            read(folder)


def changed(folder: Path, target: Path, fields: dict[str, Any] | None, **tensors: torch.Tensor | None) -> Path:
    """A copy of a folder with other fields of its quantization_config (None: none), and other tensors (None: none)."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = None if fields is None else {**config["quantization_config"], **fields}
    (target / "config.json").write_text(json.dumps(config))
    found = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, target / "model.safetensors")
    return target


O_PROJ = "model.layers.1.self_attn.o_proj."


@pytest.mark.parametrize(
    ("end", "tensor", "says"),
    [
        ("scales", None, rf"no file holds '{O_PROJ}scales', but there is '{O_PROJ}qweight'"),
        ("qzeros", None, f"no file holds '{O_PROJ}qzeros'"),
        ("scales", torch.ones(2, 64, dtype=torch.int32), "are .*'scales': 'I32 .*but GPTQ"),
        ("bias", torch.ones(64), f"'{O_PROJ}bias' is a bias of a matrix that has none .*not of zeros"),
        ("g_idx", None, f"no file holds '{O_PROJ}g_idx'"),
        ("g_idx", torch.zeros(64, dtype=torch.int32), "g_idx puts 64 columns in one group, but .* groups of 32"),
        ("g_idx", torch.full((64,), 7, dtype=torch.int32), "its columns are of the groups 7 to 7, but .* scales of 2"),
        ("g_idx", torch.full((64,), -1, dtype=torch.int32), "its columns are of the groups -1 to -1"),
    ],
)
def test_damaged_matrices_are_named(
    end: str, tensor: torch.Tensor | None, says: str, folders: Folders, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    folder = changed(folders("glm-4-9b", "gptq-desc_act")[0], tmp_path / "src", {}, **{O_PROJ + end: tensor})
    with pytest.raises(CheckpointError, match=says):
        glmlike.convert(folder, tmp_path / "dst", to="glmlike")
    with pytest.raises(CheckpointError, match=says):
        GlmLikeForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "dst").exists()


def test_biases_of_zeros_are_left_out_and_said(folders: Folders, tmp_path: Path) -> None:
    """AutoGPTQ before 0.5 wrote one for every matrix. And without g_idx, groups are of neighbours."""
    packed, floats = folders("glm-4-9b", "gptq")
    more = {O_PROJ + "bias": torch.zeros(64, dtype=torch.float16), O_PROJ + "g_idx": None}
    found = glmlike.detect(changed(packed, tmp_path, {}, **more))
    assert found.notes[1] == "1 biases of zeros, of matrices that have none, are left out"
    assert torch.equal(found.read(O_PROJ + "weight"), load_file(floats / "model.safetensors")[O_PROJ + "weight"])


def test_packed_integers_without_a_word_of_it_in_config_json(folders: Folders, tmp_path: Path) -> None:
    folder = changed(folders("glm-4-9b", "gptq")[0], tmp_path, None)
    with pytest.raises(ConfigError, match="has no 'quantization_config', but the files hold '.*qweight'"):
        glmlike.detect(folder)


def test_activations_that_stay_floats_are_said(folders: Folders, tmp_path: Path) -> None:
    groups = {"a": {**PUBLISHED["int8"].config["config_groups"]["group_0"], "input_activations": {"num_bits": 8}}}
    folder = changed(folders("glm-4-9b", "int8")[0], tmp_path, {"config_groups": groups})
    assert glmlike.detect(folder).notes[1].startswith("compressed-tensors also rounds what goes into these matrices")
