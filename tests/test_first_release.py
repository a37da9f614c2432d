"""ChatGLM-6B v1.0: its tables lose the 20000 rows of image tokens as they are read, and the rest is v1.1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import glmlike
from glmlike import CheckpointError, GlmIntConfig, GlmLikeConfig, GlmLikeForCausalLM, GlmLikeModel
from glmlike.checkpoint.formats import table_of
from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.rules import by_foreign
from glmlike.hub_json import read_spec
from released_integers import of_the_layers, with_the_tables, write_released
from specs import SPECS

SPEC = SPECS["chatglm-6b"].replace(
    vocab_size=130_528, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8
)
TABLES = ("transformer.word_embeddings.weight", "lm_head.weight")
IDS = {
    "mask_token_id": 130_000,
    "gmask_token_id": 130_001,
    "smask_token_id": 130_002,
    "sop_token_id": 130_004,
    "bos_token_id": 130_004,
    "eos_token_id": 130_005,
    "pad_token_id": 3,
}
PROMPT = torch.tensor([[5, 74_874, 130_001, 130_004]])  # 你好 [gMASK] <sop>, in v1.1's ids


@pytest.fixture(scope="module")
def releases(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1.1 and v1.0 of one small ChatGLM-6B: the same weights, with image tokens before them in v1.0."""
    root = tmp_path_factory.mktemp("releases")
    make(SPEC, **IDS).to(torch.float16).save_pretrained(root / "native")
    glmlike.convert(root / "native", root / "v1.1", to="chatglm-6b")
    shutil.copytree(root / "v1.1", root / "v1.0")
    tensors = load_file(root / "v1.0" / "model.safetensors")
    for name in TABLES:
        tensors[name] = torch.cat((torch.randn(20_000, 16).half(), tensors[name]))
    save_file(tensors, root / "v1.0" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((root / "v1.1" / "config.json").read_text())
    old = {"vocab_size": 150_528, "bos_token_id": 150_004, "eos_token_id": 150_005}  # and no other ids, as published
    config = {key: value for key, value in config.items() if key not in IDS} | old
    (root / "v1.0" / "config.json").write_text(json.dumps(config))
    return root


@torch.no_grad()
def test_v1_0_loads_as_v1_1(releases: Path, tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(releases / "v1.1", dtype=torch.float32)
    for cls in (AutoModel, AutoModelForCausalLM, GlmLikeForCausalLM):
        model = cls.from_pretrained(releases / "v1.0", dtype=torch.float32)
        assert type(model) is GlmLikeForCausalLM
        assert model.config.spec == SPEC
        assert {name: getattr(model.config, name) for name in IDS} == IDS
        state = expected.state_dict()
        assert all(same_bits(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.generation_config.eos_token_id == 130_005
    arguments: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(PROMPT, **arguments), expected.generate(PROMPT, **arguments))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["vocab_size"] == 130_528
    assert "_dropped_rows" not in saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(PROMPT).logits, expected(PROMPT).logits)


def test_every_way_to_say_what_to_load(releases: Path) -> None:
    """A config object read before, a config folder beside, the bare decoder, a mapping of the caller's own."""
    expected = GlmLikeForCausalLM.from_pretrained(releases / "v1.1")
    config = AutoConfig.from_pretrained(releases / "v1.0")
    assert isinstance(config, GlmLikeConfig)
    for arguments in ({"config": config}, {"config": releases / "v1.0"}, {"key_mapping": {"^nothing": "something"}}):
        model = GlmLikeForCausalLM.from_pretrained(releases / "v1.0", **arguments)  # type: ignore[arg-type]
        assert same_bits(model.lm_head.weight.data, expected.lm_head.weight.data)
        assert same_bits(model.model.embed_tokens.weight.data, expected.model.embed_tokens.weight.data)
    bare = GlmLikeModel.from_pretrained(releases / "v1.0")
    assert same_bits(bare.embed_tokens.weight.data, expected.model.embed_tokens.weight.data)


def test_v1_0_converts_to_v1_1(releases: Path, tmp_path: Path) -> None:
    """On the fly equals offline; what is dropped is declared; the way back is refused, since the rows are gone."""
    assert glmlike.detect(releases / "v1.0").spec == SPEC
    note = ("v1.0: rows :20000 of embedding and head (image tokens) are dropped, ids are v1.1's",)
    report = glmlike.convert(releases / "v1.0", tmp_path / "out", to="chatglm-6b")
    assert report.notes[:1] == note == glmlike.detect(releases / "v1.0").notes  # the folder was itself converted
    assert glmlike.detect(tmp_path / "out").notes == ()
    before, after = (load_file(folder / "model.safetensors") for folder in (releases / "v1.1", tmp_path / "out"))
    assert all(same_bits(tensor, before[name]) for name, tensor in after.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 130_528
    assert {name: config[name] for name in IDS} == IDS
    assert glmlike.verify(releases / "v1.0", releases / "v1.1") == len(after) + 2 * 2 * SPEC.num_hidden_layers
    step = by_foreign(table_of("chatglm-6b", 20_000).steps(SPEC))["lm_head.weight"]
    with pytest.raises(CheckpointError, match="a file with 150528 rows cannot be written"):
        step.layout.to_foreign([after["lm_head.weight"]])


@pytest.mark.parametrize(("bits", "chosen"), [(8, of_the_layers), (4, with_the_tables)])
def test_integers_of_that_time(releases: Path, bits: int, chosen: Any, tmp_path: Path) -> None:
    """ChatGLM-6B int4 and int4-qe of April 2023: the scales of the tables are cropped with their rows."""
    source = Path(shutil.copytree(releases / "v1.0", tmp_path / "v1.0"))
    tensors = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    folder = write_released(source, tmp_path / "released", bits, chosen, dtype="float32")
    floats = GlmLikeForCausalLM.from_pretrained(folder.parent / "floats").state_dict()
    for keep in (False, True):
        asked = GlmIntConfig(dequantize=not keep)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked, dtype=torch.float16)
        assert model.lm_head.weight.shape[0] == model.model.embed_tokens.weight.shape[0] == 130_528
        if keep:
            model.dequantize()
        state = model.state_dict()
        assert all(torch.equal(tensor.half(), state[name]) for name, tensor in floats.items())
    assert len(glmlike.detect(folder).notes) == 2
    assert glmlike.verify(folder, folder.parent / "floats") > 0


def test_tables_and_config_of_different_releases_are_named_with_both_numbers(releases: Path, tmp_path: Path) -> None:
    for weights, said in (("v1.0", "v1.1"), ("v1.1", "v1.0")):
        folder = tmp_path / f"{weights} weights"
        shutil.copytree(releases / weights, folder)
        shutil.copy(releases / said / "config.json", folder)
        rows = {"v1.0": 150_528, "v1.1": 130_528}
        for read in (AutoModelForCausalLM.from_pretrained, glmlike.detect):
            with pytest.raises(CheckpointError, match=f"{rows[weights]}.*{rows[said]}"):
                read(folder)


def test_the_published_v1_0(shared: Path) -> None:
    """Its own config.json and index: every name has its place, and the sizes are the index's total."""
    folder = shared / "originals" / "chatglm-6b-v1.0"
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    table = table_of("chatglm-6b", glmlike.hub_json.dropped_rows(config))  # type: ignore[attr-defined]
    spec = read_spec(config)
    assert spec.vocab_size == 130_528
    shapes = table.foreign_shapes(spec)
    assert shapes.keys() == index["weight_map"].keys() - table.dropped_names(spec)
    assert shapes["lm_head.weight"] == (150_528, 4096)
    norms = sum(4 * torch.Size(shape).numel() for name, shape in shapes.items() if "layernorm" in name)
    rest = sum(2 * torch.Size(shape).numel() for name, shape in shapes.items() if "layernorm" not in name)
    angles = 28 * 32 * 2
    assert index["metadata"]["total_size"] == norms + rest + angles
