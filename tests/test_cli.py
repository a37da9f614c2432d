"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glmlike
from blanks import byte_level, infilling_model
from glmlike.cli import main
from glmlike.infilling import fill
from specs import SPECS


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"glmlike {glmlike.__version__}\n", "")


def test_alone_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys)
    assert all(command in out + err for command in ("demo", "inspect", "convert", "verify", "fill", "push"))


def test_as_a_module_and_as_a_script() -> None:
    for command in ([sys.executable, "-m", "glmlike"], [str(Path(sys.executable).with_name("glmlike"))]):
        done = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
        assert done.stdout == f"glmlike {glmlike.__version__}\n"


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom glmlike.cli import main\n"
        "try: main(['convert', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "set()\n"


def test_inspect(capsys: pytest.CaptureFixture[str], golden: Path) -> None:
    code, out, _ = run(capsys, "inspect", golden / "chatglm3")
    assert code == 0
    assert "chatglm" in out
    assert "interleaved" in out
    code, out, _ = run(capsys, "inspect", golden / "chatglm3", "--json")
    facts = json.loads(out)
    assert (facts["format"], facts["converts_to"]) == ("chatglm", ["glmlike", "glm", "gguf"])
    assert facts["spec"]["hidden_size"] == 64
    assert facts["files"] == ["model.safetensors"]


def test_convert_and_verify(capsys: pytest.CaptureFixture[str], golden: Path, tmp_path: Path) -> None:
    source = golden / "chatglm2"
    code, out, _ = run(capsys, "convert", source, tmp_path / "out", "--to", "glm", "--json", "--max-shard-size", "1MB")
    assert code == 0
    assert json.loads(out)["target_format"] == "glm"
    code, out, _ = run(capsys, "verify", source, tmp_path / "out")
    assert code == 0
    assert out.startswith("equal: ")
    code, out, err = run(capsys, "verify", source, golden / "glm4")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert "different decoders" in err


def test_convert_to_a_file_for_llama_cpp(capsys: pytest.CaptureFixture[str], golden: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    arguments = ("convert", golden / "glm4", tmp_path / "out.gguf", "--to", "gguf", "--dtype", "float32")
    code, _, err = run(capsys, *arguments, "--tensor-parallel", "2")
    assert (code, "tensor_parallel=2: not an option of GGUF, which is one file" in err) == (2, True)
    code, out, _ = run(capsys, *arguments, "--verify", "hash", "--max-memory", "4GB", "--json")
    assert (code, json.loads(out)["verify"]) == (0, "hash")
    code, out, _ = run(capsys, "inspect", tmp_path / "out.gguf", "--json")
    assert (code, json.loads(out)["converted_from"]) == (0, "glm4")


def test_merge_and_convert_adapter(
    capsys: pytest.CaptureFixture[str], make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter onto fused modules, and into the base's weights: the same numbers by either way."""
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    make(SPECS["chatglm2"]).save_pretrained("base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(make(SPECS["chatglm2"]), config).save_pretrained("adapter")
    code, out, _ = run(
        capsys, "convert-adapter", "adapter", "fused", "--to", "chatglm", "--base", "base", "--base-name", "x", "--json"
    )
    report = json.loads(out)
    assert (code, report["source_format"], report["target_format"]) == (0, "glmlike", "chatglm")
    assert json.loads(Path("fused/adapter_config.json").read_text())["target_modules"] == ["query_key_value"]
    code, out, _ = run(capsys, "merge", "base", "adapter", "merged", "--json")
    assert (code, json.loads(out)["changed"]) == (0, SPECS["chatglm2"].num_hidden_layers)
    code, out, _ = run(capsys, "merge", "base", "fused", "theirs", "--to", "chatglm", "--max-shard-size", "1MB")
    assert (code, "merged" in out) == (0, True)
    assert run(capsys, "verify", "merged", "theirs")[0] == 0
    code, out, err = run(capsys, "merge", "merged", "adapter", "twice")
    assert (code, out, "merged into merged already" in err) == (2, "", True)
    assert run(capsys, "merge", "merged", "adapter", "twice", "--force")[0] == 0
    code, _, err = run(capsys, "merge", "base", "nowhere", "out")
    assert (code, err[:6]) == (2, "Error:")
    assert not Path("out").exists()


def test_folders_of_rank_files(capsys: pytest.CaptureFixture[str], golden: Path, tmp_path: Path) -> None:
    """GLM-130B: inspected, written with more ranks, compared; the decoder of a bare folder can be named."""
    source = golden / "glm130b"
    code, out, _ = run(capsys, "inspect", source, "--json")
    facts = json.loads(out)
    assert (code, facts["format"], facts["converts_to"]) == (0, "glm-130b", ["glmlike"])
    assert facts["files"] == ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"]
    options = ("--to", "glm-130b", "--tensor-parallel", "4", "--json")
    code, out, _ = run(capsys, "convert", source, tmp_path / "four", *options)
    assert (code, json.loads(out)["target_format"]) == (0, "glm-130b")
    assert len(list((tmp_path / "four" / "1").iterdir())) == 4
    code, out, _ = run(capsys, "verify", source, tmp_path / "four")
    assert (code, out[:7]) == (0, "equal: ")
    (tmp_path / "four" / "model_config.json").unlink()
    code, _, err = run(capsys, "inspect", tmp_path / "four")
    assert code == 2
    assert "Pass spec=" in err
    code, _, err = run(capsys, "inspect", tmp_path / "four", "--spec", "glm-130b")
    assert code == 2
    assert "spec='glm-130b' belongs to another model" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere"), "Error: nowhere/config.json: not there. Pass a checkpoint's folder"),
        (("convert", "nowhere", "out", "--to", "glm"), "nowhere/config.json: not there"),
        (("convert", "nowhere", "out", "--to", "ggml"), "to='ggml': expected one of glmlike, glm-10b"),
        (("convert", "a", "b", "--to", "glm", "--max-shard-size", "big"), "'big': expected a size such as 5GB"),
        (("push", "nowhere", "user/name"), "nowhere/config.json: not there"),
        (("push", "nowhere", "name"), "'name': expected user/name"),
        (("push", "nowhere", "user/name", "--as", "ggml"), "--as ggml: expected one of glmlike, glm-10b"),
        (("inspect",), "Missing argument"),
        (("unheard",), "No such command"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_fill(capsys: pytest.CaptureFixture[str], make: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = infilling_model(make, "infilling-recipe"), byte_level()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ("one [MASK] two [sMASK]", "[gMASK]")
    arguments = ("--model", tmp_path, "--order", "independent", "--max-new-tokens", 4, "--num-beams", 2)
    expected = fill(model, tokenizer, texts, order="independent", max_new_tokens=4, num_beams=2)
    code, out, _ = run(capsys, "fill", *texts, *arguments, "--json")
    assert code == 0
    found = json.loads(out)
    assert [result["filled_text"] for result in found] == [result.filled_text for result in expected]
    assert found[0]["spans"][1]["kind"] == "[sMASK]"
    code, out, _ = run(capsys, "fill", *texts, *arguments)
    assert code == 0
    assert "one " in out
    code, out, err = run(capsys, "fill", "to be", *arguments)
    assert (code, out) == (2, "")
    assert "Error: 'to be': no blank in it." in err
    code, out, _ = run(capsys, "fill", "to be", *arguments, "--append-gmask")
    assert (code, out[:5]) == (0, "to be")
