"""The tokenizer classes: transformers' fast tokenizer over any vocabulary of the family.

One class reads them all; its subclasses are the names that the published tokenizer_config.json files say, so that
``AutoTokenizer`` finds them. A name decides nothing: ``ChatGLMTokenizer`` is four algorithms on the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from transformers.tokenization_utils_base import BatchEncoding
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from glmlike.errors import TokenizerError
from glmlike.tokenization.assembly import CONFIGS, assemble
from glmlike.tokenization.chat import SafeChatMixin
from glmlike.tokenization.corners import Corners
from glmlike.tokenization.detection import find_of_tokenizer
from glmlike.tokenization.direct import Around, Asked, Encodings, around, ids_of
from glmlike.tokenization.generations import GENERATIONS, generation_of
from glmlike.tokenization.kinds import FILES, refuse_pointer
from glmlike.tokenization.mixed import MixedBackend, broken_bytes
from glmlike.tokenization.prompts import PromptHelpersMixin
from glmlike.tokenization.remembered import Encoder, encoder_of
from glmlike.tokenization.stretches import AddedTokens

PLAIN = "PreTrainedTokenizerFast"
_MACHINE = ("is_local", "local_files_only", "auto_map")


class GlmLikeTokenizer(SafeChatMixin, PromptHelpersMixin, PreTrainedTokenizerFast):
    """A fast tokenizer for any generation, read from a checkpoint's own files or a tokenizer.json.

    ``from_pretrained(folder)`` tells the vocabulary by its content and the generation from it and the configs;
    ``generation=`` (a name of :data:`glmlike.tokenization.generations.GENERATIONS`) overrides.
    ``num_image_tokens=20000`` gives ChatGLM-6B v1.0's own ids; by default they are those of the model as
    glmlike loads it, without image tokens.

    In ChatGLM2, ChatGLM3 and CodeGeeX2 a special token that a text spells is text, as in the originals (a default of
    ``split_special_tokens``); in the others it is the token, as in theirs.

    ``return_position_ids=True`` adds ``position_ids`` 0, 1, … from the first token that is not padding, which the
    originals of ChatGLM2, ChatGLM3 and GLM-4 return; glmlike's models derive their positions and need none.

    ChatGLM-6B's, GLM-130B's and GLM-10B-Chinese's ids are SentencePiece's: the few texts that Rust cuts otherwise are
    cut exactly (:mod:`glmlike.tokenization.corners` says which), with offsets, truncation and padding as for others.

    Ids of the parts of texts are remembered, up to some 100 MB of them a tokenizer: a text of words that were met
    before is encoded several times as fast by most vocabularies (benchmarks/README.md), and has the same ids.

    ``save_pretrained`` writes tokenizer.json and tokenizer_config.json, and for those three the SentencePiece model,
    which the exact cut needs. transformers without glmlike reads them as its own fast tokenizer, with the same ids,
    except that there texts may spell special tokens, and those few texts are cut as Rust cuts them.

    Raises:
        TokenizerError: the files are damaged, of no known kind, or not of one checkpoint.
    """

    vocab_files_names: Mapping[str, str] = {"tokenizer_file": "tokenizer.json", **FILES, **CONFIGS}
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers' own)
    padding_side = "left"
    generation: str
    _saved_as = "GlmLikeTokenizer"
    _remembered: tuple[Any, Encoder | None] | None = None
    _stretches: tuple[Any, AddedTokens] | None = None

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As transformers does, which reads the special tokens of tokenizer.json first."""
        path = resolved_vocab_files.get("tokenizer_file")
        if path is not None:
            refuse_pointer(Path(path))
        try:
            return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)
        except (json.JSONDecodeError, KeyError) as error:
            raise TokenizerError(
                f"{path or args[:1]}: not a tokenizer.json, or damaged, or its tokenizer_config.json is: {error}. "
                "Download it again."
            ) from error

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the class, with the pipeline among them; called by ``from_pretrained``."""
        files = {key: kwargs.pop(key, None) for key in cls.vocab_files_names}
        return assemble(files, kwargs)

    def __init__(self, *args: Any, tokenizer_object: Any = None, corners: Corners | None = None, **kwargs: Any) -> None:
        if tokenizer_object is None:
            kwargs = type(self).convert_to_native_format(**kwargs)
            tokenizer_object, corners = kwargs.pop("tokenizer_object"), kwargs.pop("corners")
        self._corners = corners
        said = kwargs.get("generation") or find_of_tokenizer(tokenizer_object, {}, {}, "tokenizer_object")
        kwargs["generation"] = self.generation = generation_of(said).name
        self._tokenizer = tokenizer_object  # transformers would copy it, which takes longer than to build it
        super().__init__(*args, **kwargs)

    @classmethod
    def _patch_mistral_regex(cls, tokenizer: Any, *_: Any, **__: Any) -> Any:
        """Nothing: where a text is cut is known here, and looking for Mistral's fault asks the Hub."""
        return tokenizer

    def _encode_plus(
        self, text: Any, text_pair: Any = None, return_position_ids: bool = False, **kwargs: Any
    ) -> BatchEncoding:
        if not return_position_ids:
            direct = self._directly(text, **kwargs) if text_pair is None else None
            return self._by_encodings(text, text_pair, **kwargs) if direct is None else direct
        tensors = kwargs.pop("return_tensors", None)
        asked = kwargs.pop("return_attention_mask", None)
        encoding = self._encode_plus(text, text_pair, **kwargs, return_attention_mask=True)
        masks = encoding["attention_mask"]
        one = not masks or isinstance(masks[0], int)
        encoding["position_ids"] = _positions(masks) if one else [_positions(mask) for mask in masks]
        if asked is False:
            del encoding["attention_mask"]
        return encoding.convert_to_tensors(tensors, prepend_batch_axis=one)

    def _by_encodings(self, text: Any, text_pair: Any, **kwargs: Any) -> BatchEncoding:
        """As transformers does, with SentencePiece's tokens where Rust's differ."""
        if self._corners is None:
            return super()._encode_plus(text, text_pair, **kwargs)
        split = kwargs.get("split_special_tokens")
        self._tokenizer.encode_special_tokens = self.split_special_tokens if split is None else split
        mixed = object.__new__(type(self))  # a view of this tokenizer: other threads keep seeing Rust's
        mixed.__dict__ = {**self.__dict__, "_tokenizer": MixedBackend(self._tokenizer, self._corners, self._added())}
        return super(GlmLikeTokenizer, mixed)._encode_plus(text, text_pair, **kwargs)

    def _directly(self, text: Any, **kwargs: Any) -> BatchEncoding | None:
        """The same from remembered ids; None where more is asked for than ids and masks of single texts."""
        asked = Asked(**{name: value for name, value in kwargs.items() if name in Asked._fields})
        texts = [text] if isinstance(text, str) else text
        others = any(value for name, value in kwargs.items() if name not in Asked._fields)
        if others or not asked.is_simple() or not isinstance(texts, (list, tuple)) or not texts:
            return None
        if not all(isinstance(each, str) for each in texts) or "token_type_ids" in self.model_input_names:
            return None
        split = self.split_special_tokens if asked.split_special_tokens is None else asked.split_special_tokens
        self._tokenizer.encode_special_tokens = split
        encoder, added = self._encoder(), self._added()
        sides = around(self._tokenizer) if asked.add_special_tokens else Around([], [])
        if encoder is None or not added.exact or sides is None:
            return None
        try:
            rows = ids_of(
                list(texts), encoder, added, cast("Callable[[str], int]", self._convert_token_to_id_with_added_voc)
            )
        except UnicodeEncodeError:  # lone surrogates: Rust says so
            return None
        data = asked.finish(rows, sides, self)
        if data is None:
            return None
        later = {**kwargs, "split_special_tokens": split, "return_tensors": None, "verbose": False}
        encodings = Encodings(len(texts), lambda: list(self._by_encodings(text, None, **later).encodings or ()))
        for ids in data["input_ids"]:
            self._eventual_warn_about_too_long_sequence(ids, asked.max_length, asked.verbose)
        if isinstance(text, str) and asked.return_tensors is None:
            data = {name: each[0] if isinstance(each[0], list) else each for name, each in data.items()}
        return BatchEncoding(data, encodings, tensor_type=asked.return_tensors, n_sequences=1)

    def _encoder(self) -> Encoder | None:
        """What encodes stretches of text, and remembers; None for pipelines it does not know."""
        if self._corners is not None:
            return self._corners.encoder
        parts = (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer)
        pipeline = tuple(None if part is None else part.__getstate__() for part in parts)
        if self._remembered is None or self._remembered[0] != pipeline:
            self._remembered = (pipeline, encoder_of(self._tokenizer))
        return self._remembered[1]

    def _added(self) -> AddedTokens:
        """The added tokens as they are now."""
        state = (self._tokenizer.get_vocab_size(), self._tokenizer.encode_special_tokens)
        if self._stretches is None or self._stretches[0] != state:
            self._stretches = (state, AddedTokens(self._tokenizer))
        return self._stretches[1]

    def _add_tokens(self, *args: Any, **kwargs: Any) -> int:
        self._stretches = None
        return int(super()._add_tokens(*args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again where it is needed."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_remembered", "_stretches")}

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers pads, with 0 for the positions of padding, which it would leave out."""
        before = len(encoded_inputs[self.model_input_names[0]])
        padded: dict[str, Any] = super()._pad(encoded_inputs, *args, **kwargs)
        if "position_ids" in padded:
            added = [0] * (len(padded[self.model_input_names[0]]) - before)
            side = kwargs.get("padding_side") or self.padding_side
            own = list(padded["position_ids"])
            padded["position_ids"] = [*added, *own] if side == "left" else [*own, *added]
        return padded

    def _convert_encoding(self, *args: Any, **kwargs: Any) -> Any:
        converted, encodings = super()._convert_encoding(*args, **kwargs)
        aliases = self._alias_ids()
        if aliases:
            converted["input_ids"] = [[aliases.get(token, token) for token in row] for row in converted["input_ids"]]
        return converted, encodings

    def _convert_token_to_id_with_added_voc(self, token: str) -> int | None:
        name = GENERATIONS[self.generation].aliases.get(token, token) if self._alias_ids() else token
        found: int | None = super()._convert_token_to_id_with_added_voc(name)
        return found

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if isinstance(ids, list) and (tokens := self._with_broken_bytes(ids, skip_special_tokens)) is not None:
            return str(self._tokenizer.decoder.decode(tokens))
        return str(super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs))

    def _with_broken_bytes(self, ids: list[int], skip_special_tokens: bool) -> list[str] | None:
        """The tokens where bytes among them make no whole characters: those runs as SentencePiece reads them, as text.

        Rust's decoder gives up all characters of such a run. None where there is no such run.
        """
        first = self._tokenizer.token_to_id("<0x00>")
        if first is None or not any(first <= each < first + 256 for each in ids):
            return None
        special = set(self.all_special_ids) if skip_special_tokens else set()
        names = [self._tokenizer.id_to_token(each) for each in ids if each not in special]
        return broken_bytes([name for name in names if name is not None])

    def _alias_ids(self) -> dict[int, int]:
        """Ids of spellings that are another token; see ``aliases`` of a generation."""
        pairs = GENERATIONS[self.generation].aliases.items()
        ids = {self._tokenizer.token_to_id(alias): self._tokenizer.token_to_id(name) for alias, name in pairs}
        return {alias: name for alias, name in ids.items() if alias is not None and name is not None}

    def save_pretrained(self, save_directory: Any, *args: Any, plain: bool = False, **kwargs: Any) -> Any:
        """Write tokenizer.json, tokenizer_config.json and the chat template.

        The class is saved as ``GlmLikeTokenizer``: with glmlike that class comes back; transformers 5 without it takes
        its own fast tokenizer for a name it does not know. ``plain=True`` saves transformers' name, for tools that
        insist on one (transformers 4); ``AutoTokenizer`` then gives transformers' class with glmlike as well.
        """
        self._saved_as = PLAIN if plain else GlmLikeTokenizer.__name__
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            del self._saved_as

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """As transformers does, once its tokenizer_config.json says nothing of this machine or this session."""
        path = Path(next(name for name in file_names if Path(name).name.endswith(CONFIGS["own_config_file"])))
        config = {k: v for k, v in json.loads(path.read_text(encoding="utf8")).items() if k not in _MACHINE}
        config["tokenizer_class"] = self._saved_as
        # Without these, reading the folder again parses tokenizer.json twice.
        config["added_tokens_decoder"] = {i: token.__getstate__() for i, token in self.added_tokens_decoder.items()}
        if config.get("split_special_tokens") == (not GENERATIONS[self.generation].parsed):
            del config["split_special_tokens"]  # the generation says it; said here, transformers' templates would break
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
        if self._corners is not None and self._saved_as != PLAIN:
            name = FILES["ice_text_file" if self._corners.model.algorithm == "unigram" else "cog_file"]
            model = Path(save_directory) / name
            model.write_bytes(self._corners.model.data)
            file_names = (*file_names, str(model))
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


def _positions(mask: list[int]) -> list[int]:
    """0, 1, … over the tokens that are not padding, 0 for padding on either side."""
    positions, count = [], 0
    for real in mask:
        positions.append(count if real else 0)
        count += real
    return positions


class ChatGLMTokenizer(GlmLikeTokenizer):
    """The name in ChatGLM-6B, ChatGLM2, ChatGLM3 and CodeGeeX2."""


class ChatGLM4Tokenizer(GlmLikeTokenizer):
    """The name in GLM-4-9B and what was made from it."""


class GLMTokenizer(GlmLikeTokenizer):
    """A name in the GLM-10B line."""


class GLMGPT2Tokenizer(GlmLikeTokenizer):
    """The name in GLM-2B and GLM-10B."""


class GLMChineseTokenizer(GlmLikeTokenizer):
    """The name in glm-large-chinese and glm-10b-chinese."""


class GLMBertTokenizer(GlmLikeTokenizer):
    """The name in GLM's base and large English models."""


class GLMRobertaTokenizer(GlmLikeTokenizer):
    """The name in glm-roberta-large."""


HUB_CLASSES = (
    *(GlmLikeTokenizer, ChatGLMTokenizer, ChatGLM4Tokenizer, GLMTokenizer, GLMGPT2Tokenizer, GLMChineseTokenizer),
    *(GLMBertTokenizer, GLMRobertaTokenizer),
)
"""Every class that ``AutoTokenizer`` knows by name."""
