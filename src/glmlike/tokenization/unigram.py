"""STAND-IN for the integrator to replace: ChatGLM-6B's unigram vocabulary, without the originals' blanks and tabs."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from glmlike.tokenization.sentencepiece_model import SentencePieceModel


def build(model: SentencePieceModel, *, image_tokens: int = 0) -> Tokenizer:
    """A pipeline with about the right ids."""
    blanks = [f"<|blank_{n}|>" for n in range(2, 81)]
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>", "<|tab|>", *blanks]
    names += [f"<0x{n:02X}>" for n in range(256)]
    images = [(f"<|image_{n}|>", -100.0) for n in range(image_tokens)]
    pieces = [*zip(model.pieces, model.scores, strict=True)]
    pieces += [(name, -100.0) for name in names][len(pieces) - 130_000 :] if len(pieces) < 130_344 else []
    tokenizer = Tokenizer(models.Unigram([*images, *pieces], unk_id=model.unk_id + image_tokens))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("\n", "<n>"), normalizers.Precompiled(model.precompiled_charsmap)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return tokenizer
