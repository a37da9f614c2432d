"""The decoder as one file: what is in it, and that people without glmlike load, run and save it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import glmlike
import glmlike.loss
from glmlike import GlmLikeForSequenceClassification
from glmlike.data import TINY
from glmlike.errors import ConfigError
from glmlike.remote_code import AUTO_MAP, FILE, source, with_auto_map, write_remote_code
from specs import SPECS

FAMILIES = ["chatglm2-32k", "glm-4-0414", "llama-3.1", "qwen2-sliding", "glm-10b", "chatglm-6b", "glm-130b"]
FAMILIES += ["infilling-recipe", "chatglm2-ptuned-projected"]
# Rows of a context with blanks and a piece, of plain text, and one padded on the left.
ROWS = torch.tensor([[5, 90, 7, 8, 91, 9, 93, 11], [5, 6, 7, 8, 9, 10, 11, 12], [0, 0, 5, 92, 93, 11, 12, 93]])
MASK = (ROWS != 0).long()

# What a person without glmlike runs: every folder is loaded as a language model and as a classifier, and saved again.
WITHOUT = """
import json, sys
sys.modules["glmlike"] = None  # importing it fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

inputs, found = load_file(sys.argv[1]), {}
inputs = {"input_ids": inputs["rows"], "attention_mask": inputs["mask"]}
trusted = {"trust_remote_code": True}
with torch.no_grad():
    for folder in sys.argv[3:]:
        name = folder.rsplit("/", 1)[1]
        model = AutoModelForCausalLM.from_pretrained(folder, **trusted).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        found[f"{name} logits"] = model(**inputs).logits
        options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
        found[f"{name} greedy"] = model.generate(**inputs, **options)
        found[f"{name} beams"] = model.generate(**inputs, **options, num_beams=2)
        model.save_pretrained(folder + "-again")
        again = AutoModelForCausalLM.from_pretrained(folder + "-again", **trusted).eval()
        found[f"{name} again"] = again(**inputs).logits
        found[f"{name} hidden"] = AutoModel.from_pretrained(folder + "-again", **trusted).eval()(**inputs)[0]
        if "sliding" not in name:
            scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trusted)
            scorer.score.weight.fill_(0.01)
            found[f"{name} scores"] = scorer.eval()(**inputs).logits
        try:
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error)
        else:
            raise AssertionError("code was run without being trusted")
save_file({key: value.contiguous() for key, value in found.items()}, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("glmlike.")]
"""


def run_without(script: str, *arguments: object, home: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def folders(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with remote code of every family."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        make(SPECS[family]).save_pretrained(root / family)
        write_remote_code(root / family, root / family)
    return root


@pytest.fixture(scope="module")
def without(folders: Path) -> dict[str, torch.Tensor]:
    """What a process without glmlike found."""
    save_file({"rows": ROWS, "mask": MASK}, folders / "inputs.safetensors")
    paths = [folders / family for family in FAMILIES]
    results = folders / "found.safetensors"
    run_without(WITHOUT, folders / "inputs.safetensors", results, *paths, home=folders / "home")
    return load_file(results)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_same_numbers_without_glmlike(family: str, folders: Path, without: dict[str, torch.Tensor]) -> None:
    inputs = {"input_ids": ROWS, "attention_mask": MASK}
    model = AutoModelForCausalLM.from_pretrained(folders / family).eval()  # with glmlike, ours
    assert type(model) is glmlike.GlmLikeForCausalLM
    real = MASK.bool()
    logits = model(**inputs).logits
    assert torch.equal(without[f"{family} logits"][real], logits[real])
    assert torch.equal(without[f"{family} again"][real], logits[real])
    assert torch.equal(without[f"{family} hidden"][real], model.model(**inputs).last_hidden_state[real])
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    assert torch.equal(without[f"{family} greedy"], model.generate(**inputs, **options))
    assert torch.equal(without[f"{family} beams"], model.generate(**inputs, **options, num_beams=2))
    if "sliding" not in family:
        scorer = GlmLikeForSequenceClassification.from_pretrained(folders / family, num_labels=3).eval()
        scorer.score.weight.fill_(0.01)
        assert torch.equal(without[f"{family} scores"], scorer(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_without_glmlike_is_whole(family: str, folders: Path, without: dict[str, Any]) -> None:
    """It has its code and its auto_map still, and glmlike reads it as the decoder it was."""
    again = folders / f"{family}-again"
    assert glmlike.verify(folders / family, again) > 10
    assert (again / FILE).read_text() == source()
    said = json.loads((again / "config.json").read_text())["auto_map"]
    assert said == AUTO_MAP


def test_the_embedded_model_and_its_tokenizer_without_glmlike(tmp_path: Path) -> None:
    from glmlike.push import prepared

    with prepared(TINY, "user/tiny", to="remote-code") as upload:
        for name, path in upload.files.items():
            (tmp_path / name).write_bytes(path.read_bytes())
    script = """
import sys
sys.modules["glmlike"] = None
import transformers
generate = transformers.pipeline("text-generation", model=sys.argv[1], trust_remote_code=True, dtype="float32")
said = generate(sys.argv[2], max_new_tokens=8, do_sample=False)[0]["generated_text"]
open(sys.argv[3], "w").write(said)
"""
    text = "We the People of the United"
    run_without(script, tmp_path, text, tmp_path / "said", home=tmp_path / "home")
    import transformers

    ours = transformers.pipeline("text-generation", model=str(TINY), dtype="float32")
    assert (tmp_path / "said").read_text() == ours(text, max_new_tokens=8, do_sample=False)[0]["generated_text"]


def test_the_file_imports_nothing_of_glmlike_and_leaves_out_what_it_does_not_need() -> None:
    tree = ast.parse(source())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    needed = {"torch", "transformers", "huggingface_hub"}
    assert imported - set(sys.stdlib_module_names) == {*needed, "liger_kernel"}  # tried, where there is one
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert {"GlmLikeForCausalLM", "GlmLikeForSequenceClassification", "infilling_positions"} <= names
    assert not names & {"ChatMixin", "stream_chat", "settle_prefix", "load_prefix", "GlmIntConfig", "translate"}
    assert not names & {"read_glm_10b", "open_folder", "ChatGLMConfig", "from_spec"}


def test_every_name_in_the_file_is_defined_once_and_known() -> None:
    import builtins
    import symtable

    text = source()
    top = symtable.symtable(text, FILE, "exec")
    known = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    known |= {symbol.get_name() for symbol in top.get_symbols() if symbol.is_namespace()}

    def unknown(table: symtable.SymbolTable) -> set[str]:
        found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
        return found.union(*(unknown(child) for child in table.get_children()))

    assert unknown(top) - known - set(dir(builtins)) == set()
    defined = [node.name for node in ast.parse(text).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert len(defined) == len(set(defined))


def test_the_same_text_in_every_process() -> None:
    code = "from glmlike.remote_code import source; import sys; sys.stdout.buffer.write(source().encode())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert done.stdout.decode() == source()


def test_what_remote_code_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="remote code reads native checkpoints"):
        with_auto_map({"model_type": "chatglm"})
    integers = {"quant_method": "glm_int", "bits": 4}
    with pytest.raises(ConfigError, match="only glmlike's own quantizer reads"):
        with_auto_map({"model_type": "glmlike", "quantization_config": integers})


def test_integers_become_floats_for_remote_code(golden: Path) -> None:
    from glmlike.push import prepared

    with prepared(golden / "chatglm2_int4", "user/x", to="remote-code", tokenizer=False) as upload:
        config = json.loads(upload.files["config.json"].read_text())
        tensors = load_file(upload.files["model.safetensors"])
    assert "quantization_config" not in config
    assert all(tensor.is_floating_point() for tensor in tensors.values())


def test_compiled_training_beside_glmlike_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator that makes the loss in a graph has a name of its own in each copy of the code."""
    (tmp_path / "copy_of_glmlike.py").write_text(source(), encoding="utf8")
    monkeypatch.syspath_prepend(str(tmp_path))
    copied = importlib.import_module("copy_of_glmlike")
    inputs = (torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True), torch.arange(5))
    expected = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].T, inputs[2])
    for module in (glmlike.loss, copied):
        torch.compiler.reset()
        function = torch.compile(module.linear_cross_entropy, fullgraph=True, backend="aot_eager")
        found = function(*inputs)
        torch.testing.assert_close(found, expected)
        found.backward()
    assert copied._OPERATOR is not glmlike.loss._OPERATOR
