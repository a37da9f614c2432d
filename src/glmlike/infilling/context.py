"""A text with blanks as a context: its token ids, where its blanks stand, and what cannot be filled.

A blank is a [MASK] (a few words), an [sMASK] (a sentence) or a [gMASK] (a text), however the vocabulary writes it
(RoBERTa's is ``<mask>``). What a tokenizer puts around a text by itself ([CLS] … eos of GLM-10B; [gMASK] <sop> of
ChatGLM-6B) is kept, but for start-of-piece tokens, which begin a piece, and for blanks that nobody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from glmlike.errors import ConfigError, GlmLikeError

Blank = Literal["[MASK]", "[sMASK]", "[gMASK]"]


@dataclass(frozen=True)
class Markers:
    """The tokens that a model and its tokenizer agree on: blanks by id and as written, and the start of a piece."""

    kind_of_id: dict[int, Blank]
    kind_of_text: dict[str, Blank]
    sop: int
    rows: int
    """Rows of the model's embedding: an id beyond them has no meaning."""
    unknown: tuple[str, ...] = ()
    """Fields of the config that name no token, of blanks that the model does not know."""


@dataclass(frozen=True)
class Context:
    """A text to be filled. ``blanks`` are places in ``tokens``; ``offsets`` are characters of ``text``, [start, end).

    ``before`` and ``after`` are the tokens that the tokenizer puts around a text: read, but no part of what is filled.
    """

    text: str
    before: tuple[int, ...]
    tokens: tuple[int, ...]
    after: tuple[int, ...]
    blanks: tuple[int, ...]
    kinds: tuple[Blank, ...]
    offsets: tuple[tuple[int, int], ...]

    @property
    def ids(self) -> list[int]:
        """All tokens of the context, which is what the model reads."""
        return [*self.before, *self.tokens, *self.after]


def read_markers(model: Any, tokenizer: Any) -> Markers:
    """The blanks and the start of a piece that ``model`` and ``tokenizer`` agree on.

    Raises:
        ConfigError: the model fills no blanks; its config lacks the tokens; or the tokenizer is of another vocabulary.
    """
    config = model.config
    if getattr(config, "attention_mask", None) != "prefix" or not hasattr(model, "generate"):
        raise ConfigError(
            f"{type(model).__name__} of model_type {config.model_type!r} fills no blanks: only a language model that "
            "reads its context both ways does (attention_mask='prefix': GLM-10B, GLM-130B, ChatGLM-6B, and glmlike "
            "models trained on blanks). Use generate, or chat, to continue a text."
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ConfigError(
            f"a PEFT adapter of type {model.active_peft_config.peft_type}: it puts its prompt in a cache of its own, "
            "which filling blanks cannot share. Use an adapter of weights, such as LoRA, or the decoder without it."
        )
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} rows: they are of different "
            "vocabularies (ChatGLM-6B's, for one, has 150528 rows in v1.0 and 130528 since). Load both from one folder."
        )
    kinds: dict[int, Blank] = {}
    names: dict[str, Blank] = {}
    unknown: list[str] = []
    fields = ("mask_token_id", "smask_token_id", "gmask_token_id")
    for kind, field in zip(get_args(Blank), fields, strict=True):
        token = getattr(config, field, None)
        names.setdefault(kind, kind)
        if token is None:
            unknown.append(field)
            continue
        kinds[token] = kind
        names[_written(tokenizer, token, field)] = kind
        own = tokenizer.convert_tokens_to_ids(kind)
        if own is not None and own != token and tokenizer.convert_ids_to_tokens(own) == kind:
            raise ConfigError(
                f"{field}={token} in the model's config, but the tokenizer's {kind} is {own}: they are of different "
                "vocabularies. Load both from one folder."
            )
    if not kinds or config.sop_token_id is None:
        found = ", ".join(f"{name}={getattr(config, name, None)}" for name in (*fields, "sop_token_id"))
        raise ConfigError(f"{found} in the model's config: a blank and sop_token_id are needed. Pass the tokens' ids.")
    _written(tokenizer, config.sop_token_id, "sop_token_id")
    return Markers(kinds, names, config.sop_token_id, config.vocab_size, tuple(unknown))


def _written(tokenizer: Any, token: int, field: str) -> str:
    try:
        found = tokenizer.convert_ids_to_tokens(token)
    except (IndexError, KeyError, OverflowError):
        found = None
    if not isinstance(found, str):
        raise ConfigError(
            f"{field}={token} in the model's config, but the tokenizer has no such token: they are of different "
            "vocabularies. Load both from one folder."
        )
    return found


def read_context(text: str, tokenizer: Any, markers: Markers, *, append_gmask: bool = False) -> Context:
    """``text`` as a context; ``append_gmask`` puts a [gMASK] at the end of a text without a blank.

    Raises:
        GlmLikeError: the text is empty, has no blank, two [gMASK], or a start-of-piece token in its midst.
        ConfigError: the tokenizer splits a blank into pieces, or gives ids that the model has no row for.
    """
    if not isinstance(text, str) or not text:
        raise GlmLikeError(f"{text!r}: expected a text with a blank, such as 'the [MASK] and the earth'.")
    tokens = _encode(tokenizer, text, special=False)
    before, after = _around(_encode(tokenizer, text, special=True), tokens, text)
    if tokens and tokens[-1] == markers.sop:
        tokens = tokens[:-1]
    if markers.sop in tokens:
        raise GlmLikeError(
            f"{_short(text)}: a start-of-piece token stands in the text, where only blanks may; it begins what fills a "
            "blank, and is added by itself. Remove it."
        )
    beyond = [token for token in (*before, *tokens, *after) if not 0 <= token < markers.rows]
    if beyond:
        raise ConfigError(
            f"{_short(text)}: the tokenizer gives id {beyond[0]}, the model has {markers.rows} rows: they are of "
            "different vocabularies. Load both from one folder."
        )
    before, after = (_unmarked(side, markers) for side in (before, after))
    blanks = [place for place, token in enumerate(tokens) if token in markers.kind_of_id]
    kinds = [markers.kind_of_id[tokens[place]] for place in blanks]
    offsets = _offsets(text, kinds, tokens, tokenizer, markers)
    if not blanks and append_gmask:
        tokens, blanks, kinds = [*tokens, _gmask(markers)], [len(tokens)], ["[gMASK]"]
        offsets = [(len(text), len(text))]
    if not blanks:
        known = " or ".join(sorted(markers.kind_of_text))
        raise GlmLikeError(
            f"{_short(text)}: no blank in it. Write {known} where text is missing, or pass append_gmask=True to "
            "continue it."
        )
    if kinds.count("[gMASK]") > 1:
        raise GlmLikeError(
            f"{_short(text)}: {kinds.count('[gMASK]')} [gMASK] in one text; no model was trained on more than one. Use "
            "[MASK] or [sMASK] for the others."
        )
    return Context(text, tuple(before), tuple(tokens), tuple(after), tuple(blanks), tuple(kinds), tuple(offsets))


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


def _around(whole: list[int], tokens: list[int], text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after the text's own tokens."""
    for start in range(len(whole) - len(tokens) + 1):
        if whole[start : start + len(tokens)] == tokens:
            return whole[:start], whole[start + len(tokens) :]
    raise ConfigError(
        f"{_short(text)}: the tokenizer gives {whole[:8]}… with its special tokens and {tokens[:8]}… without, "
        "which is not the same text. Expected tokens around it only; pass a tokenizer that adds no others."
    )


def _unmarked(side: list[int], markers: Markers) -> list[int]:
    return [token for token in side if token != markers.sop and token not in markers.kind_of_id]


def _offsets(
    text: str, kinds: Sequence[Blank], tokens: list[int], tokenizer: Any, markers: Markers
) -> list[tuple[int, int]]:
    """Where the blanks are written in the text, which must be as many, of the same kinds, as among its tokens."""
    names = sorted(markers.kind_of_text, key=len, reverse=True)
    found = list(re.finditer("|".join(map(re.escape, names)), text))
    written = [markers.kind_of_text[match.group()] for match in found]
    if written != list(kinds):
        missing = ", ".join(markers.unknown)
        unnamed = f", whose id the model's config must name (no {missing})" if missing else ""
        raise ConfigError(
            f"{_short(text)}: {', '.join(written) or 'no blank'} written, but its tokens have "
            f"{', '.join(kinds) or 'no blank'}: {tokenizer.convert_ids_to_tokens(tokens[:16])}. A blank must be one "
            f"special token{unnamed}."
        )
    return [match.span() for match in found]


def _gmask(markers: Markers) -> int:
    for token, kind in markers.kind_of_id.items():
        if kind == "[gMASK]":
            return token
    raise ConfigError("append_gmask=True, but the model's config has no gmask_token_id. Write a [MASK] instead.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
