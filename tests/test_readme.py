"""Every command and every code block of the README runs, on small stand-ins of the checkpoints it names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import glmlike
from glmlike.cli import main
from specs import SPECS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
STAND_INS = {
    "chatglm-6b": ("chatglm-6b", "chatglm-6b"),
    "chatglm3-6b": ("chatglm2", "chatglm"),
    "glm-4-9b-chat": ("glm-4-9b", "chatglm"),
    "Qwen2.5-0.5B": ("qwen2.5", "qwen2"),
}


GOLDEN = {"chatglm2-6b-int4": "chatglm2_int4", "glm-130b-sat": "glm130b", "chatglm2-6b-ptuned": "chatglm2_ptuning"}


def _apart(source: Path, base: Path, prefix: Path) -> None:
    """A P-tuned checkpoint as its base model and as what the original training script saves, the prefix alone."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    of_prefix = {name for name in tensors if "prefix_encoder" in name}
    for folder, names in ((base, tensors.keys() - of_prefix), (prefix, of_prefix)):
        folder.mkdir()
        save_file({name: tensors[name] for name in names}, folder / "model.safetensors", metadata={"format": "pt"})
        kept = config if folder == prefix else {k: v for k, v in config.items() if k != "pre_seq_len"}
        (folder / "config.json").write_text(json.dumps(kept))


@pytest.fixture
def folders(make: Callable[..., Any], golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small checkpoint under each name the README uses."""
    for name, (spec, fmt) in STAND_INS.items():
        heads = SPECS[spec].num_attention_heads
        hidden = 64 * heads if fmt == "chatglm-6b" else 128
        sized = SPECS[spec].replace(hidden_size=hidden, intermediate_size=192, head_dim=64)
        make(sized).save_pretrained(tmp_path / "native" / name)
        glmlike.convert(tmp_path / "native" / name, tmp_path / "work" / name, to=fmt)  # type: ignore[arg-type]
    for name, fixture in GOLDEN.items():
        shutil.copytree(golden / fixture, tmp_path / "work" / name)
    work = tmp_path / "work"
    _apart(work / "chatglm2-6b-ptuned", work / "chatglm2-6b", work / "chatglm2-6b-prefix")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_code_blocks_run_one_after_another(folders: Path) -> None:
    scope: dict[str, Any] = {}
    assert len(blocks("python")) >= 6
    for block in blocks("python"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 6
        exec(compile(block, "README.md", "exec"), scope)
    assert type(scope["model"]).__name__ == "GlmLikeForCausalLM"
    assert 5 < scope["filled"].shape[1] <= 9
    assert glmlike.verify("glm-4-9b-chat", "glm-4-9b-chat-hf") > 0
    assert glmlike.verify("glm-130b-sat", "glm-130b") > 0
    assert scope["base"].config.prefix_length == 4
    assert Path("peft-adapter", "adapter_config.json").exists()
    assert scope["qwen"].config.spec.rotary_pairing == "halves"


def test_commands_run(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.startswith("glmlike ")
    ]
    assert [command[1] for command in commands] == ["fill", "inspect", "convert", "verify"]
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main(command[1:])
        assert not ended.value.code
    out = capsys.readouterr().out
    assert "In the beginning God created the heaven and the earth." in out
    assert "equal: " in out


def test_the_two_commands_are_targets_that_ci_calls() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    commands = re.findall(r"^(make \w+)", "".join(blocks("sh")), re.MULTILINE)
    assert commands == ["make demo", "make test"]
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
    assert "make test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf8") + "\n"


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf8")):
            assert (page.parent / target).exists(), f"{page}: {target}"
