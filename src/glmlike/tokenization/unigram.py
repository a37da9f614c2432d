"""The unigram vocabularies of ChatGLM-6B and GLM-130B (icetk) as a `tokenizers` pipeline, and exactly.

Their code spells "\n" ``<n>``, "\t" ``<|tab|>`` and runs of 80 to 2 blanks ``<|blank_k|>``, then runs SentencePiece
(tokenization_chatglm.py of both releases, icetk's text_tokenizer). Text that spells these becomes them too.

``build`` gives the same ids as sentencepiece but for three corners, where ``exact`` gives sentencepiece's:

* two cuts of a run of text whose scores differ by less than float32 rounding (``unigram_exact`` says more);
* marks that Unicode's NFKC composes or reorders and the model's older table does not, and characters newer than it;
* one after ``<n>`` that composes with ">" (U+0338).

``build``'s decoder differs where bytes do not end a character: one U+FFFD for every byte of the run, also for those
that make whole characters. ``UnigramCode.decode`` replaces only the bytes that belong to none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from glmlike.errors import TokenizerError
from glmlike.tokenization.charsmap import nmt_nfkc
from glmlike.tokenization.sentencepiece_model import PieceType, SentencePieceModel
from glmlike.tokenization.unigram_exact import UnigramExact

BLANKS = range(80, 1, -1)
TAB = "<|tab|>"
_CONTROL = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_TEXT_PIECES = 130000
_USER_SCORE = -0.1  # above all others
UNKNOWN_SURFACE = " \u2047 "


def blank(length: int) -> str:
    """The spelling of ``length`` blanks in a row, 2 to 80."""
    return f"<|blank_{length}|>"


def spell(text: str) -> str:
    """``text`` with newlines, tabs and runs of blanks spelled as the vocabulary has them, longest runs first."""
    text = text.replace("\n", "<n>").replace("\t", TAB)
    return _RUN.sub(lambda run: _SPELLED[len(run[0])], text) if "  " in text else text


_RUN = re.compile(" {2,80}")
_SPELLED = {length: blank(length) for length in BLANKS}


def complete(model: SentencePieceModel) -> SentencePieceModel:
    """The model with the 344 pieces that the code of v1.0 and GLM-130B appends to its file at run time.

    Of v1.1's file, which holds them, nothing is changed. TokenizerError for any other vocabulary.
    """
    if model.algorithm != "unigram" or model.pieces[4:5] != ("<n>",):
        raise TokenizerError(
            f"a {model.algorithm} vocabulary of {len(model.pieces)} pieces without `<n>` as piece 4 where ChatGLM-6B's"
            " or GLM-130B's ice_text.model was expected. Look for another tokenizer's module."
        )
    appended: list[tuple[str, PieceType]] = [(piece, "control") for piece in _CONTROL]
    appended += [(TAB, "user"), *((blank(length), "user") for length in reversed(BLANKS))]
    appended += [(f"<0x{byte:02X}>", "byte") for byte in range(256)]
    names, kinds = zip(*appended, strict=True)
    if model.pieces[-len(names) :] == names and model.types[-len(names) :] == kinds:
        return replace(model, byte_fallback=True)
    if {*names} & {*model.pieces}:
        raise TokenizerError(
            f"{len(model.pieces)} pieces with some, not all, of the {len(names)} that follow the text pieces; expected"
            f" {_TEXT_PIECES} pieces or {_TEXT_PIECES + len(names)}. Download ice_text.model again."
        )
    return replace(
        model,
        pieces=(*model.pieces, *names),
        scores=(*model.scores, *(0.0 for _ in names)),
        types=(*model.types, *kinds),
        byte_fallback=True,
    )


def build(model: SentencePieceModel, *, image_tokens: int = 0) -> Tokenizer:
    """A tokenizer whose id of piece i is ``image_tokens`` + i; it has no special tokens yet.

    ``image_tokens`` is 20000 for GLM-130B and the first ChatGLM-6B, 0 for those without image rows. Each stretch of
    text between added tokens gets its own dummy prefix.
    """
    model = complete(model)
    least = min(model.scores[index] for index in model.of_type("normal"))
    # The images' names hold a blank, which no normalised text has; every other piece must be a string nothing spells.
    vocabulary = [(f"<image {index}>", least) for index in range(image_tokens)]
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        vocabulary.append((piece, score if kind == "normal" else _USER_SCORE if kind == "user" else least))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=image_tokens + model.unk_id, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\n", "<n>"),
            normalizers.Replace("\t", TAB),
            *(normalizers.Replace(" " * length, blank(length)) for length in BLANKS),
            *nmt_nfkc(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex("^ | $"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(_unspellable(model)), "merged_with_next"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(model.pieces[model.unk_id], UNKNOWN_SURFACE),
            decoders.Replace(Regex("^(?:" + "|".join(map(re.escape, _controls(model))) + ")$"), ""),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip("▁", 1, 0),
            decoders.Replace("▁", " "),
            decoders.Replace("<n>", "\n"),
            decoders.Replace(TAB, "\t"),
            *(decoders.Replace(blank(length), " " * length) for length in reversed(BLANKS)),
        ]
    )
    return tokenizer


def exact(model: SentencePieceModel, *, image_tokens: int = 0) -> UnigramCode:
    """Sentencepiece's own ids and decoding for the same ids as ``build``'s; no offsets."""
    model = complete(model)
    return UnigramCode(model, UnigramExact(model, image_tokens), image_tokens)


@dataclass(frozen=True)
class UnigramCode:
    """``encode`` and ``decode`` of the original code, for text and ids without special tokens."""

    model: SentencePieceModel
    pieces: UnigramExact
    image_tokens: int = 0

    def encode(self, text: str) -> list[int]:
        """The original's ids of ``text``."""
        return self.pieces.encode(spell(text))

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The original's ids of every text."""
        normalize = self.pieces.normalize
        return self.pieces.encode_normal([normalize(spell(text)) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """The original's text: bytes are read as UTF-8, ids of images are left out; control pieces are nothing, but end
        a run of bytes."""
        out, run = [], bytearray()
        first = True
        for index in ids:
            at = index - self.image_tokens
            if at < 0:
                continue
            piece, kind = self.model.pieces[at], self.model.types[at]
            if kind == "byte":
                run.append(int(piece[3:5], 16))
                first = False
                continue
            out.append(utf8(bytes(run)))
            run.clear()
            if kind == "control":
                continue
            if kind == "unknown":
                out.append(UNKNOWN_SURFACE)
            else:
                piece = piece.removeprefix("▁") if first else piece
                out.append(piece.replace("▁", " "))
            first = False
        text = "".join([*out, utf8(bytes(run))])
        text = text.replace("<n>", "\n").replace(TAB, "\t")
        for length in reversed(BLANKS):
            text = text.replace(blank(length), " " * length)
        return text


def utf8(data: bytes) -> str:
    """``data`` as text, U+FFFD for each byte that belongs to no whole character."""
    out = []
    while data:
        try:
            out.append(data.decode("utf8"))
            break
        except UnicodeDecodeError as error:
            out.append(data[: error.start].decode("utf8") + "\ufffd")
            data = data[error.start + 1 :]
    return "".join(out)


def _controls(model: SentencePieceModel) -> list[str]:
    return [model.pieces[index] for index in model.of_type("control")]


def _unspellable(model: SentencePieceModel) -> str:
    """A pattern that cuts, before its match, all text spelling a control, byte or unknown piece; no real piece is cut.

    The cut is in front of the last character, and lies between two characters that no piece has side by side.
    """
    side_by_side = {
        piece[at : at + 2]
        for piece, kind in zip(model.pieces, model.types, strict=True)
        if kind in ("normal", "user") and ("]" in piece or ">" in piece)
        for at in range(len(piece) - 1)
    }
    before: dict[str, set[str]] = {}
    for piece, kind in zip(model.pieces, model.types, strict=True):
        if kind in ("control", "byte", "unknown"):
            if piece[-2:] in side_by_side or piece[-1] not in "]>":
                raise TokenizerError(f"{piece!r} ends in two characters that a piece has too; text may spell it.")
            before.setdefault(piece[-1], set()).add(piece[-2])
    return "|".join(f"(?<=[{''.join(sorted(each))}]){re.escape(last)}" for last, each in sorted(before.items()))
