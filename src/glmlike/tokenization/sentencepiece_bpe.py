"""STAND-IN for the integrator to replace: SentencePiece BPE vocabularies."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers

from glmlike.tokenization.sentencepiece_model import SentencePieceModel


def build(model: SentencePieceModel) -> Tokenizer:
    """A pipeline with about the right ids."""
    vocabulary = {piece: number for number, piece in enumerate(model.pieces)}
    normal = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == "normal"}
    score = dict(zip(model.pieces, model.scores, strict=True))
    merges = [
        (piece[:n], piece[n:])
        for piece in sorted(normal, key=lambda each: -score[each])
        for n in range(1, len(piece))
        if piece[:n] in normal and piece[n:] in normal
    ]
    bpe = models.BPE(
        vocabulary, merges, unk_token=model.pieces[model.unk_id], fuse_unk=True, byte_fallback=model.byte_fallback
    )
    tokenizer = Tokenizer(bpe)
    before = [] if model.byte_fallback else [normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
