"""WordPiece: BERT's uncased vocabulary, which GLM's base and large English models have."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from glmlike.errors import TokenizerError

_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_pieces(path: Path) -> dict[str, int]:
    """Pieces and their ids from a ``vocab.txt``: a piece a line, ids from 0.

    Raises:
        TokenizerError: it is no text, a piece is twice there, or one of BERT's special tokens is not there.
    """
    try:
        lines = path.read_text(encoding="utf8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: expected text; {error}. The file is damaged: download it again.") from None
    pieces = [line.removesuffix("\r") for line in lines]
    if pieces and not pieces[-1]:
        pieces.pop()
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    missing = [token for token in _NEEDED if token not in vocabulary]
    if missing or len(vocabulary) != len(pieces):
        found = f"no {', '.join(missing)}" if missing else "a piece on two lines"
        raise TokenizerError(f"{path}: expected a WordPiece vocabulary, a piece on each line; {found}.")
    return vocabulary


def build(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's uncased pipeline: lower case without accents, cut at blanks, marks and Chinese characters."""
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer
