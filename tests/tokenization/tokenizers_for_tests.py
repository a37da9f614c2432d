"""``tokenizer_of(generation)``: the one place where these tests get their tokenizers from.

``tokenizer_of`` gives the package's class on the published vocabulary; ``small_tokenizer_of`` what it is made of, on a
vocabulary of bytes with the special tokens added by hand.
"""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glmlike.tokenization.chat import SafeChatMixin
from glmlike.tokenization.prompts import PromptHelpersMixin
from glmlike.tokenization.templates import chat_template
from glmlike.tokenization.tokenizer import GlmLikeTokenizer

SHARED = Path(os.environ.get("GLMLIKE_SHARED", Path(__file__).parents[3] / "shared"))
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GLM4 = [
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
]
_LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
GENERATIONS_THAT_CHAT = [
    *("chatglm-6b", "chatglm2", "chatglm3", "glm-4", "glm-4-0414", "glm-z1", "glm-edge", "codegeex4"),
    *("llama-3", "qwen2.5"),
]


FOLDERS = {
    "chatglm-6b": "chatglm-6b-v1.1",
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "glm-4": "glm-4-9b-chat",
    "llama-3": "llama-3",
    "qwen2.5": "qwen2.5",
}


class ChatTokenizer(PromptHelpersMixin, SafeChatMixin, PreTrainedTokenizerFast):
    """What the package's tokenizer classes are made of, without their reading of files."""

    generation: str


def tokenizer_of(generation: str) -> Any:
    """The tokenizer of a generation on its published vocabulary, with its chat template."""
    if not (SHARED / "originals").exists():
        pytest.skip(f"{SHARED}: no originals there; set GLMLIKE_SHARED to the folder that has them")
    return _configured(_published(_LIKE.get(generation, generation)), generation)


def small_tokenizer_of(generation: str) -> Any:
    """The same on a vocabulary of bytes, for what depends on the special tokens only; built at once."""
    return _configured(_small(_LIKE.get(generation, generation)), generation)


def _configured(tokenizer: Any, generation: str) -> Any:
    own = copy.copy(tokenizer)  # the backend, which takes long to copy, is shared
    own.generation = generation
    own.chat_template = chat_template(generation)
    return own


@cache
def _published(generation: str) -> Any:
    return GlmLikeTokenizer.from_pretrained(SHARED / "originals" / FOLDERS[generation])


@cache
def _small(generation: str) -> Any:
    if generation in ("chatglm-6b", "chatglm2", "chatglm3"):
        pieces = ["<unk>", "▁", *(chr(code) for code in range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = _byte_level({char: number for number, char in enumerate(alphabet)}, [], _PATTERN)
    names = _add_specials(backend, generation)
    return ChatTokenizer(tokenizer_object=backend, padding_side="left", **names)


_LIKE = dict.fromkeys(("glm-4-0414", "glm-z1", "glm-edge", "codegeex4"), "glm-4")


def _add_specials(backend: Tokenizer, generation: str) -> dict[str, Any]:
    if generation == "glm-4":
        _special(backend, _GLM4)
        return {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if generation == "llama-3":
        _special(backend, _LLAMA3)
        return {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"}
    if generation == "qwen2.5":
        _special(backend, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        backend.add_tokens([AddedToken(name, normalized=False) for name in ("<tool_call>", "</tool_call>")])
        return {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if generation in ("chatglm2", "chatglm3"):
        roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if generation == "chatglm3" else []
        _special(backend, ["</s>", "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *roles])
        return {"eos_token": "</s>", "pad_token": "<unk>"}
    _special(backend, ["<unk>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"])
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<sop>", "eos_token": "<eop>"}
    return {**names, "mask_token": "[MASK]"}


def _special(backend: Tokenizer, names: list[str]) -> None:
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], pattern: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend
