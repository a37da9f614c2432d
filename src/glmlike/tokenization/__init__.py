"""Tokenizers of every generation: vocabularies as Rust pipelines, found by what files contain.

``byte_bpe``, ``wordpiece``, ``unigram`` and ``sentencepiece_bpe`` each build one algorithm; ``kinds`` tells files
apart; ``detection`` finds the generation, ``generations`` is the table of what differs, ``assembly`` puts both
together; ``tokenizer`` has the classes. ``templates``, ``prompts`` and ``chat`` write chats, ``replies`` reads what a
model answers. Importing this package imports none of them.
"""

from __future__ import annotations

from pathlib import Path


def write_plain(source: str | Path, target: str | Path) -> list[str]:
    """Write the tokenizer of the folder ``source`` into ``target`` so that transformers reads it without glmlike.

    What is written, by name: tokenizer.json, tokenizer_config.json that names transformers' own class, and the chat
    template. Vocabulary files are not copied. See ``GlmLikeTokenizer.save_pretrained(plain=True)`` for what differs.

    Raises:
        TokenizerError: the vocabulary is missing, damaged, or not of the model beside it; nothing is written.
    """
    from glmlike.tokenization.tokenizer import GlmLikeTokenizer

    tokenizer = GlmLikeTokenizer.from_pretrained(source)
    written = tokenizer.save_pretrained(target, plain=True)
    return sorted({Path(name).name for name in written if Path(name).is_file()})
