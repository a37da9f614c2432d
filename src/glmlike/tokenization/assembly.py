"""A checkpoint's files put together as the arguments of a tokenizer class: pipeline, special tokens, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from glmlike import hub_json
from glmlike.errors import TokenizerError
from glmlike.tokenization import detection, kinds
from glmlike.tokenization.corners import corners_of
from glmlike.tokenization.generations import Generation, Kind, generation_of
from glmlike.tokenization.sentencepiece_model import SentencePieceModel, read_model
from glmlike.tokenization.templates import chat_template

CONFIGS: Mapping[str, str] = {
    "config_file": "config.json",
    "own_config_file": "tokenizer_config.json",
    "sat_config_file": "model_config.json",
    "sat_latest_file": "latest",
}
"""Files that say which generation it is; GLM-130B's folders have the last two in place of the first."""

_IMAGE_TOKENS = 20_000
# Fields of the originals' configs that their code reads and ours does not need.
_FOREIGN = ("auto_map", "do_lower_case", "remove_space", "special_tokens_map_file", "num_image_tokens")


def assemble(files: Mapping[str, str | None], arguments: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer class is made with, from files (paths by key) and the arguments that were read or passed.

    ``arguments`` may say ``generation``, and ``num_image_tokens`` for the 20000 ids that ChatGLM-6B v1.0 and GLM-130B
    begin with. Special tokens that tokenizer_config.json declares stand above the generation's own.

    Raises:
        TokenizerError: the files are damaged, of no known kind, or not of one checkpoint.
    """
    where = str(arguments.get("name_or_path") or "the tokenizer")
    config = _read_json(files.get("config_file")) or _read_json(files.get("sat_config_file"))
    own = _read_json(files.get("own_config_file"))
    own = {**own, "chat_template": arguments.get("chat_template")}  # it may stand in a file of its own
    said, images = arguments.get("generation"), arguments.get("num_image_tokens")
    declared: dict[int, AddedToken] = dict(arguments.pop("added_tokens_decoder", None) or {})
    kind: Kind | None = None
    model: SentencePieceModel | None = None
    path = files.get("tokenizer_file")
    if path is not None and Path(path).is_file():
        backend = _read_tokenizer(Path(path))
        generation = generation_of(said or detection.find_of_tokenizer(backend, config, own, where))
        model = _model_beside(files, generation)
    else:
        vocabulary = kinds.read_vocabulary(_with_neighbours(files, where))
        kind, where = vocabulary.kind, str(vocabulary.path)
        model = vocabulary.content if isinstance(vocabulary.content, SentencePieceModel) else None
        sat = {"model_class": "GLM130B"} if files.get("sat_latest_file") and not config else {}
        name = said or detection.find(kind, vocabulary.size, config or sat, own, where)
        generation = _with_images(generation_of(name, gmask=_gmask(config)), images, where)
        if kind not in generation.kinds:
            raise TokenizerError(f"{where}: generation={name!r} has no vocabulary of this kind ({kind}).")
        backend = vocabulary.build(generation, image_tokens=_images_of(generation))
        add_special_tokens(backend, {**_special_tokens(generation), **declared}, where)
        add_template(backend, generation)
        if kind == "unigram":
            arguments = _as_since_v1_1(arguments)
    detection.require_same_version(kind, backend.get_vocab_size(), config, where)
    settings = _settings(generation, arguments, backend)
    corners = None if model is None else corners_of(model, backend)
    return {**settings, "tokenizer_object": backend, "generation": generation.name, "corners": corners}


def _model_beside(files: Mapping[str, str | None], generation: Generation) -> SentencePieceModel | None:
    """The SentencePiece model that was saved beside a tokenizer.json which cannot say all of it."""
    key = {"unigram": "ice_text_file", "cog-pretrain": "cog_file"}.get(generation.kinds[0])
    path = files.get(key) if key else None
    return read_model(Path(path)) if path is not None and Path(path).is_file() else None


def _read_json(path: str | None) -> dict[str, Any]:
    if path is None or not Path(path).is_file():
        return {}
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path}: expected JSON; {error}. Download it again.") from None
    return found if isinstance(found, dict) else {}


def _read_tokenizer(path: Path) -> Tokenizer:
    kinds.refuse_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing more precise
        raise TokenizerError(f"{path}: not a tokenizer.json, or damaged: {error}. Download it again.") from error


def _with_neighbours(files: Mapping[str, str | None], where: str) -> Mapping[str, str | None]:
    """The files, and icetk's model from just above or below a folder of GLM-130B, whose releases hold weights alone."""
    if any(files.get(key) for key in kinds.FILES) or not Path(where).is_dir():
        return files
    name = kinds.FILES["ice_text_file"]
    near = [*sorted(Path(where).glob(f"*/{name}")), Path(where).resolve().parent / name]
    return {**files, "ice_text_file": next((str(path) for path in near if path.is_file()), None)}


def _gmask(config: Mapping[str, Any]) -> int | None:
    said = hub_json.token_ids(config) if config else {}
    return config.get("gmask_token_id") or said.get("gmask_token_id")


def _with_images(generation: Generation, images: int | None, where: str) -> Generation:
    """The generation with the ids that follow ``images`` image tokens; by default GLM-130B has them, ChatGLM-6B not."""
    if images is None or "unigram" not in generation.kinds or images == _images_of(generation):
        return generation
    if images not in (0, _IMAGE_TOKENS):
        raise TokenizerError(f"{where}: num_image_tokens={images}: expected 0 or {_IMAGE_TOKENS}.")
    shift = images - _images_of(generation)
    return replace(generation, specials={text: number + shift for text, number in generation.specials.items()})


def _images_of(generation: Generation) -> int:
    return generation.specials["<unk>"] if "unigram" in generation.kinds else 0


def _special_tokens(generation: Generation) -> dict[int, AddedToken]:
    return {
        number: AddedToken(
            text,
            lstrip=text in generation.left_stripped,
            normalized=False,
            special=text not in generation.shown,
        )
        for text, number in generation.specials.items()
    }


def add_special_tokens(backend: Tokenizer, tokens: Mapping[int, AddedToken], where: str) -> None:
    """Give ``backend`` the tokens at exactly these ids; ids that nobody names get a reserved token.

    Raises:
        TokenizerError: an id is another token's.
    """
    first = backend.get_vocab_size(with_added_tokens=False)
    reserved = {
        number: AddedToken(f"<|reserved_{number}|>", normalized=False, special=True)
        for number in range(first, max(tokens, default=-1) + 1)
    }
    backend.add_tokens([token for _, token in sorted({**reserved, **tokens}.items())])
    for number, token in tokens.items():
        found = backend.token_to_id(token.content)
        if found != number:
            raise TokenizerError(
                f"{where}: {token.content!r} is id {found} in this vocabulary of {first} tokens, expected {number}. "
                "The vocabulary is of another version than tokenizer_config.json or the generation."
            )


def add_template(backend: Tokenizer, generation: Generation) -> None:
    """Let ``backend`` put the generation's special tokens around a text, and around a pair."""
    used = {piece.partition(":")[0] for piece in (*generation.single, *generation.pair)} - {"$A", "$B"}
    backend.post_processor = processors.TemplateProcessing(
        single=list(generation.single),
        pair=list(generation.pair),
        special_tokens=[(text, backend.token_to_id(text)) for text in sorted(used)],
    )


def _as_since_v1_1(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """ChatGLM-6B's named tokens by the rules of v1.1, which every ChatGLM-6B is loaded by.

    The files of v1.0 and of the slim model call ``</s>`` the eos_token and ``<eop>`` the eop_token, of which only the
    latter ends a reply; v1.1 calls ``<eop>`` the eos_token and ``</s>`` the end_token, which no text spelled.
    """
    out = dict(arguments)
    if str(out.get("eos_token")) == "</s>":
        del out["eos_token"]
    own = dict(out.get("model_specific_special_tokens") or {})  # where transformers puts names that it does not know
    out["model_specific_special_tokens"] = {k: v for k, v in own.items() if k not in ("eop_token", "end_token")}
    return {name: value for name, value in out.items() if name not in ("eop_token", "end_token")}


def _settings(generation: Generation, arguments: Mapping[str, Any], backend: Tokenizer) -> dict[str, Any]:
    """The arguments, completed from the generation; nothing that was said is changed."""
    settings = {name: value for name, value in arguments.items() if name not in _FOREIGN}
    for name in ("add_bos_token", "add_eos_token"):  # said at all, they would replace the generation's own template
        if not settings.get(name):
            settings.pop(name, None)
    defaults: dict[str, Any] = {
        **generation.named,
        "padding_side": generation.padding_side,
        "truncation_side": generation.truncation_side,
        "split_special_tokens": not generation.parsed,
        "model_max_length": generation.model_max_length,
        "chat_template": chat_template(generation.name),
    }
    for name, value in defaults.items():
        if settings.get(name) is None and value is not None:
            settings[name] = value
    if not any(settings.get(name) for name in ("extra_special_tokens", "additional_special_tokens")):
        named = set(map(str, generation.named.values()))
        settings["extra_special_tokens"] = [
            text
            for text in generation.specials
            if not (text in named or text in generation.shown or "reserved" in text)
            and backend.token_to_id(text) is not None  # a declared token may have taken its id
        ]
    return settings
