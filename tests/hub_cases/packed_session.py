"""Repositories of packed integers, by id, as whatever wrote them leaves them there; run by tests/test_hub.py."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import glmlike
from glmlike import ConfigError, GlmLikeForCausalLM, packed_loading
from hub_server import TOKEN, USER, Hub
from packed_folders import Kind, write_packed
from specs import FAMILY, SPECS

KINDS = {
    "gptq": Kind("gptq", symmetric=True, act_order=True),
    "awq": Kind("awq"),
    "compressed-tensors": Kind("compressed"),
}
GENERATED = {"chatglm-6b": "chatglm", "chatglm2": "chatglm", "glm-4-9b": "chatglm", "glm-4-0414": "glm4"}
"""A decoder of each generation, and the model_type that such repositories have."""
CLASSES = (
    *(AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification),
    *(AutoModelForTokenClassification, AutoModelForQuestionAnswering),
)
Repository = tuple[str, Path]


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_loading, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def repository(
    make: Callable[..., Any], hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Repository]:
    """``repository(spec, kind)``: the id of a packed decoder in its published layout, and the floats that are meant."""
    made: dict[tuple[str, str], Repository] = {}

    def repository_of(name: str, kind: str) -> Repository:
        if (name, kind) not in made:
            place = tmp_path_factory.mktemp(name)
            spec = SPECS[name].replace(num_hidden_layers=2, layer_types=None, sliding_window=None)
            make(spec).save_pretrained(place / "native")
            to: Any = "chatglm" if name == "glm-4-9b" else FAMILY[name]
            glmlike.convert(place / "native", place / "foreign", to=to, dtype="float16", verify="none")
            packed, floats = write_packed(place / "foreign", place, KINDS[kind])
            (packed / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "eos_token_id": [1, 7]}))
            files = {path.name: path.read_bytes() for path in packed.iterdir()}
            files |= {"modeling_chatglm.py": b"raise SystemExit", "model.gguf": b"no", "extra.safetensors": b"no"}
            hub.put(f"{USER}/{name}-{kind}", files)
            made[name, kind] = f"{USER}/{name}-{kind}", floats
        return made[name, kind]

    return repository_of


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    mine, theirs = left.state_dict(), right.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def load(auto: Any, where: Any, **arguments: Any) -> Any:
    torch.manual_seed(0)  # of new heads
    return auto.from_pretrained(where, **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GENERATED)
def test_by_id_it_is_the_floats_that_are_meant(
    name: str, kind: str, repository: Callable[..., Repository], tmp_path: Path
) -> None:
    repo, floats = repository(name, kind)
    model = load(GlmLikeForCausalLM, repo)
    assert same(model, load(GlmLikeForCausalLM, floats))
    assert model.config.name_or_path == repo
    assert model.generation_config.temperature == 0.8
    assert model.generation_config.eos_token_id == [1, 7]
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same(load(AutoModelForCausalLM, tmp_path), model)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.8


@pytest.mark.parametrize("auto", CLASSES)
@pytest.mark.parametrize(("name", "kind"), [("chatglm2", "gptq"), ("chatglm-6b", "awq"), ("glm-4-9b", "awq")])
def test_every_auto_class(auto: Any, name: str, kind: str, repository: Callable[..., Repository]) -> None:
    repo, floats = repository(name, kind)
    made = load(auto, repo, dtype=torch.float32)
    assert type(made).__module__ == "glmlike.modeling"
    assert same(made, load(auto, floats, dtype=torch.float32))


def test_only_what_is_read_is_downloaded(repository: Callable[..., Repository], tmp_path: Path, hub: Hub) -> None:
    repo, _ = repository("chatglm2", "gptq")
    hub.requests.clear()
    load(AutoModelForCausalLM, repo, cache_dir=tmp_path)
    files = {path.name for path in tmp_path.rglob("snapshots/*/*")}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}
    assert not [one for one in hub.requests if any(name in one for name in ("modeling_", ".gguf", "extra"))]


def test_a_revision_a_cache_and_no_connection(
    repository: Callable[..., Repository], tmp_path: Path, hub: Hub, make: Callable[..., Any]
) -> None:
    repo, floats = repository("chatglm2", "gptq")
    first = hub.repositories[repo].at("main")
    assert first is not None
    meant = load(GlmLikeForCausalLM, floats)
    other, floats_of_other = repository("glm-4-9b", "awq")
    hub.put(repo, {path: hub.read(other, path) for path in hub.paths(other)})
    try:
        assert same(load(AutoModelForCausalLM, repo, cache_dir=tmp_path), load(GlmLikeForCausalLM, floats_of_other))
        assert same(load(AutoModelForCausalLM, repo, revision=first.sha, cache_dir=tmp_path), meant)
        hub.requests.clear()
        for auto in (AutoModelForCausalLM, GlmLikeForCausalLM):
            again = load(auto, repo, revision=first.sha, cache_dir=tmp_path, local_files_only=True)
            assert same(again, meant)
        assert hub.requests == []
        with pytest.raises((OSError, ConfigError)):
            load(GlmLikeForCausalLM, repo, cache_dir=tmp_path / "empty", local_files_only=True)
    finally:
        hub.repositories[repo].branches["main"] = first.sha


def test_a_private_repository(repository: Callable[..., Repository], tmp_path: Path, hub: Hub) -> None:
    repo, floats = repository("chatglm2", "gptq")
    hub.repositories[repo].private = True
    try:
        assert same(load(GlmLikeForCausalLM, repo, token=TOKEN, cache_dir=tmp_path), load(GlmLikeForCausalLM, floats))
        with pytest.raises(OSError, match=r"(?s)private.*token"):
            load(GlmLikeForCausalLM, repo, token=False, cache_dir=tmp_path / "empty")
    finally:
        hub.repositories[repo].private = False


def test_shards_and_a_folder_within(repository: Callable[..., Repository], tmp_path: Path, hub: Hub) -> None:
    repo, floats = repository("chatglm2", "gptq")
    (tmp_path / "whole.safetensors").write_bytes(hub.read(repo, "model.safetensors"))
    tensors = load_file(tmp_path / "whole.safetensors")
    files: dict[str, bytes] = {"config.json": hub.read(repo, "config.json")}
    weight_map = {}
    for number in range(2):
        shard = f"gptq_model-{number}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::2]}
        save_file(part, tmp_path / shard, metadata={"format": "pt"})
        files[shard] = (tmp_path / shard).read_bytes()
        weight_map.update(dict.fromkeys(part, shard))
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    name = f"{USER}/within"
    hub.put(name, {f"int4/{path}": data for path, data in files.items()})
    found = load(GlmLikeForCausalLM, name, subfolder="int4", cache_dir=tmp_path / "cache")
    assert same(found, load(GlmLikeForCausalLM, floats))


def test_what_is_not_read_is_refused_before_it_is_downloaded(
    repository: Callable[..., Repository], tmp_path: Path, hub: Hub
) -> None:
    repo, _ = repository("chatglm2", "gptq")
    config = json.loads(hub.read(repo, "config.json"))
    config["quantization_config"]["bits"] = 3
    hub.put(f"{USER}/three", {"config.json": json.dumps(config).encode(), "model.safetensors": b"large"})
    for auto in (AutoModelForCausalLM, GlmLikeForCausalLM):
        with pytest.raises(ConfigError, match=rf"{USER}/three: config.json: GPTQ with bits=3: its files are not read"):
            load(auto, f"{USER}/three", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("recipe", ["int4-group-zeros", "int8-channel", "fp8-block", "nvfp4"])
def test_what_compressed_tensors_itself_wrote(
    recipe: str, installed: bool, make: Callable[..., Any], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a fused layout: floats, in every class, whether the library is installed or not."""
    pytest.importorskip("compressed_tensors")
    from compressed_folders import RECIPES, write_compressed

    if installed:
        monkeypatch.setattr(packed_loading, "find_spec", importlib.util.find_spec)
    make(SPECS["chatglm2"].replace(num_hidden_layers=2)).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "foreign", to="chatglm", dtype="bfloat16", verify="none")
    with torch._dynamo.config.patch(disable=True):
        packed, floats = write_compressed(tmp_path / "foreign", tmp_path, RECIPES[recipe])
    name = f"{USER}/{recipe}-{installed}"
    hub.put(name, {path.name: path.read_bytes() for path in packed.iterdir()})
    for auto in (GlmLikeForCausalLM, *CLASSES):
        assert same(load(auto, name), load(auto, floats))


@pytest.mark.parametrize("family", ["llama-3", "qwen2.5"])
def test_model_types_of_transformers_by_our_class(
    family: str, make: Callable[..., Any], hub: Hub, tmp_path: Path
) -> None:
    make(SPECS[family].replace(num_hidden_layers=2)).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "foreign", to=FAMILY[family], dtype="float16", verify="none")
    packed, floats = write_packed(tmp_path / "foreign", tmp_path, KINDS["gptq"])
    hub.put(f"{USER}/{family}", {path.name: path.read_bytes() for path in packed.iterdir()})
    assert same(load(GlmLikeForCausalLM, f"{USER}/{family}"), load(GlmLikeForCausalLM, floats))
