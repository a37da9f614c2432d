"""conversion/: recipes against what was published, folders against recipes, and every script on a small checkpoint."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmlike
import hub_server
from glmlike.hub_json import write_config
from glmlike.published import PUBLISHED
from specs import SPECS

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "conversion"
OWN = ("checking", "command", "readme", "recipes")

SCRIPTS: dict[str, tuple[str, list[str], str]] = {
    "convert_chatglm_to_glm": ("chatglm", [], "glm"),
    "convert_glm_to_chatglm": ("glm", [], "chatglm"),
    "convert_chatglm_6b": ("chatglm-6b", [], "chatglm-6b"),
    "convert_glm_10b": ("glm-10b", [], "glmlike"),
    "convert_sat_to_glmlike": ("glm-130b", [], "glmlike"),
    "reshard_sat": ("glm-130b", ["--tensor-parallel", "4"], "glm-130b"),
    "convert_llama_meta": ("meta", [], "llama"),
    "convert_to_native": ("chatglm", ["--generation", "chatglm3"], "glmlike"),
}
"""Each script: the format of its source here, its own arguments, and what it writes."""

FIXTURES = {"chatglm": "chatglm3", "chatglm-6b": "chatglm", "glm-10b": "glm", "glm-130b": "glm130b"}


@pytest.fixture(scope="module")
def room() -> Iterator[Callable[[str], Any]]:
    """``room(name)``: a module of conversion/, imported as a script finds it."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOM))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(ROOM))
        for name in set(sys.modules) - before:
            if (ROOM / f"{name}.py").exists():
                del sys.modules[name]


@pytest.fixture
def source(golden: Path, make: Callable[..., Any], tmp_path: Path) -> Callable[[str], Path]:
    """``source(format)``: a small checkpoint in it, with a licence under a name of its own."""

    def build(fmt: str) -> Path:
        folder = tmp_path / "source"
        if fmt in FIXTURES:
            shutil.copytree(golden / FIXTURES[fmt], folder)
        else:
            spec, native = ("llama-3", "llama") if fmt == "meta" else ("glm-4-9b", fmt)
            make(SPECS[spec]).save_pretrained(tmp_path / "native")
            glmlike.convert(tmp_path / "native", folder, to=fmt if fmt == "meta" else native)
        (folder / "MODEL_LICENSE").write_text("terms")
        return folder

    return build


def test_every_script_is_run_here() -> None:
    assert {path.stem for path in ROOM.glob("*.py")} - set(OWN) == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str, room: Callable[[str], Any], source: Callable[[str], Path], tmp_path: Path) -> None:
    fmt, arguments, target = SCRIPTS[name]
    folder, out = source(fmt), tmp_path / "out"
    report = room(name).main([str(folder), str(out), *arguments])
    assert (report.source_format, report.target_format) == (fmt, target)
    assert glmlike.detect(out).format == target
    assert glmlike.verify(folder, out) > 0
    assert (out / "MODEL_LICENSE").read_text() == "terms"
    if name == "reshard_sat":
        assert len(list(out.glob("*/mp_rank_*.pt"))) == 4


@pytest.mark.parametrize("name", [*SCRIPTS, "checking"])
def test_help_and_a_folder_that_is_not_there(
    name: str, room: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = room(name)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert str(module.__doc__).strip().partition("\n")[0] in capsys.readouterr().out
    if name != "checking":
        own = SCRIPTS[name][1]
        with pytest.raises(glmlike.ConfigError, match=r"nowhere/config.json: not there"):
            module.main(["nowhere", "out", *own])


def test_a_result_that_is_found_to_differ_does_not_appear(
    room: Callable[[str], Any], source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any, **__: Any) -> int:
        raise glmlike.CheckpointError("both differ")

    folder = source("chatglm")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(glmlike, "verify", differs)
    with pytest.raises(glmlike.CheckpointError, match="both differ"):
        room("convert_chatglm_to_glm").main([str(folder), str(tmp_path / "out")])
    assert sorted(tmp_path.iterdir()) == before


def test_a_script_ends_in_one_sentence() -> None:
    """As a user starts it: its siblings are found, the mistake is a sentence, the exit code 1."""
    command = [sys.executable, str(ROOM / "convert_chatglm_to_glm.py"), "nowhere", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: nowhere/config.json: not there")
    assert done.stderr.count("\n") == 1


def test_a_source_of_another_format_is_refused(
    room: Callable[[str], Any], source: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = source("chatglm")
    with pytest.raises(glmlike.ConfigError, match=r"holds format 'chatglm', and this script reads glm-10b"):
        room("convert_glm_10b").main([str(folder), str(tmp_path / "out")])
    with pytest.raises(glmlike.ConfigError, match=r"--revision is of repositories"):
        room("convert_to_native").main([str(folder), str(tmp_path / "out"), "--revision", "main"])
    assert not (tmp_path / "out").exists()


def test_glm_is_read_by_transformers_with_the_originals_logits(
    room: Callable[[str], Any], golden: Path, tmp_path: Path
) -> None:
    from transformers import GlmForCausalLM

    room("convert_chatglm_to_glm").main([str(golden / "chatglm3"), str(tmp_path / "out")])
    model, info = GlmForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = load_file(golden / "chatglm3" / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"], atol=2e-5, rtol=0)


def test_sandwich_norms_have_no_place_in_the_older_layout(
    room: Callable[[str], Any], make: Callable[..., Any], tmp_path: Path
) -> None:
    make(SPECS["glm-4-0414"]).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "glm4", to="glm4")
    arguments = [str(tmp_path / "glm4"), str(tmp_path / "out")]
    with pytest.raises(glmlike.CannotExpressError, match=r"'chatglm' cannot express residual='sandwich'"):
        room("convert_glm_to_chatglm").main(arguments)
    report = room("convert_glm_to_chatglm").main([*arguments, "--to", "glmlike"])
    assert (report.source_format, report.target_format) == ("glm4", "glmlike")


def test_rows_of_v1_0_become_those_of_v1_1(
    room: Callable[[str], Any], make: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    spec = SPECS["chatglm-6b"].replace(vocab_size=130_528, head_dim=8, num_hidden_layers=1, **sizes)
    make(spec).to(torch.float16).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "v1.0", to="chatglm-6b")
    new = load_file(tmp_path / "v1.0" / "model.safetensors")
    tables = ("lm_head.weight", "transformer.word_embeddings.weight")
    old = new | {name: torch.cat((torch.ones(20_000, 16).half(), new[name])) for name in tables}
    save_file(old, tmp_path / "v1.0" / "model.safetensors")
    _say(vocab_size=150_528)(tmp_path / "v1.0")
    report = room("convert_chatglm_6b").main([str(tmp_path / "v1.0"), str(tmp_path / "out")])
    assert report.notes[0].startswith("v1.0: rows :20000")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == new.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in new.items())


INDICES = {
    "chatglm-6b-v1.0": "chatglm-6b-v1.0/pytorch_model.bin.index.json",
    "chatglm-6b-v1.1": "chatglm-6b-v1.1/pytorch_model.bin.index.json",
    "chatglm2-6b": "chatglm2-6b/pytorch_model.bin.index.json",
    "chatglm3-6b": "chatglm3-6b/model.safetensors.index.json",
    "codegeex2-6b": "codegeex2-6b/pytorch_model.bin.index.json",
}


@pytest.mark.parametrize("name", INDICES)
def test_recipe_is_what_the_published_index_says(name: str, room: Callable[[str], Any], shared: Path) -> None:
    """Names, count and bytes; ChatGLM-6B v1.1's index gives v1.0's bytes."""
    index = json.loads((shared / "originals" / INDICES[name]).read_text())
    recipes = room("recipes").RECIPES
    recipe, names = recipes[name], set(index["weight_map"])
    assert names - recipe.shapes.keys() <= recipe.ignored
    assert recipe.shapes.keys() <= names
    assert recipe.tensors == len(names)
    said = index["metadata"]["total_size"]
    assert said == (recipe.index_bytes or recipe.bytes)
    if name == "chatglm-6b-v1.1":
        assert said == recipes["chatglm-6b-v1.0"].bytes
        assert recipe.bytes == 13_416_793_856


def test_recipes_are_of_published_decoders(room: Callable[[str], Any]) -> None:
    """Every published decoder has a recipe; a count printed elsewhere holds: the 613 tensors of GLM-4-32B's GGUF."""
    recipes = room("recipes").RECIPES
    specs = [recipe.spec for recipe in recipes.values()]
    assert all(entry.spec in specs for entry in PUBLISHED.values())
    assert {recipes[name].tensors for name in recipes if "32b-0414" in name} == {613}
    for name, recipe in recipes.items():
        assert recipe.revision is None or re.fullmatch("[0-9a-f]{40}", recipe.revision), name
        assert recipe.converts_to, name
        assert recipe.format in PUBLISHED_FORMATS, name
        assert recipe.repo is None or recipe.repo.count("/") == 1, name


PUBLISHED_FORMATS = ("glm-10b", "glm-130b", "chatglm-6b", "chatglm", "glm", "glm4", "llama", "qwen2", "meta")


LISTED = {
    "glm-10b": "19.8",
    "glm-10b-chinese": "19.8",
    "glm-large-chinese": "0.711",
    "chatglm3-6b": "1.83 1.97 1.93 1.82 1.97 1.93 1.05",
    "glm-4-9b": "1.95 1.82 1.97 1.93 1.82 1.97 1.93 1.82 1.97 1.65",
    "glm-4-9b-chat-1m": "1.95 1.84 1.99 1.95 1.84 1.99 1.95 1.84 1.99 1.65",
    "glm-4-9b-hf": "4.98 4.90 4.90 4.03",
}
"""GB of each weight file in the repositories' lists. Not here: glm-2b, whose 3.85 the table does not explain."""


@pytest.mark.parametrize("name", LISTED)
def test_size_is_that_of_the_listed_files(name: str, room: Callable[[str], Any]) -> None:
    """As far as the lists round, and a megabyte a file for its header."""
    files = LISTED[name].split()
    rounding = sum(0.5 * 10 ** -len(size.partition(".")[2]) for size in files)
    excess = sum(map(float, files)) - room("recipes").RECIPES[name].bytes / 1e9
    assert -rounding <= excess <= rounding + 0.001 * len(files)


def test_recipe_of_a_repository(room: Callable[[str], Any]) -> None:
    """Under both owners' names; the later of two versions; of two kinds of files the one that is read."""
    find = room("recipes").recipe_of_repo
    assert find("zai-org/chatglm3-6b") == find("THUDM/chatglm3-6b") == "chatglm3-6b"
    assert find("THUDM/chatglm-6b") == "chatglm-6b-v1.1"
    assert find("meta-llama/Llama-3.1-8B") == "llama-3.1-8b"
    assert find("meta-llama/Llama-3.1-8B", ("meta",)) == "llama-3.1-8b-meta"
    assert find("someone/chatglm3-6b") is None


def test_readme_is_written_from_recipes_and_scripts(room: Callable[[str], Any]) -> None:
    readme, text = room("readme"), (ROOM / "README.md").read_text(encoding="utf8")
    assert readme.written(text) == text
    assert readme.recipe_table() in text
    assert all(f"`{name}.py`" in text for name in SCRIPTS)


def write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A .safetensors file of full size whose numbers are a hole in the file: headers as published, no disk."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = torch.Size(shape).numel() * {"F16": 2, "BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def small(room: Callable[[str], Any]) -> Any:
    """A recipe with all that a recipe can say, of a small decoder: ChatGLM-6B's, float32 norms, angles."""
    spec = SPECS["chatglm-6b"].replace(residual_scale=6**0.5)
    return replace(room("recipes").RECIPES["chatglm-6b-v1.1"], spec=spec, angles=3)


def download(folder: Path, recipe: Any, shards: int = 2) -> Path:
    """A whole folder of a recipe, in sparse shards."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(write_config(recipe.spec, recipe.format)))
    for name in ("ice_text.model", "tokenizer_config.json", "tokenizer.model", "MODEL_LICENSE"):
        (folder / name).write_text("{}")
    angles = sorted(recipe.ignored)[: recipe.angles]
    tensors = {name: (recipe.dtypes_of(name)[-1], shape) for name, shape in recipe.shapes.items()}
    tensors |= dict.fromkeys(angles, (recipe.dtypes[-1], (recipe.spec.head_dim // 4,)))
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_sparse(folder / file, {name: tensors[name] for name in names[number::shards]})
        weight_map |= dict.fromkeys(names[number::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["chatglm3-6b", "chatglm2-6b-32k", "glm-4-9b-chat", "chatglm-6b-v1.1"])
def test_a_published_size_is_checked_in_a_second(name: str, room: Callable[[str], Any], tmp_path: Path) -> None:
    recipe = room("recipes").RECIPES[name]
    folder = download(tmp_path / "folder", recipe, shards=7)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > recipe.bytes
    started = time.process_time()
    found = room("checking").check(folder, recipe)
    assert time.process_time() - started < 1
    assert found.lines() == []
    assert found.is_whole


def test_v1_0_is_told_from_v1_1(room: Callable[[str], Any], shared: Path, tmp_path: Path) -> None:
    """By config.json and by the rows, with the published config and full sizes."""
    recipes, check = room("recipes").RECIPES, room("checking").check
    old, new = recipes["chatglm-6b-v1.0"], recipes["chatglm-6b-v1.1"]
    assert old.shapes["lm_head.weight"] == (150_528, 4096)
    folder = download(tmp_path / "folder", old)
    shutil.copyfile(shared / "originals" / "chatglm-6b-v1.0" / "config.json", folder / "config.json")
    assert check(folder, old).lines() == []
    first, second = check(folder, new).differs
    assert "20000 rows of image tokens, expected 0" in first
    assert second.startswith("2 tensors of another shape, first transformer.word_embeddings.weight: (150528, 4096), ")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda f: (f / "ice_text.model").unlink(), "lacks: ice_text.model"),
    "no licence": (
        lambda f: (f / "MODEL_LICENSE").unlink(),
        "lacks: the licence (*LICENSE*): The ChatGLM-6B License",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "lacks: config.json"),
    "a shard is missing": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "lacks: model-00002-of-00002.safetensors",
    ),
    "no weights": (
        lambda f: [path.unlink() for path in f.glob("model*")],
        "lacks: the weights: neither model.safetensors nor pytorch_model.bin, nor an index of them",
    ),
    "code": (lambda f: (f / "modeling_chatglm.py").write_text(""), "too much: modeling_chatglm.py: code, never run"),
    "both kinds": (
        lambda f: (f / "pytorch_model.bin.index.json").write_text("{}"),
        "too much: *.bin: the weights once more, beside model.safetensors",
    ),
    "unfinished": (lambda f: (f / "x.incomplete").touch(), "too much: x.incomplete: a download that did not end"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_a_folder_lacks_or_has_too_much(how: str, room: Callable[[str], Any], tmp_path: Path) -> None:
    recipe, (damage, line) = small(room), DAMAGE[how]
    folder = download(tmp_path / "folder", recipe)
    damage(folder)
    found = room("checking").check(folder, recipe)
    assert found.lines() == [line]
    assert found.is_whole is line.startswith("too much")


def _cut(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _index(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


def _say(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def _single(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The weights in one file instead, with something changed."""

    def apply(folder: Path) -> None:
        tensors: dict[str, Any] = {}
        for path in folder.glob("*.safetensors"):
            tensors |= load_file(path)
            path.unlink()
        (folder / "model.safetensors.index.json").unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def _set(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({name: tensor})


NORM = "transformer.final_layernorm.weight"
DIFFERENT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (_cut, "differs: .*model-00001-of-00002.safetensors: "),
    "no JSON": (_index("{"), "differs: .*not valid JSON"),
    "an index that leads out": (_index('{"weight_map": {"a": "../b"}}'), "differs: .*plain file names"),
    "another decoder": (_say(layernorm_epsilon=1e-3), "differs: config.json: norm_eps=0.001, expected 1e-05"),
    "another format": (_say(model_type="llama"), "differs: "),
    "a tensor less": (_single(lambda tensors: tensors.pop(NORM)), f"lacks: 1 tensors, first {NORM}"),
    "a tensor more": (_single(_set("extra", torch.ones(1))), "too much: 1 tensors, first extra"),
    "another shape": (
        _single(_set(NORM, torch.ones(3))),
        rf"differs: 1 tensors of another shape, first {NORM}: \(3,\), expected \(64,\)",
    ),
    "another dtype": (
        _single(_set(NORM, torch.ones(64).half())),
        f"differs: 1 tensors of another dtype, first {NORM}: F16, expected F32",
    ),
    "no angles": (_single(lambda tensors: [tensors.pop(n) for n in list(tensors) if "inv_freq" in n]), ""),
}


@pytest.mark.parametrize("how", DIFFERENT)
def test_what_is_not_what_was_published(how: str, room: Callable[[str], Any], tmp_path: Path) -> None:
    recipe, (damage, line) = small(room), DIFFERENT[how]
    folder = download(tmp_path / "folder", recipe)
    damage(folder)
    lines = room("checking").check(folder, recipe).lines()
    if not line:
        assert lines == []
        return
    assert len(lines) == 1
    assert re.match(line, lines[0])


def test_a_folder_that_differs_from_its_recipe_is_not_converted(
    room: Callable[[str], Any], source: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = source("chatglm")
    with pytest.raises(glmlike.CheckpointError, match=r"not the checkpoint of its recipe: .*hidden_size=64"):
        room("convert_chatglm_to_glm").main([str(folder), str(tmp_path / "out"), "--recipe", "chatglm3-6b"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("chatglm2-6b-32k", ("linear", 4.0, 10_000.0)), ("chatglm3-6b-32k", ("default", None, 40_000.0))],
)
def test_a_recipe_says_what_rope_ratio_means(
    name: str,
    said: tuple[str, float | None, float],
    room: Callable[[str], Any],
    source: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No field of config.json does, and no argument is passed: the recipe's generation alone tells."""
    folder, recipes = source("chatglm"), room("recipes").RECIPES
    _say(rope_ratio=4, transformers_version=None, seq_length=32_768)(folder)
    recipe = recipes[name]
    spec = glmlike.detect(folder, generation=recipe.generation).spec
    monkeypatch.setitem(recipes, name, replace(recipe, spec=spec, dtypes=("F32",)))
    room("convert_chatglm_to_glm").main([str(folder), str(tmp_path / "out"), "--recipe", name])
    rope = dict(glmlike.detect(tmp_path / "out").spec.rope_scaling)
    assert (rope["rope_type"], rope.get("factor"), glmlike.detect(tmp_path / "out").spec.rope_theta) == said


@pytest.mark.parametrize("fmt", ["glm-130b", "meta"])
def test_rank_files_are_checked_with_their_decoder(
    fmt: str, room: Callable[[str], Any], source: Callable[[str], Path]
) -> None:
    folder, check = source(fmt), room("checking").check
    recipe = room("recipes").RECIPES["glm-130b" if fmt == "glm-130b" else "llama-3-8b-meta"]
    (finding,) = check(folder, recipe).differs
    assert "contradict each other" in finding
    found = glmlike.detect(folder)
    mine = replace(
        recipe, spec=found.spec, dtypes=("F32",), files=("latest",) if fmt == "glm-130b" else ("params.json",)
    )
    assert check(folder, mine).lines() == []
    next(iter(folder.rglob("mp_rank_01*" if fmt == "glm-130b" else "consolidated.00*"))).unlink()
    assert not check(folder, mine).is_whole


def test_exit_code_of_a_check(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOM / "checking.py"), "chatglm3-6b", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, f"lacks: the folder {tmp_path / 'nowhere'}\n")


def _run(script: str, arguments: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub's address is read when huggingface_hub is imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    fixed = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, str(ROOM / f"{script}.py"), *arguments]
    environment = {**inherited, **fixed, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_repository_is_read_at_one_commit_and_again_offline(golden: Path, tmp_path: Path) -> None:
    """Of weights of two kinds one comes, and no code; the commit that is printed pins the same files, also offline."""
    files = {path.name: path.read_bytes() for path in (golden / "chatglm3").iterdir()}
    index = {"weight_map": dict.fromkeys(load_file(golden / "chatglm3" / "model.safetensors"), "part.safetensors")}
    files["part.safetensors"] = files.pop("model.safetensors")
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "modeling_chatglm.py": b"raise SystemExit"}
    files |= {"pytorch_model.bin": b"not read", "MODEL_LICENSE": b"terms"}
    with hub_server.running() as hub:
        commit = hub.put("someone/chatglm3", files)
        arguments = ["someone/chatglm3", str(tmp_path / "out")]
        done = _run("convert_chatglm_to_glm", arguments, tmp_path, HF_ENDPOINT=hub.address)
        assert done.returncode == 0, done.stderr[-3000:]
        asked = "\n".join(hub.requests)
    assert f"read: someone/chatglm3 at {commit} (pin it: --revision {commit})" in done.stdout
    assert "part.safetensors" in asked
    assert "pytorch_model.bin" not in asked
    assert "modeling_chatglm.py" not in asked
    assert glmlike.verify(golden / "chatglm3", tmp_path / "out") > 0
    assert (tmp_path / "out" / "MODEL_LICENSE").read_bytes() == b"terms"
    pinned = ["someone/chatglm3", str(tmp_path / "again"), "--revision", commit]
    again = _run("convert_chatglm_to_glm", pinned, tmp_path, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.startswith(f"read: someone/chatglm3 at {commit}\n")
    for other, environment in (("someone/other", {"HF_HUB_OFFLINE": "1"}), ("bad..id/x", {"HF_ENDPOINT": hub.address})):
        failed = _run("convert_chatglm_to_glm", [other, str(tmp_path / "no")], tmp_path, **environment)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"Error: {other}: no folder of this name is here, and the repository cannot be")
        assert "Traceback" not in failed.stderr


def test_a_repository_with_a_recipe_is_compared_with_it(source: Callable[[str], Path], tmp_path: Path) -> None:
    """Meta's files come from a folder of the repository, and nothing but the licence from beside it."""
    folder = source("meta")
    files = {f"original/{path.name}": path.read_bytes() for path in folder.iterdir()}
    files |= {"LICENSE": b"terms", "model.safetensors": b"not read", "config.json": b"{}"}
    with hub_server.running() as hub:
        hub.put("meta-llama/Llama-3.2-1B", files)
        arguments = ["meta-llama/Llama-3.2-1B", str(tmp_path / "out")]
        done = _run("convert_llama_meta", arguments, tmp_path / "home", HF_ENDPOINT=hub.address)
        asked = "\n".join(hub.requests)
    assert done.returncode == 1
    assert re.match(r"Error: .*/original: not the checkpoint of its recipe: .*contradict each other", done.stderr)
    assert "original/consolidated.00.pth" in asked
    assert "resolve" in asked
    assert "/model.safetensors" not in asked
    assert not (tmp_path / "out").exists()
