"""Tokenizers of every generation: vocabularies as Rust pipelines, found by what files contain.

``byte_bpe``, ``wordpiece``, ``unigram`` and ``sentencepiece_bpe`` each build one algorithm; ``kinds`` tells files
apart; ``detection`` finds the generation, ``generations`` is the table of what differs, ``assembly`` puts both
together; ``tokenizer`` has the classes. ``templates``, ``prompts`` and ``chat`` write chats, ``replies`` reads what a
model answers. Importing this package imports none of them.
"""
