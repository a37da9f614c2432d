"""What a plan says that a destination will hold is what it holds, file by file; nothing of the source is forgotten."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_sources import save_tokenizer, train_bytes, write_folder
from glmlike import convert
from specs import SPECS


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint with everything that may travel, and with what does not."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / "glm4" / name, folder / name)
    for name in ("README.md", "LICENSE", "MODEL_LICENSE", "training.log", "modeling_chatglm.py"):
        (folder / name).write_text(name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_chatglm.py", None]}, "tokenizer_class": "Own"})
    )
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool.jinja", "tool.py"):
        (folder / "additional_chat_templates" / name).write_text(name)
    return folder


def require_as_planned(source: Path, target: Path, **options: Any) -> Any:
    """Convert, and compare with what the plan said; the plan."""
    plan = convert(source, target, dry_run=True, **options)
    assert not target.exists()
    convert(source, target, **options)
    there = {p.relative_to(target).as_posix(): p.stat().st_size for p in target.rglob("*") if p.is_file()}
    assert {part.file for part in plan.contents.files} == there.keys()
    assert all(part.certain for part in plan.contents.files)
    assert {part.file: there[part.file] if part.bytes else None for part in plan.contents.files} == {
        part.file: part.bytes for part in plan.contents.files
    }
    if source.is_dir():
        weights = {path.name for path in plan.found.checkpoint.files}
        names = {path.name for path in source.iterdir() if path.is_file()}
        assert names - there.keys() - weights == plan.contents.left.keys()
    said = json.loads(plan.to_json())
    assert [part["file"] for part in said["contents"]] == [part.file for part in plan.contents.files]
    assert said["travels"].keys() == {"tokenizer", "generation config", "chat template", "licence", "card"}
    return plan


def test_a_folder_whose_files_are_copied(source: Path, tmp_path: Path) -> None:
    plan = require_as_planned(source, tmp_path / "out", to="chatglm", max_shard_size="50KB")
    assert plan.contents.travels == {
        "tokenizer": "copied: readers of 'chatglm' bring what reads tokenizer.model",
        "generation config": "copied: generation_config.json",
        "chat template": "copied: additional_chat_templates/tool.jinja",
        "licence": "copied: LICENSE, MODEL_LICENSE",
        "card": "copied: README.md",
    }
    assert plan.contents.left == {
        "modeling_chatglm.py": "code",
        "training.log": "no file that glmlike knows to belong to a model",
    }


def test_a_folder_with_nothing_but_weights(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    plan = require_as_planned(source, tmp_path / "out", to="glm")
    assert {said.partition(":")[0] for said in plan.contents.travels.values()} == {"none found"}


@pytest.mark.parametrize("to", ["glm-130b", "meta"])
def test_rank_files(to: Any, tmp_path: Path) -> None:
    spec = {"glm-130b": "glm-130b", "meta": "llama-3"}[to]
    source = write_folder(tmp_path / "source", SPECS[spec], torch.float16)
    require_as_planned(source, tmp_path / "out", to=to, tensor_parallel=2)


def test_a_file_for_llama_cpp_and_back(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = write_folder(tmp_path / "source", SPECS["llama-3"].replace(vocab_size=512))
    save_tokenizer(source, train_bytes("llama-bpe"))
    (source / "LICENSE").write_text("free")
    plan = convert(source, tmp_path / "model.gguf", to="gguf", dry_run=True)
    convert(source, tmp_path / "model.gguf", to="gguf")
    (part,) = plan.contents.files
    assert (part.file, part.bytes) == ("model.gguf", (tmp_path / "model.gguf").stat().st_size)
    assert plan.contents.travels == {
        "tokenizer": "in the file's metadata, as llama.cpp's 'gpt2' with the words of 'llama-bpe'",
        "generation config": "none found",
        "chat template": "in the file's metadata",
        "licence": "not carried: copy LICENSE yourself",
        "card": "none found",
    }
    back = require_as_planned(tmp_path / "model.gguf", tmp_path / "back", to="glmlike")
    assert back.contents.travels["tokenizer"] == "written from the file's metadata"


def test_the_command_says_it_from_headers_alone(source: Path, tmp_path: Path) -> None:
    """Neither the vocabulary, nor torch, nor transformers is read."""
    code = "import atexit, sys; from glmlike.cli import main; heavy = {'torch', 'transformers', 'tokenizers'}; "
    code += "atexit.register(lambda: print(sorted(heavy & sys.modules.keys()))); main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "convert", str(source), str(tmp_path / "out"), "--to", "glm", "--dry-run"]
    said = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "[]"
    plan = json.loads(said[: said.rindex("}") + 1])
    origins = {part["file"]: part["origin"] for part in plan["contents"]}
    assert origins["tokenizer.json"] == "written anew from tokenizer.model"
    assert "since tokenizer.model is read by Own in 'chatglm'" in plan["travels"]["tokenizer"]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "tokenizer.json <- written anew from tokenizer.model" in table
    assert "not copied: modeling_chatglm.py (code)" in table
