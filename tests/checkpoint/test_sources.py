"""A source is a folder or a repository on the Hub; over HTTP, on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hub_server
from glmlike.checkpoint.sources import local_folder
from glmlike.data import TINY
from glmlike.errors import ConfigError
from specs import SPECS

_READ = """
import json, sys
from glmlike.checkpoint.provenance import origin_of
from glmlike.checkpoint.sources import local_folder
from glmlike.errors import ConfigError
try:
    folder = local_folder(sys.argv[1], sys.argv[2] or None)
except ConfigError as error:
    print(json.dumps({"error": str(error)}))
else:
    names = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"names": names, "origin": origin_of(folder).to_dict()}))
"""


def _read(address: str, home: Path, source: str, revision: str = "", **environment: str) -> dict[str, object]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**known, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _READ, source, revision], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_folder_is_itself_and_has_no_revision(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(tmp_path / "absent") == tmp_path / "absent"  # the reader says what is wrong with it
    with pytest.raises(ConfigError, match="no such id"):
        local_folder(TINY, revision="main")


def test_a_repository_is_read_at_a_commit_without_its_code(tmp_path: Path) -> None:
    name = "someone/tiny"
    with hub_server.running() as hub:
        content = {
            "config.json": (TINY / "config.json").read_bytes(),
            "model.safetensors": (TINY / "model.safetensors").read_bytes(),
            "modeling_glm.py": b"raise SystemExit('executed')",
            "LICENSE": b"words",
        }
        first = hub.put(name, content)
        second = hub.put(name, {**content, "README.md": b"later"})
        newest = _read(hub.address, tmp_path, name)
        assert newest["origin"] == {"name": name, "revision": second}
        assert newest["names"] == ["LICENSE", "README.md", "config.json", "model.safetensors"]
        pinned = _read(hub.address, tmp_path / "second", name, first)
        assert pinned["origin"] == {"name": name, "revision": first}
        assert "README.md" not in pinned["names"]  # type: ignore[operator]
        absent = _read(hub.address, tmp_path, "someone/absent")
        assert "cannot be read" in str(absent["error"])
        assert "hf auth login" in str(absent["error"])
        address = hub.address
    again = _read(address, tmp_path, name, HF_HUB_OFFLINE="1")
    assert again["names"] == newest["names"]


_COMMANDS = """
import contextlib, io, json, sys
from glmlike.cli import main
done = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(arguments)
        except SystemExit as ended:
            done.append((ended.code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def _run(address: str, home: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """The exit code, standard output and standard error of each command."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**known, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    arguments = [sys.executable, "-c", _COMMANDS, json.dumps(commands)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    found: list[tuple[int, str, str]] = json.loads(done.stdout)
    return found


def test_every_command_takes_ids_and_revisions(make: Callable[..., Any], tmp_path: Path) -> None:
    """Inspecting takes config and headers alone; an adapter takes no more of its base than config.json."""
    peft = pytest.importorskip("peft")
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(make(SPECS["chatglm2"]), config).save_pretrained(tmp_path / "adapter")
    names = {
        "base": ("config.json", "model.safetensors"),
        "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    }
    with hub_server.running() as hub:
        content = {kind: {name: (tmp_path / kind / name).read_bytes() for name in names[kind]} for kind in names}
        first = hub.put("some/base", content["base"])
        hub.put("some/base", {**content["base"], "config.json": b"{}"})  # the newest is none
        hub.put("some/lora", {**content["adapter"], "optimizer.pt": b"x"})
        base = f"some/base@{first}"
        sizes = {name: len(data) for name, data in content["base"].items()}
        looked, translated = _run(
            *(hub.address, tmp_path),
            ["inspect", base, "--json"],
            ["convert-adapter", "some/lora", "fused", "--to", "chatglm", "--base", base, "--json"],
        )
        assert looked[0] == translated[0] == 0, (looked, translated)
        assert json.loads(looked[1])["format"] == "glmlike"
        assert json.loads(translated[1])["target_format"] == "chatglm"
        cached = [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and not path.is_symlink()]
        assert sizes["model.safetensors"] not in {path.stat().st_size for path in cached}
        done = _run(
            *(hub.address, tmp_path),
            ["merge", base, "some/lora", "merged", "-q"],
            ["merge", "base", "fused", "local", "-q"],
            ["verify", "merged", "local"],
            ["verify", base, "base"],
            ["verify", "base", "some/base"],
            ["convert", base, "out", "--to", "glm", "--revision", first],
            ["inspect", "base@main"],
        )
        assert [code for code, _, _ in done] == [0, 0, 0, 0, 2, 2, 2], done
        assert "two revisions" in done[5][2]
        record = json.loads((tmp_path / "merged" / "glmlike.json").read_text())
        assert (record["source"]["name"], record["source"]["revision"]) == ("some/base", first)
        assert [entry["name"] for entry in record["merged_adapters"]] == ["some/lora"]
        assert not any(name.endswith("optimizer.pt") for name in hub.requests)
