"""SentencePiece BPE vocabularies (ChatGLM2, ChatGLM3, GLM-10B-Chinese) as a `tokenizers` pipeline.

SentencePiece joins, at each step, the adjacent pair whose union is the piece of the highest score, the leftmost of
equal ones (bpe_model.cc). As ranked merges: every split of every piece into two pieces, by the piece's score.
Texts are cut in front of blanks and around characters that are in no longer piece: no piece lies across.

ChatGLM2's and 3's ids are sentencepiece's. GLM-10B-Chinese's are, but where combining marks meet: NFKC reorders marks
and composes some that the model's older table leaves as they are (also ``<n>`` before U+0338).
Decoding bytes that end no character gives a U+FFFD for each byte of their run.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from glmlike.errors import TokenizerError
from glmlike.tokenization.charsmap import nmt_nfkc
from glmlike.tokenization.sentencepiece_model import SentencePieceModel

UNKNOWN_SURFACE = " \u2047 "


def build(model: SentencePieceModel) -> Tokenizer:
    """A tokenizer whose ids are the pieces' indices; it has no special tokens yet.

    Each stretch of text between added tokens gets its own dummy prefix. TokenizerError for a unigram model.
    """
    if model.algorithm != "bpe":
        raise TokenizerError(
            f"a {model.algorithm} vocabulary of {len(model.pieces)} pieces where a BPE one was expected: see"
            " glmlike.tokenization.unigram."
        )
    users = [model.pieces[index] for index in model.of_type("user")]
    unknown = model.pieces[model.unk_id]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(model.pieces)},
            merges(model),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=bool(users),
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(nmt_nfkc() if model.precompiled_charsmap else ()),
            *_blanks(model),
            *([normalizers.Prepend("▁")] if model.add_dummy_prefix else ()),
            normalizers.Replace(" ", "▁"),
        ]
    )
    cuts = [pre_tokenizers.Split(Regex(_words(model)), "isolated")]
    if users:
        cuts.insert(0, pre_tokenizers.Split(Regex("|".join(map(re.escape, users))), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(unknown, UNKNOWN_SURFACE),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip("▁", 1, 0),
            decoders.Replace("▁", " "),
        ]
    )
    return tokenizer


def merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every way to make a piece of two, those of the best piece first."""
    known = {model.pieces[index]: model.scores[index] for index in model.of_type("normal")}
    out: list[tuple[str, str]] = []
    for piece in sorted(known, key=known.__getitem__, reverse=True):
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        out.extend(split for split in splits if split[0] in known and split[1] in known)
    return out


def _blanks(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    if not model.remove_extra_whitespaces:
        return []
    return [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]


def _words(model: SentencePieceModel) -> str:
    """What a text is cut into: characters found in no longer piece, and words with the blanks in front of them."""
    pieces = [model.pieces[index] for index in (*model.of_type("normal"), *model.of_type("user"))]
    longer = [piece for piece in pieces if len(piece) > 1]
    if any("▁" in piece.lstrip("▁") for piece in longer):
        raise TokenizerError("a piece has a blank after another character; texts cannot be cut in front of blanks.")
    joined = set("".join(longer))
    alone = {piece for piece in pieces if len(piece) == 1 and piece not in joined and not piece.isalpha()} | {"\n"}
    alone -= joined | {"▁"}
    characters = "".join(f"\\x{{{ord(each):x}}}" for each in sorted(alone))
    return f"[{characters}]|▁*[^▁{characters}]+|▁+" if alone else "▁*[^▁]+|▁+"
