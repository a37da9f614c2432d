"""``tokenizer_of(generation)``: the one place where these tests get their tokenizers from.

The vocabularies are the published ones, through the plainest conversion there is; the special tokens are added by hand.
"""

from __future__ import annotations

import base64
import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmlike.tokenization.chat import SafeChatMixin
from glmlike.tokenization.prompts import PromptHelpersMixin
from glmlike.tokenization.templates import chat_template

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
    backend, names = _backend(generation)
    return ChatTokenizer(tokenizer_object=backend, padding_side="left", **names)


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


def _backend(generation: str) -> tuple[Tokenizer, dict[str, Any]]:
    originals = SHARED / "originals"
    if generation == "qwen2.5":
        return _qwen(originals / "qwen2.5")
    if generation == "chatglm-6b":
        backend = _chatglm_6b(originals / "chatglm-6b-v1.1/ice_text.model")
    elif generation in ("chatglm2", "chatglm3"):
        backend = _sentencepiece_bpe(originals / "chatglm2-6b/tokenizer.model")
    else:
        folder = {"glm-4": "glm-4-9b-chat", "llama-3": "llama-3"}[generation]
        backend = _tiktoken(originals / folder / "tokenizer.model")
    return backend, _add_specials(backend, generation)


def _special(backend: Tokenizer, names: list[str]) -> None:
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], pattern: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _tiktoken(path: Path) -> Tokenizer:
    letters = bytes_to_unicode()
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = []
    for token, rank in ranks.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(rank, ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += sorted(known)
    merges.sort(key=lambda merge: merge[0])

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = [(spelled(a), spelled(b)) for *_, a, b in merges]
    return _byte_level({spelled(token): rank for token, rank in ranks.items()}, pairs, _PATTERN)


def _qwen(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    backend = _byte_level(vocabulary, merges, _PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"))
    backend.normalizer = normalizers.NFC()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for _, token in sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0])):
        added = AddedToken(token["content"], normalized=False, special=token["special"])
        (backend.add_special_tokens if token["special"] else backend.add_tokens)([added])
    return backend, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _pieces(path: Path) -> list[tuple[str, float]]:
    library = pytest.importorskip("sentencepiece")
    model = library.SentencePieceProcessor(model_file=str(path))
    return [(model.IdToPiece(number), model.GetScore(number)) for number in range(model.GetPieceSize())]


def _sentencepiece_bpe(path: Path) -> Tokenizer:
    pieces = _pieces(path)
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, number in vocabulary.items():
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = sorted((vocabulary[a], vocabulary[b], a, b) for a, b in cuts if a in vocabulary and b in vocabulary)
        merges += [(-pieces[number][1], number, a, b) for _, _, a, b in known]
    merges.sort(key=lambda merge: merge[:2])
    model = models.BPE(
        vocabulary, [(a, b) for *_, a, b in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def _chatglm_6b(path: Path) -> Tokenizer:
    pieces = _pieces(path)
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("\n", "<n>"), normalizers.Replace("\t", "<|tab|>")]
    steps += [normalizers.Replace(" " * count, f"<|blank_{count}|>") for count in range(80, 1, -1)]
    wide = dict(zip("：，！？；", ":,!?;", strict=True))
    steps += [normalizers.Replace(old, new) for old, new in wide.items()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always", split=False)
    return backend
