"""Parity: what two folders compute, layer by layer, whatever their formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmlike
from glmlike.cli import main
from glmlike.errors import CheckpointError, ConfigError
from glmlike.parity import parity
from specs import SPECS

KINDS = sorted(SPECS)


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ids = {"mask_token_id": 90, "gmask_token_id": 91, "sop_token_id": 92, "pad_token_id": 0}
    model = glmlike.GlmLikeForCausalLM(glmlike.GlmLikeConfig.from_spec(SPECS[request.param], **ids))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _changed(folder: Path, name: str, by: float) -> Path:
    """A copy of the folder in which one tensor is another."""
    copy = folder.parent / "changed"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors[name] = tensors[name] + by * torch.randn(tensors[name].shape)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_the_run_is_that_of_the_model(folder: Path) -> None:
    """Hidden states of layers read one by one are those of the loaded model."""
    from glmlike.parity import _run, _special, _tokens

    found = glmlike.detect(folder)
    special = _special(found)
    ids = _tokens(found.spec, special, None)
    run = _run(found, special, ids, None)
    model = glmlike.GlmLikeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    assert run.logits is not None
    torch.testing.assert_close(run.logits, output.logits, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(run.hidden[:-1], output.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_folder_is_equal_to_itself_and_the_layer_that_differs_is_named(folder: Path) -> None:
    report = parity(folder, folder)
    assert (report.equal, report.logits, report.kl) == (True, 0.0, 0.0)
    layers = glmlike.detect(folder).spec.num_hidden_layers
    assert report.layers == layers
    other = _changed(folder, f"model.layers.{layers - 1}.self_attn.v_proj.weight", 0.1)
    report = parity(folder, other)
    assert report.first_divergent_layer == layers - 1
    assert report.kl is not None
    assert report.kl > 0
    assert parity(folder, other, layers=layers - 1).equal
    assert parity(folder, other, tolerance=1e3).equal


def test_other_formats_compute_the_same(folder: Path, tmp_path: Path) -> None:
    from glmlike.hub_json import FORMATS, cannot_express

    spec = glmlike.detect(folder).spec
    for name in FORMATS:
        if name != "glmlike" and not cannot_express(spec, name):
            glmlike.convert(folder, tmp_path / name, to=name)
            assert parity(folder, tmp_path / name).equal


def test_different_decoders_and_bad_arguments_are_errors(folder: Path, tmp_path: Path) -> None:
    smaller = glmlike.GlmLikeConfig.from_spec(glmlike.detect(folder).spec.replace(vocab_size=50))
    glmlike.GlmLikeForCausalLM(smaller).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="expected two folders of one decoder"):
        parity(folder, tmp_path / "other")
    with pytest.raises(ConfigError, match="layers=99"):
        parity(folder, folder, layers=99)
    with pytest.raises(ConfigError, match=r"expected whole numbers \[B, T\]"):
        parity(folder, folder, input_ids=[1, 2])


def test_the_command_names_the_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    glmlike.GlmLikeForCausalLM(glmlike.GlmLikeConfig.from_spec(SPECS["chatglm2"])).save_pretrained(tmp_path / "model")
    other = _changed(tmp_path / "model", "model.layers.1.mlp.down_proj.weight", 1.0)
    for arguments, code in (([], 2), (["--layers", "1"], None), (["--tolerance", "1e6"], None)):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(tmp_path / "model"), str(other), "--logits", "--json", *arguments])
        assert (ended.value.code or None) == code
        printed = capsys.readouterr()
        assert json.loads(printed.out)["equal"] is (code is None)
        assert ("layer 1 of" in printed.err) is (code == 2)
