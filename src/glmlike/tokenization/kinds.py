"""What vocabulary files are, by their content: names do not tell (``tokenizer.model`` is a SentencePiece model in
ChatGLM2 and ChatGLM3, and tiktoken ranks in GLM-4 and LLaMA 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from glmlike.errors import TokenizerError
from glmlike.tokenization import byte_bpe, sentencepiece_bpe, unigram, wordpiece
from glmlike.tokenization.generations import Generation, Kind
from glmlike.tokenization.sentencepiece_model import SentencePieceModel, read_model

FILES: Mapping[str, str] = {
    "vocab_file": "tokenizer.model",
    "ice_text_file": "ice_text.model",
    "cog_file": "cog-pretrain.model",
    "vocab_json_file": "vocab.json",
    "merges_file": "merges.txt",
    "wordpiece_file": "vocab.txt",
}
"""The vocabulary files of published checkpoints, in the order in which they are looked for."""

_RANKS = re.compile(rb"\s*[A-Za-z0-9+/]+={0,2} \d+\s")
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary that was read: its kind, where from, how many tokens its file holds, and what they are."""

    kind: Kind
    path: Path
    size: int
    content: Any

    def build(self, generation: Generation, *, image_tokens: int = 0) -> Tokenizer:
        """The pipeline of this vocabulary as ``generation`` cuts texts, without special tokens."""
        if self.kind == "ranks":
            return byte_bpe.build_from_ranks(self.content)
        if self.kind == "merges":
            pattern = byte_bpe.LETTERS_AND_ONE_DIGIT if generation.name == "qwen2.5" else None
            vocabulary, merges = self.content
            return byte_bpe.build_from_merges(vocabulary, merges, pattern)
        if self.kind == "wordpiece":
            return wordpiece.build(self.content)
        if self.kind == "unigram":
            return unigram.build(self.content, image_tokens=image_tokens)
        return sentencepiece_bpe.build(self.content)


def read_vocabulary(files: Mapping[str, str | None]) -> Vocabulary:
    """The vocabulary in ``files`` (keys of :data:`FILES`, to paths).

    Raises:
        TokenizerError: none is there, one is damaged or of no known kind, or GPT-2's other half is missing.
    """
    found = {key: Path(path) for key in FILES if (path := files.get(key)) is not None and Path(path).is_file()}
    for key, file in found.items():
        if key not in ("vocab_json_file", "merges_file"):
            return read_file(file)
    if "vocab_json_file" in found and "merges_file" in found:
        return _read_gpt2(found["vocab_json_file"], found["merges_file"])
    halves = [FILES[key] for key in ("vocab_json_file", "merges_file") if key not in found]
    if len(halves) == 1:
        raise TokenizerError(f"{next(iter(found.values()))}: {halves[0]} is not beside it; both are needed.")
    raise TokenizerError(f"no vocabulary: expected tokenizer.json, {', '.join(FILES.values())}. Download the folder.")


def read_file(path: Path) -> Vocabulary:
    """The vocabulary in one file, told by its first bytes.

    Raises:
        TokenizerError: it is damaged or of no known kind.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    refuse_pointer(path, head)
    if _RANKS.match(head + b"\n"):
        ranks = byte_bpe.read_ranks(path)
        return Vocabulary("ranks", path, len(ranks), ranks)
    if head[:1] == b"\n":  # the key of the first field, the pieces, of a SentencePiece model
        model = read_model(path)
        return Vocabulary(_kind(model), path, len(model.pieces), model)
    if re.search(rb"^\[(PAD|UNK|unused0)\]\r?$", head, re.MULTILINE):
        pieces = wordpiece.read_pieces(path)
        return Vocabulary("wordpiece", path, len(pieces), pieces)
    if head[:1] == b"{":
        merges = path.with_name("merges.txt")
        if merges.is_file():
            return _read_gpt2(path, merges)
        raise TokenizerError(f"{path}: merges.txt is not beside it; both are needed.")
    begins = f"begins with {head[:24]!r}" if head else "is empty"
    raise TokenizerError(
        f"{path} {begins}: expected tiktoken ranks, a SentencePiece model, GPT-2's vocab.json or a WordPiece "
        "vocab.txt. Download it again."
    )


def refuse_pointer(path: Path, head: bytes | None = None) -> None:
    """Raise TokenizerError where a file is what git keeps in place of a large file."""
    if head is None:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    if head.startswith(_POINTER):
        raise TokenizerError(
            f"{path}: this is a Git LFS pointer, not the file. Download the real file: `git lfs pull` in the folder, "
            "or `hf download`."
        )


def _read_gpt2(vocab: Path, merges: Path) -> Vocabulary:
    refuse_pointer(vocab)
    refuse_pointer(merges)
    content = byte_bpe.read_merges(vocab, merges)
    return Vocabulary("merges", vocab, len(content[0]), content)


def _kind(model: SentencePieceModel) -> Kind:
    if model.algorithm == "unigram":
        return "unigram"
    return "sentencepiece-bpe" if model.byte_fallback else "cog-pretrain"
