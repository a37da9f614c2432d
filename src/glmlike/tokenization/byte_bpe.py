"""Byte-level BPE: tiktoken ranks (GLM-4, LLaMA 3) and GPT-2 files (GLM-10B, Qwen2.5).

A rank file says no merges. tiktoken joins, at every step, the neighbours whose joint bytes have the lowest rank, the
leftmost of equals; so every way to cut a token into two tokens is a merge, as early as the token's rank. A piece that
is a token as a whole is that token before anything is joined (``ignore_merges``).
"""

from __future__ import annotations

import base64
import binascii
import gc
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from glmlike.errors import TokenizerError

Merge = tuple[str, str]

LETTERS_AND_THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where GLM-4 and LLaMA 3 cut a text: contractions, words with one leading mark, up to three digits, marks, blanks."""
LETTERS_AND_ONE_DIGIT = LETTERS_AND_THREE_DIGITS.replace(r"\p{N}{1,3}", r"\p{N}")
"""Where Qwen2.5 cuts: the same, digits one by one."""


def _printable_bytes() -> dict[int, str]:
    """GPT-2's alphabet: a printable character for each byte (Latin-1's own; U+0100 on for the 68 others)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


_PRINTABLE = _printable_bytes()
_BYTES = {ord(character): byte for byte, character in _PRINTABLE.items()}


def read_ranks(path: Path) -> dict[str, int]:
    """Tokens in GPT-2's alphabet and their ranks, in their order, from a tiktoken file: ``base64 rank`` a line.

    Raises:
        TokenizerError: a line is not that, a rank is missing or twice there, or a byte has no token.
    """
    fields = path.read_bytes().split()
    if len(fields) % 2 or not fields:
        raise TokenizerError(f"{path}: {_TIKTOKEN}; found {len(fields)} words. The file is cut off: download it again.")
    try:
        if _NO_BASE64.search(b" ".join(fields[::2])):
            raise ValueError("characters that are not base64's")
        tokens = list(map(binascii.a2b_base64, fields[::2]))
        ranks = [int(field) for field in fields[1::2]]
    except (binascii.Error, ValueError) as error:
        raise TokenizerError(f"{path}: {_TIKTOKEN}; {error}. The file is damaged: download it again.") from None
    if (order := sorted(ranks)) != list(range(len(ranks))):
        raise TokenizerError(f"{path}: {len(ranks)} ranks that are not 0 to {len(ranks) - 1}. Download it again.")
    joined = b"".join(tokens).decode("latin-1").translate(_PRINTABLE)
    places = accumulate(map(len, tokens), initial=0)
    named = zip([joined[start:end] for start, end in pairwise(places)], ranks, strict=True)
    vocabulary = dict(named if order == ranks else sorted(named, key=lambda item: item[1]))
    missing = [byte for byte, character in _PRINTABLE.items() if character not in vocabulary]
    if missing or len(vocabulary) != len(tokens):
        found = f"no token for byte {missing[0]:#04x}" if missing else "the same token with two ranks"
        raise TokenizerError(f"{path}: {found}: no tiktoken vocabulary has that. Download it again.")
    return vocabulary


_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/= ]|=[^= ]")
_TIKTOKEN = "expected a tiktoken vocabulary, a base64 token and its rank on each line"


def as_bytes(token: str) -> bytes:
    """The bytes that a token in GPT-2's alphabet stands for; those of its UTF-8 if it is not in that alphabet."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf8")


def spelled(texts: list[str]) -> list[str]:
    """Texts without line ends in GPT-2's alphabet, as `tokenizers`' ByteLevel spells them."""
    joined = "\n".join(texts).encode("utf8").decode("latin-1").translate(_PRINTABLE)
    return joined.split(_PRINTABLE[10]) if texts else []


def write_ranks(vocabulary: Mapping[str, int]) -> bytes:
    """The tiktoken file of tokens in GPT-2's alphabet; the inverse of :func:`read_ranks`."""
    byte = {character: value for value, character in _PRINTABLE.items()}
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    lines = (b"%s %d\n" % (base64.b64encode(bytes(byte[c] for c in token)), rank) for token, rank in ordered)
    return b"".join(lines)


def merges_of(vocabulary: Mapping[str, int]) -> list[Merge]:
    """Every way to cut a token of ``vocabulary`` into two others, in the order in which tiktoken would join them.

    Tokens come in the order of their ranks, the cuts of one token from left to right (their order decides nothing: two
    of them would have to overlap). GLM-4's 151329 tokens have 318088.
    """
    merges: list[Merge] = []
    for token in vocabulary:
        if len(token) > 1:
            merges += [
                (left, right)
                for place in range(1, len(token))
                if (left := token[:place]) in vocabulary and (right := token[place:]) in vocabulary
            ]
    return merges


def read_merges(vocab_file: Path, merges_file: Path) -> tuple[dict[str, int], list[Merge]]:
    """Tokens with their ids and the merges in order, from a ``vocab.json`` and a ``merges.txt``.

    Raises:
        TokenizerError: one is not what its name says, or a merge has a part or a result that is no token.
    """
    try:
        vocabulary = json.loads(vocab_file.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{vocab_file}: expected JSON; {error}. The file is damaged: download it again.") from None
    if not isinstance(vocabulary, dict) or not vocabulary or not all(type(v) is int for v in vocabulary.values()):
        raise TokenizerError(f"{vocab_file}: expected a JSON object of tokens and their ids. Download it again.")
    merges = []
    for number, line in enumerate(_lines(merges_file), start=1):
        left, _, right = line.partition(" ")
        if (number == 1 and line.startswith("#version")) or not line:
            continue
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise TokenizerError(
                f"{merges_file}, line {number}: {line!r} is no merge of two tokens of {vocab_file.name} into a third. "
                "The files are of different vocabularies, or cut off: download both again."
            )
        merges.append((left, right))
    return vocabulary, merges


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: expected text; {error}. The file is damaged: download it again.") from None


def build_from_ranks(vocabulary: Mapping[str, int]) -> Tokenizer:
    """The pipeline of a tiktoken vocabulary (GLM-4, LLaMA 3), without special tokens."""
    with _uncollected():
        model = models.BPE(vocab=dict(vocabulary), merges=merges_of(vocabulary), ignore_merges=True)
    return _byte_level(model, LETTERS_AND_THREE_DIGITS)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Hundreds of thousands of pairs are made, none of them garbage: looking for it takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def build_from_merges(vocabulary: Mapping[str, int], merges: Iterable[Merge], pattern: str | None = None) -> Tokenizer:
    """The pipeline of GPT-2 files, without special tokens: cut at ``pattern`` after NFC (Qwen2.5), None: as GPT-2."""
    tokenizer = _byte_level(models.BPE(vocab=dict(vocabulary), merges=list(merges)), pattern)
    if pattern is not None:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _byte_level(model: models.BPE, pattern: str | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
