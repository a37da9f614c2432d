"""A source is a folder or a repository on the Hub; over HTTP, on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hub_server
from glmlike.checkpoint.sources import local_folder
from glmlike.data import TINY
from glmlike.errors import ConfigError

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
