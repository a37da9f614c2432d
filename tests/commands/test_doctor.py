"""``glmlike doctor``: what it finds, what it advises, and when it fails."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

import glmlike
from glmlike import doctor
from glmlike.cli import main

TOKEN = "hf_neverPrinted0123456789"


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *options])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_this_installation_is_healthy_and_the_token_stays_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out = run(capsys, "--json")
    report = json.loads(out)
    found = {row["name"]: row for row in report["findings"]}
    assert (code, report["healthy"]) == (0, True)
    assert found["glmlike"]["found"] == glmlike.__version__
    assert found["transformers"]["found"].startswith(importlib.metadata.version("transformers"))
    assert found["registered"]["status"] == found["embedded model"]["status"] == "ok"
    assert found["login"]["found"] == "a token is there (not shown, not tried)"
    assert "HF_HUB_OFFLINE" in found["offline"]["found"]
    assert doctor.OPTIONAL.keys() <= found.keys()
    assert TOKEN not in out
    code, out = run(capsys)
    assert code == 0
    assert "optional packages" in out
    assert TOKEN not in out


def versions(monkeypatch: pytest.MonkeyPatch, **of: str | None) -> None:
    """Other versions installed than are; None is not installed."""
    real = doctor.version

    def version(name: str) -> str:
        if of.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return of.get(name) or real(name)

    monkeypatch.setattr(doctor, "version", version)


@pytest.mark.parametrize(
    ("installed", "name", "status", "said", "advice"),
    [
        ({"transformers": "4.44.0"}, "transformers", "problem", "4.44.0; supported is", "pip install 'transformers"),
        ({"transformers": "6.0.0"}, "transformers", "problem", "6.0.0; supported is", "pip install 'transformers"),
        ({"transformers": "5.30.0.dev0"}, "transformers", "ok", "5.30.0.dev0", ""),
        ({"typer": None}, "typer", "problem", "not installed", "pip install 'typer"),
        ({"peft": None}, "peft", "absent", "not installed", "LoRA and other adapters: pip install 'glmlike[lora]'"),
        ({"peft": "0.10.0"}, "peft", "note", "0.10.0; supported is >=0.18", "pip install 'glmlike[lora]'"),
    ],
)
def test_versions(
    installed: dict[str, Any], name: str, status: str, said: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, **installed)
    rows = [*doctor._required(), *doctor._optional()]
    (found,) = [finding for finding in rows if finding.name == name]
    assert (found.status, said in found.found, advice in found.advice) == (status, True, True), found


def test_a_problem_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, transformers="4.44.0")
    monkeypatch.setattr(doctor, "_plugin", lambda: iter(()))
    code, out = run(capsys)
    assert (code, "problem" in out, "4.44.0" in out) == (1, True, True)


def test_what_fails_in_a_way_of_its_own_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _plugin() -> Any:
        raise ImportError("libtorch_cpu.so: cannot open shared object file\nand more")
        yield

    monkeypatch.setattr(doctor, "_plugin", _plugin)
    findings = list(doctor.examine())
    (found,) = [finding for finding in findings if finding.status == "problem"]
    assert found.found == "ImportError: libtorch_cpu.so: cannot open shared object file"
    assert findings[-1].group == "Hub"


def test_every_extra_that_a_user_may_want_is_named() -> None:
    assert doctor._requirements("lora") == {"peft": ">=0.18"}
    asked = {ask for _, ask in doctor.OPTIONAL.values()}
    for extra in ("lora", "quant", "train", "gguf", "eval", "cards"):
        assert f"glmlike[{extra}]" in asked


def test_places_that_cannot_be_written_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    found = {finding.name: finding for finding in doctor._memory()}
    assert (found["here"].status, found["here"].found) == ("note", f"{tmp_path}: not writable")
    assert "HF_HOME" in found["Hub cache"].advice
