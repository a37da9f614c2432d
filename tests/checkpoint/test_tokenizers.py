"""The tokenizer of a converted folder: readable by those who read the target, proved the same, on record."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmlike import CheckpointError, GlmLikeError, GlmLikeTokenizer, TokenizerError, convert
from glmlike.checkpoint.memory import resident
from glmlike.checkpoint.tokenizers import is_rewritten, memory_of_rewriting, rewrite
from glmlike.push import prepared
from glmlike.tokenization.probes import probes, sha256_of
from process_memory import run_and_watch
from specs import SPECS

# A folder's format -> the vocabulary it is given here, a spec like its model, the rows of the published one
SOURCES: dict[str, tuple[str, str, int]] = {
    "chatglm": ("chatglm3-6b", "chatglm2", 65_024),
    "chatglm-6b": ("chatglm-6b-v1.1", "chatglm-6b", 130_528),
    "glm-4": ("glm-4-9b-chat", "glm-4-9b", 151_552),
}

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.fixture
def source(make: Callable[..., Any], shared: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A small checkpoint in the layout, and with the tokenizer's files, of a published one."""

    def build(kind: str) -> Path:
        vocabulary, name, rows = SOURCES[kind]
        spec = SPECS[name].replace(vocab_size=rows, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)
        spec = spec.replace(head_dim=4, intermediate_size=8, num_hidden_layers=1)
        make(spec, eos_token_id=2, pad_token_id=0, bos_token_id=None).save_pretrained(tmp_path / "native")
        folder = tmp_path / "source"
        convert(tmp_path / "native", folder, to="chatglm-6b" if kind == "chatglm-6b" else "chatglm")
        shutil.rmtree(tmp_path / "native")
        for path in (shared / "originals" / vocabulary).iterdir():
            if path.name in ("tokenizer.model", "ice_text.model", "tokenizer_config.json"):
                shutil.copyfile(path, folder / path.name)
        (folder / "tokenization_chatglm.py").write_text("raise SystemExit('executed')")
        (folder / "special_tokens_map.json").write_text("{}")
        return folder

    return build


WITHOUT_GLMLIKE = """
import json, sys
sys.modules["glmlike"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
talk = [{"role": "user", "content": "a"}]
chat = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")
model.generate(**chat, max_new_tokens=2)
print(json.dumps([type(model).__name__, tokenizer(texts)["input_ids"], chat["input_ids"][0].tolist()]))
"""


def test_chatglm3_becomes_a_folder_of_transformers_alone(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder, out = source("chatglm"), tmp_path / "out"
    plan = convert(folder, out, to="glm", dry_run=True)
    report = convert(folder, out, to="glm")
    files = {path.name for path in out.iterdir()}
    assert {part.file for part in plan.contents.files} == files  # the template, which is not certain, is there
    assert {part.file for part in plan.contents.files if not part.certain} == {"chat_template.jinja"}
    assert "written anew as tokenizer.json of transformers' own class, since" in plan.contents.travels["tokenizer"]
    assert plan.contents.left["tokenizer.model"] == "the new tokenizer.json says what it says"
    assert plan.contents.left["tokenization_chatglm.py"] == "code"
    assert files == {
        *("config.json", "model.safetensors", "generation_config.json", "glmlike.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    } - ({"generation_config.json"} - {path.name for path in folder.iterdir()})
    tokenizer = GlmLikeTokenizer.from_pretrained(folder)
    record = json.loads((out / "glmlike.json").read_text(encoding="utf8"))["tokenizer"]
    assert record["generation"] == "chatglm3"
    assert (record["probes"], record["chat"], record["differ"]) == (len(probes()), True, 0)
    ids = [tokenizer(list(probes()), split_special_tokens=split)["input_ids"] for split in (False, True)]
    assert record["ids"] == sha256_of([*ids[0], *ids[1]])
    assert record["files"] == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }
    assert any("written anew, as tokenizer.json of transformers' own class" in note for note in report.notes)
    command = [sys.executable, "-c", WITHOUT_GLMLIKE, str(out)]
    done = subprocess.run(command, input=json.dumps(probes()), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    name, plain, chat = json.loads(done.stdout.splitlines()[-1])
    assert (name, plain) == ("GlmForCausalLM", ids[0])
    talk = [{"role": "user", "content": "a"}]
    assert chat == tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    convert(out, tmp_path / "back", to="chatglm")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


def test_the_native_folder_of_chatglm_6b_keeps_its_vocabulary(source: Callable[[str], Path], tmp_path: Path) -> None:
    """Without glmlike three of the probes are cut otherwise, and the report says so; with it none is."""
    folder, out = source("chatglm-6b"), tmp_path / "out"
    plan = convert(folder, out, to="glmlike", dry_run=True)
    report = convert(folder, out, to="glmlike")
    listed = {part.file: part.certain for part in plan.contents.files}
    files = {path.name for path in out.iterdir()}
    assert {name for name, certain in listed.items() if certain} <= files <= listed.keys()
    assert (out / "ice_text.model").read_bytes() == (folder / "ice_text.model").read_bytes()
    assert not (out / "special_tokens_map.json").exists()
    (note,) = [note for note in report.notes if "tokenizer" in note]
    differ = json.loads((out / "glmlike.json").read_text(encoding="utf8"))["tokenizer"]["differ"]
    assert 0 < differ < 10
    assert f"without glmlike, {differ} of them are cut otherwise" in note
    before, after = GlmLikeTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert type(after) is GlmLikeTokenizer
    assert after(list(probes()))["input_ids"] == before(list(probes()))["input_ids"]
    convert(out, tmp_path / "back", to="chatglm-6b")
    assert (tmp_path / "back" / "ice_text.model").read_bytes() == (folder / "ice_text.model").read_bytes()


def test_what_transformers_would_read_otherwise_is_refused(shared: Path, tmp_path: Path) -> None:
    """AutoTokenizer takes its Qwen2Tokenizer for every folder of that type: it would compose GLM-4's accents."""
    with pytest.raises(TokenizerError, match=r"readers of 'qwen2'.*Qwen2Tokenizer.* gives 'e\u0301' the ids .*llama"):
        rewrite(shared / "originals/glm-4-9b-chat", tmp_path / "made", "qwen2", plain=True)


def test_a_tokenizer_that_cannot_be_read_is_copied_and_said(golden: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden / "glm4", tmp_path / "source"))
    (folder / "tokenizer.model").write_bytes(b"\x00vocabulary")
    report = convert(folder, tmp_path / "out", to="glm")
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"\x00vocabulary"
    (note,) = [note for note in report.notes if "tokenizer" in note]
    assert "could not be read, so its files are copied as they are" in note
    assert "expected tiktoken ranks" in note
    assert "tokenizer" not in json.loads((tmp_path / "out/glmlike.json").read_text(encoding="utf8"))


def test_a_link_out_of_the_folder_is_refused(golden: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden / "glm4", tmp_path / "source"))
    (tmp_path / "elsewhere").write_text("secret")
    (folder / "tokenizer.model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        convert(folder, tmp_path / "out", to="glm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("formats", "files", "rewritten"),
    [
        (("chatglm", "glm"), {"tokenizer.model": None}, True),
        (("chatglm", "chatglm"), {"tokenizer.model": None}, False),
        (("chatglm", "glm-130b"), {"tokenizer.model": None}, False),
        (("chatglm", "glm"), {"tokenizer.model": "ChatGLM4Tokenizer"}, True),
        (("glmlike", "glm"), {"tokenizer.json": "GlmLikeTokenizer"}, True),
        (("chatglm", "glmlike"), {"tokenizer.json": "GlmLikeTokenizer"}, False),
        (("glm", "llama"), {"tokenizer.json": "PreTrainedTokenizerFast"}, False),
        (("qwen2", "qwen2"), {"vocab.json": "Qwen2Tokenizer"}, False),
        (("qwen2", "llama"), {"vocab.json": "Qwen2Tokenizer"}, True),
        (("meta", "llama"), {"tokenizer.model": None}, True),
        (("glm", "llama"), {}, False),
        (("glm", "llama"), {"tokenizer_config.json": "GlmLikeTokenizer"}, False),
    ],
)
def test_which_are_written_anew(formats: Any, files: dict[str, Any], rewritten: bool, tmp_path: Path) -> None:
    for name, said in files.items():
        (tmp_path / name).write_text("x")
        if said is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": said}))
    assert is_rewritten(tmp_path, *formats) == rewritten


def test_another_tokenizer_is_another_conversion(golden: Path, tmp_path: Path) -> None:
    """What is resumed, and what is found done already, had this tokenizer."""
    folder = Path(shutil.copytree(golden / "glm4", tmp_path / "source"))
    plans = []
    for content in (b"\x00one", b"\x00two", b"\x00one"):
        (folder / "tokenizer.model").write_bytes(content)
        plans.append(convert(folder, tmp_path / "out", to="glm", dry_run=True).identity)
    assert plans[0] == plans[2] != plans[1]


def test_what_a_killed_run_left_is_not_taken(golden: Path, tmp_path: Path) -> None:
    from glmlike.checkpoint.tokenizers import written_anew

    (tmp_path / "room/.tokenizer-1").mkdir(parents=True)
    with written_anew(golden / "glm4", "chatglm", "glm", tmp_path / "room") as found:
        assert found.folder is None
    assert list((tmp_path / "room").iterdir()) == []


def test_a_module_in_the_working_folder_is_not_imported(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that reads the vocabulary runs in the user's folder, which may be the checkpoint's."""
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    made = rewrite(shared / "originals/glm-10b", tmp_path / "made", "glmlike", plain=True)
    assert made.record["tokenizer"]["generation"] == "glm-10b"
    config = json.loads((tmp_path / "made/tokenizer_config.json").read_text(encoding="utf8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_remote_code_takes_a_plain_tokenizer_along(source: Callable[[str], Path]) -> None:
    folder = source("chatglm")
    with prepared(folder, "user/x", to="remote-code") as upload:
        config = json.loads(upload.files["tokenizer_config.json"].read_text(encoding="utf8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert {"tokenizer.json", "modeling_glmlike.py"} <= upload.files.keys()
        assert not {"tokenizer.model", "special_tokens_map.json"} & upload.files.keys()
        assert any("written anew" in note for note in upload.notes)


def command(folder: Path, out: Path, to: str, memory: str) -> list[str]:
    code = "import sys; from glmlike.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, "convert", str(folder), str(out), "--to", to, "--max-memory", memory, "-q"]


@on_linux
@pytest.mark.parametrize("kind", ["glm-4", pytest.param("chatglm-6b", marks=pytest.mark.slow)])
def test_all_processes_together_stay_below_the_bound(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    """The whole vocabulary beside hardly any weights; what is planned holds, and too little is refused before work."""
    folder, bound = source(kind), {"glm-4": 420, "chatglm-6b": 500}[kind]
    planned = convert(folder, tmp_path / "out", to="glmlike", dry_run=True).memory.apart
    assert run_and_watch(command(folder, tmp_path / "out", "glmlike", f"{bound}MB")) < min(bound * 1e6, planned + 50e6)
    done = subprocess.run(
        command(folder, tmp_path / "small", "glmlike", "250MB"), capture_output=True, text=True, check=False
    )
    said = " ".join(done.stderr.split())
    assert done.returncode
    assert "the process that writes the tokenizer anew may take" in said
    least = int(re.search(r"Pass at least (\d+) MB", said)[1])  # type: ignore[index]
    assert least < bound
    assert not (tmp_path / "small").exists()


@on_linux
def test_vocabularies_of_gguf_stay_below_the_bound(source: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder, file = source("glm-4"), tmp_path / "model.gguf"
    assert run_and_watch(command(folder, file, "gguf", "320MB")) < 320e6
    assert run_and_watch(command(file, tmp_path / "back", "glm", "320MB")) < 320e6
    with pytest.raises(GlmLikeError, match=r"writing the tokenizer's files may take \d+ MB beside it"):
        convert(file, tmp_path / "small", to="glm", max_memory=resident() + 100 * 10**6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("to", ["glm", "llama", "glmlike"])
@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat", "llama-3", "qwen2.5", "glm-10b"])
def test_every_exact_vocabulary_for_every_reader(name: str, to: str, shared: Path, tmp_path: Path) -> None:
    folder, said = shared / "originals" / name, json.dumps([name, to])
    code = "import json, sys; from pathlib import Path; from glmlike.checkpoint.tokenizers import rewrite; "
    code += "made = rewrite(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], plain=sys.argv[3] != 'glmlike'); "
    code += "Path(sys.argv[2] + '.json').write_text(json.dumps(made.record))"
    most = run_and_watch([sys.executable, "-c", code, str(folder), str(tmp_path / "made"), to])
    assert json.loads((tmp_path / "made.json").read_text())["tokenizer"]["differ"] == 0
    assert most < memory_of_rewriting(folder) + 40e6, said
