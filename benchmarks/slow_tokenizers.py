"""The tokenizers that the checkpoints were published with, restated: transformers' Python tokenizers over libraries.

What is measured is what their users ran under transformers 4: for each text the search for added tokens, the
library's pieces, the id of each piece by a call of its own, special tokens and truncation, then padding. transformers
5's PythonBackend does these steps as transformers 4 did. Then what their ``_pad`` adds: position ids, and ChatGLM-6B's
masks of three dimensions, which cost the square of the length.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, PreTrainedTokenizer

LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Slow(PreTrainedTokenizer):
    """Added tokens by their ids, ``before`` and ``behind`` a text, the padding token; subclasses have the pieces."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers' own)
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def __init__(self, added: dict[str, int], pad: str, side: str = "left") -> None:
        decoder = {number: AddedToken(text, normalized=False, special=True) for text, number in added.items()}
        super().__init__(added_tokens_decoder=decoder, pad_token=pad, padding_side=side)
        self._update_trie()

    def get_vocab(self) -> dict[str, int]:
        """Nothing but the added tokens: what else there is, the library knows."""
        return dict(self._added_tokens_encoder)

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self.get_vocab())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With what ``_pad`` of the published code adds to batches."""
        found = super().__call__(*args, **kwargs)
        if isinstance(found["input_ids"][0], list):
            self.add(found)
        return found

    def add(self, found: Any) -> None:
        """Position ids, as ChatGLM2 and its successors count them."""
        masks = found["attention_mask"]
        found["position_ids"] = [[0] * (len(mask) - sum(mask)) + list(range(sum(mask))) for mask in masks]

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        """One text with the special tokens of the generation."""
        return [*self.before, *token_ids_0, *self.behind]


class ChatGLM6B(Slow):
    """SentencePiece behind line ends, tabs and blanks spelled out."""

    behind = (130001, 130004)

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.sp = SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
        super().__init__({"<unk>": 0, "<pad>": 3, "[MASK]": 130000, "<sop>": 130004, "<eop>": 130005}, "<pad>")

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in range(80, 1, -1):
            text = text.replace(" " * length, f"<|blank_{length}|>")
        pieces: list[str] = self.sp.EncodeAsPieces(text)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        if token.startswith("<image_") and token.endswith(">") and token[7:-1].isdigit():
            return int(token[7:-1])
        return int(self.sp.PieceToId(token))

    def add(self, found: Any) -> None:
        """Masks that let the prompt see itself whole, True where nothing is to be seen; positions of two kinds."""
        masks, positions = [], []
        for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True):
            size, pads = sum(mask), len(mask) - sum(mask)
            prompt = ids.index(130004) - pads
            seen = np.tril(np.ones((1, size, size)))
            seen[:, :, :prompt] = 1
            outside = [(0, 0), (pads, 0), (pads, 0)]
            masks.append(np.pad(np.bool_(seen < 0.5), pad_width=outside, constant_values=True))
            place = np.arange(size)
            place[prompt:] = ids.index(130001) - pads
            block = np.concatenate([np.zeros(prompt, np.int64), np.arange(1, size - prompt + 1)])
            positions.append(np.pad(np.stack([place, block]), pad_width=[(0, 0), (pads, 0)]))
        found["attention_mask"], found["position_ids"] = masks, positions


class ChatGLM2(Slow):
    """SentencePiece alone, beside a table of special tokens."""

    before = (64790, 64792)

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.sp = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        names = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
        self.specials = {name: 64789 + number for number, name in enumerate(names)}
        super().__init__({"<unk>": 0}, "<unk>")

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        pieces: list[str] = self.sp.EncodeAsPieces(text)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self.specials[token] if token in self.specials else int(self.sp.PieceToId(token))


class GLM4(Slow):
    """tiktoken's ids, made tokens, made ids."""

    before = (151331, 151333)

    def __init__(self, folder: Path) -> None:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        self.ranks = load_tiktoken_bpe(str(folder / "tokenizer.model"))
        self.library = tiktoken.Encoding("glm-4", pat_str=LETTERS, mergeable_ranks=self.ranks, special_tokens={})
        self.tokens = {number: token for token, number in self.ranks.items()}
        names = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>")
        added = {name: 151329 + number for number, name in enumerate((*names, "<|assistant|>", "<|observation|>"))}
        super().__init__(added, "<|endoftext|>")

    def _tokenize(self, text: str, **_: Any) -> list[Any]:
        return [self.tokens[number] for number in self.library.encode(text)]

    def _convert_token_to_id(self, token: Any) -> int:
        return self.ranks[token]


class GLM10B(Slow):
    """GPT-2's BPE in Python, words remembered; nothing is added."""

    before, behind = (50259,), (50256,)

    def __init__(self, folder: Path) -> None:
        import regex

        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf8"))
        lines = (folder / "merges.txt").read_text(encoding="utf8").split("\n")[1:-1]
        self.merges = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
        others = iter(range(256, 512))
        self.bytes = {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}
        self.words = regex.compile(GPT2)
        self.joined = lru_cache(maxsize=None)(self._join)
        names = ("<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]")
        added = {name: 50256 + number for number, name in enumerate((*names, "[gMASK]", "[sMASK]", "[dBLOCK]"))}
        super().__init__(added, "<|endoftext|>", "right")

    def add(self, found: Any) -> None:
        """Nothing."""

    def _join(self, word: str) -> list[str]:
        parts = list(word)
        while len(parts) > 1:
            ranks = [self.merges.get(pair, 1 << 30) for pair in pairwise(parts)]
            best = min(ranks)
            if best == 1 << 30:
                break
            left, right = parts[ranks.index(best)], parts[ranks.index(best) + 1]
            out: list[str] = []
            at = 0
            while at < len(parts):
                both = parts[at : at + 2] == [left, right]
                out.append(left + right if both else parts[at])
                at += 2 if both else 1
            parts = out
        return parts

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        out: list[str] = []
        for word in self.words.findall(text):
            out.extend(self.joined("".join(self.bytes[byte] for byte in word.encode("utf8"))))
        return out

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids[token]


ORIGINALS = {"chatglm-6b-v1.1": ChatGLM6B, "chatglm2-6b": ChatGLM2, "glm-4-9b-chat": GLM4, "glm-10b": GLM10B}
"""Folders of published tokenizer files and what read them."""
