"""Tokenizers of every generation: vocabularies as Rust pipelines, found by what files contain.

``byte_bpe``, ``wordpiece``, ``unigram`` and ``sentencepiece_bpe`` each build one algorithm; ``kinds`` tells files apart;
``generations`` is the table of what else differs; ``tokenizer`` has the classes. Importing this package imports none.
"""
