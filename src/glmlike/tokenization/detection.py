"""Which generation a vocabulary belongs to: from what it holds, and where several share it, from what the configs say.

The name of a folder plays no part; the name that a config recorded does, since nothing else tells ChatGLM2 from
ChatGLM3 (same vocabulary file, same fields).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from glmlike import hub_json
from glmlike.errors import ConfigError, TokenizerError
from glmlike.tokenization.generations import GENERATIONS, Generation, Kind

Json = Mapping[str, Any]

_OF_CONFIG = {"chatglm2": "chatglm2", "chatglm3": "chatglm3", "glm4": "glm-4"}  # config.json's own field `generation`
_KINDS: Mapping[str, frozenset[Kind]] = {
    "chatglm-6b": frozenset({"unigram"}),
    "glm-130b": frozenset({"unigram"}),
    "chatglm": frozenset({"sentencepiece-bpe", "ranks"}),
    "glm-10b": frozenset({"merges", "wordpiece", "cog-pretrain"}),
    "glm4": frozenset({"ranks"}),
    "llama": frozenset({"ranks", "merges"}),
    "qwen2": frozenset({"ranks", "merges"}),
}
"""What a format's vocabularies are; the others had several."""


def find(kind: Kind, size: int, config: Json, own: Json, where: str) -> str:
    """The generation of a vocabulary file of ``size`` tokens, beside a config.json and a tokenizer_config.json.

    Where no field tells them apart: ChatGLM3 rather than ChatGLM2 and CodeGeeX2 (plain texts have the same ids; chats
    have roles), GLM-4-9B rather than its successors, ChatGLM-6B rather than GLM-130B.

    Raises:
        TokenizerError: no published vocabulary of this kind has this size.
    """
    able = [name for name, each in GENERATIONS.items() if kind in each.kinds and size in each.sizes]
    if not able:
        known = ", ".join(
            f"{'/'.join(map(str, each.sizes))} ({name})" for name, each in GENERATIONS.items() if kind in each.kinds
        )
        raise TokenizerError(
            f"{where}: a vocabulary of {size} tokens; published ones of its kind have {known}. If the file is whole, "
            "say which one it extends: generation=…"
        )
    return choose(able, config, own)


def find_of_tokenizer(tokenizer: Tokenizer, config: Json, own: Json, where: str) -> str:
    """The generation whose special tokens a tokenizer.json has, by text and id.

    Raises:
        TokenizerError: it is none that is known.
    """
    fits = [each for each in GENERATIONS.values() if _has(tokenizer, each)]
    if not fits:
        raise TokenizerError(
            f"{where}: its tokenizer.json has the special tokens of no known generation. Pass generation=, one of "
            f"{', '.join(GENERATIONS)}; or load it with transformers' PreTrainedTokenizerFast."
        )
    most = max(len(each.specials) for each in fits)
    return choose([each.name for each in fits if len(each.specials) == most], config, own)


def _has(tokenizer: Tokenizer, generation: Generation) -> bool:
    return all(tokenizer.token_to_id(text) == number for text, number in generation.specials.items())


def choose(able: list[str], config: Json, own: Json) -> str:
    """The one of several generations with one vocabulary that the configs mean."""
    recorded = [str(each).lower().rstrip("/").rsplit("/", 1)[-1] for each in _names(config, own)]
    said = _OF_CONFIG.get(str(config.get("generation")))
    template = str(own.get("chat_template") or "")
    tells = {
        "glm-130b": hub_json.is_glm_130b(config)
        or (config.get("model_type") == "glmlike" and config.get("positions") == "rotary"),
        "codegeex2": "interleaved_qkv" in config or any("codegeex2" in name for name in recorded),
        "chatglm2": any(name.startswith("chatglm2") for name in recorded),
        "codegeex4": any("codegeex4" in name for name in recorded) or "CodeGeeX" in template,
        "glm-z1": any("glm-z1" in name for name in recorded) or "<think>" in template,
        "glm-4-0414": config.get("model_type") == "glm4" or any("0414" in name for name in recorded),
    }
    if said in able:
        return str(said)
    meant = [name for name, told in tells.items() if told and name in able]
    default = next((name for name in ("chatglm3", "glm-4", "chatglm-6b") if name in able), able[0])
    return meant[0] if meant else default


def _names(config: Json, own: Json) -> list[str]:
    return [name for name in (config.get("_name_or_path"), own.get("name_or_path")) if name]


def require_same_version(kind: Kind | None, tokens: int, config: Json, where: str) -> None:
    """Raise TokenizerError where a vocabulary is not the one of the model that config.json describes.

    ``tokens`` is the number of ids. ChatGLM-6B v1.0's model has 150528 rows of which loading drops 20000, so either of
    the two vocabularies fits it; the slim model of 130528 rows has v1.0's file, whose ids are the same without images.
    """
    if not config:
        return
    rows = config.get("padded_vocab_size") or config.get("vocab_size")
    if not isinstance(rows, int):
        return
    try:
        fmt = hub_json.detect(config, where)
    except ConfigError:
        return
    kept = rows - hub_json.dropped_rows(config)
    if kind is not None and kind not in _KINDS.get(fmt, (kind,)):
        raise TokenizerError(
            f"{where}: {_WORDS[kind]}, but config.json is of format {fmt!r}, whose vocabularies are "
            f"{' or '.join(sorted(_WORDS[each] for each in _KINDS[fmt]))}. Take both from one folder."
        )
    if tokens > kept or 2 * tokens <= kept:
        dropped = f" (less {rows - kept} that loading drops)" if kept != rows else ""
        raise TokenizerError(
            f"{where}: the vocabulary has {tokens} tokens, the model of config.json {rows} rows{dropped}: they are of "
            "different versions (ChatGLM-6B's has 150344 tokens with v1.0's image tokens and 130344 since; ChatGLM2's "
            "and ChatGLM3's 64794 or 64798, GLM-4's 151343). Take both from one folder."
        )


_WORDS: Mapping[Kind, str] = {
    "ranks": "tiktoken ranks",
    "merges": "vocab.json with merges.txt",
    "unigram": "a SentencePiece unigram model",
    "sentencepiece-bpe": "a SentencePiece BPE model with bytes",
    "cog-pretrain": "a SentencePiece BPE model without bytes",
    "wordpiece": "a WordPiece vocab.txt",
}
