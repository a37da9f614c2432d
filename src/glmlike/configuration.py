"""GlmLikeConfig: the Hub face of a DecoderSpec, and the foreign model types that read as one.

A config of any known format becomes a ``GlmLikeConfig`` the moment it is read; nothing downstream knows that foreign
formats exist. What each format's fields mean is in the hub_json room.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from glmlike import hub_json
from glmlike.errors import ConfigError
from glmlike.spec import DecoderSpec, feed_forward_size

logger = logging.get_logger(__name__)

_RopeDict = dict[str, Any]


@strict
class GlmLikeConfig(PreTrainedConfig):
    """Configuration of every decoder in the family; defaults are the recipe of the GLM-4 report (arXiv 2406.12793).

    The recipe: no bias except on q, k, v; RMSNorm; SwiGLU with a feed-forward of 10/3 x hidden; grouped-query
    attention; rotary positions on half of each head. ``attention_mask="prefix", positions="rotary_2d"`` make it the
    recipe of a decoder that fills blanks. Ordinary transformers decoder arguments keep their meaning.
    Beyond them:

    * ``norm``, ``residual`` (with ``residual_scale``), ``feed_forward``, ``positions``, ``attention_mask``: what tells
      the generations apart; see :class:`~glmlike.spec.DecoderSpec`;
    * ``mask_token_id``, ``smask_token_id``, ``gmask_token_id`` (blanks) and ``sop_token_id`` (start of a piece): with
      ``attention_mask="prefix"``, masks and positions follow from these tokens;
    * ``rotary_pairing``: ``"interleaved"`` (the GLM line) or ``"halves"`` (LLaMA, Qwen, and with
      ``positions="rotary_2d"``, which rotates whole heads);
    * ``attention_bias``: bias of q, k, v; ``attention_output_bias``: bias of the output projection; ``mlp_bias``;
    * ``prefix_length`` (``pre_seq_len``), ``prefix_projection``: a P-tuning v2 prefix, as ChatGLM repositories have it,
      and the ``prefix_dropout`` of its training (0.1 in the original code); see :mod:`glmlike.ptuning`;
    * ``chunked_loss``: whether a model in training makes its loss without making logits (:mod:`glmlike.loss`); they are
      made when the output's ``logits`` are read. ``False`` makes them always. Not saved unless ``False``;
    * ``sliding_window`` with ``layer_types``: which layers attend to a window only (Qwen2); without it, all do.

    Names of the original ChatGLM configs (``num_layers``, ``padded_vocab_size``, ``kv_channels``, …) read and write the
    same values. ``config.spec`` is the validated :class:`~glmlike.spec.DecoderSpec`.

    Raises:
        SpecError: the fields describe no possible decoder.
    """

    model_type = "glmlike"
    tokenizer_class: ClassVar[str] = "GlmLikeTokenizer"  # for folders without a tokenizer_config.json; never saved
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]  # before and from 5.24
    attribute_map: ClassVar[dict[str, str]] = {
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
        "layernorm_epsilon": "rms_norm_eps",
        "add_qkv_bias": "attention_bias",
        "seq_length": "max_position_embeddings",
        "pre_seq_len": "prefix_length",
    }
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 151_552
    hidden_size: int = 4096
    intermediate_size: int | None = None
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 2
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131_072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: _RopeDict | None = None
    attention_bias: bool = True
    attention_output_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    norm: str = "rms"
    residual: str = "pre"
    residual_scale: float | int | None = None
    feed_forward: str = "swiglu"
    positions: str = "rotary"
    rotary_pairing: str | None = None
    rotary_precision: str = "float32"
    attention_mask: str = "causal"
    sliding_window: int | None = None
    prefix_length: int | None = 0
    prefix_projection: bool = False
    prefix_dropout: float | int = 0.1
    chunked_loss: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    smask_token_id: int | None = None
    gmask_token_id: int | None = None
    sop_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # our classes are registered; a copied auto_map would name files nobody saved
        if kwargs.get("layer_types") is None:
            kwargs.pop("layer_types", None)  # transformers takes the attribute's presence as "layers differ"
        pairing, share = hub_json.rotary_defaults(self.positions)
        self.rope_parameters = _fold_rope(self.rope_parameters, kwargs, share)
        if self.rotary_pairing is None:
            self.rotary_pairing = pairing
        if self.intermediate_size is None:
            self.intermediate_size = feed_forward_size(self.hidden_size)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = hub_json.head_dim({**vars(self), "model_type": self.model_type}, "config")
        super().__post_init__(**kwargs)
        if self.spec.feed_forward.startswith("gelu"):  # two matrices, no gate
            plan = type(self).base_model_tp_plan
            ungated = {name: how for name, how in plan.items() if not name.endswith("gate_proj")}
            object.__setattr__(self, "base_model_tp_plan", ungated)

    @property
    def spec(self) -> DecoderSpec:
        """The decoder these fields describe, validated anew at each access (a config can be edited)."""
        fields = {name: getattr(self, name, None) for name in _SPEC_FIELDS}
        return hub_json.read_native({"model_type": "glmlike", **fields}, "config")

    @classmethod
    def from_spec(cls, spec: DecoderSpec, **kwargs: Any) -> GlmLikeConfig:
        """The config of ``spec``; ``kwargs`` are the fields a spec lacks (token ids, dtype, dropout, labels)."""
        fields = hub_json.write_config(spec, "glmlike")
        del fields["model_type"], fields["architectures"]
        return GlmLikeConfig(**fields, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """The config of a folder or Hub id in any known format, translated to ours.

        Raises:
            ConfigError: the config.json names no known format.
        """
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        return cls.from_dict(config_dict, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from a config.json's content, translated when it is of a foreign format.

        ``generation="chatglm2"`` (or ``"chatglm3"``) says what ``rope_ratio`` means where no field does.
        ``rope_parameters`` (as of ``from_pretrained``) replaces the scaling; the rotary base, the rotated share and,
        where a scaling needs it, the trained length are the content's unless they are given too.
        """
        fields = translate(config_dict, kwargs.pop("generation", None))
        if kwargs.get("rope_parameters") is not None:
            fields = _with_rope(fields, kwargs.pop("rope_parameters"))
        return super().from_dict(fields, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; where the weights were read from is not one of them."""
        fields: dict[str, Any] = super().to_dict()
        for name in _UNSAVED:
            fields.pop(name, None)
        for name in ("prefix_dropout", "chunked_loss"):  # of use to few, and the same in all published models
            if fields.get(name) == getattr(type(self), name):
                del fields[name]
        return fields

    @property
    def fused_format(self) -> hub_json.Format | None:
        """The foreign format this config was read in, if its files hold fused matrices; not saved."""
        origin = getattr(self, _ORIGIN, None)
        return origin if origin in hub_json.FUSED_FORMATS else None

    @property
    def dropped_rows(self) -> int:
        """How many rows the embedding and head of the files begin with that this decoder has no use for; not saved.

        20000 image tokens in the first release of ChatGLM-6B, else 0.
        """
        return getattr(self, _DROPPED_ROWS, 0)


@strict
class ChatGLMConfig(GlmLikeConfig):
    """What ``model_type: "chatglm"`` reads as: ChatGLM-6B, ChatGLM2, CodeGeeX2, ChatGLM3 and GLM-4-9B repositories.

    It has GlmLikeConfig's fields; the original names (``num_layers``, ``padded_vocab_size``, …) are accepted and
    readable. Models built from it carry the plain :class:`GlmLikeConfig` that :meth:`native` gives.
    """

    model_type = "chatglm"

    def __init__(self, **kwargs: Any) -> None:
        generation = kwargs.pop("generation", None)
        if {"padded_vocab_size", "ffn_hidden_size", "inner_hidden_size", "position_encoding_2d"} & kwargs.keys():
            kwargs = translate({**kwargs, "model_type": "chatglm"}, generation)
            del kwargs["model_type"]
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from a chatglm config.json's content; see :meth:`GlmLikeConfig.from_dict`."""
        return super().from_dict(config_dict, **kwargs)

    def native(self) -> GlmLikeConfig:
        """The same fields as a :class:`GlmLikeConfig`."""
        return as_native(self)


class SharedGlmConfig(PreTrainedConfig):
    """What ``model_type: "glm"`` reads as: transformers' ``GlmConfig``, or ours for the GLM-10B line.

    Two families share this type, and their fields tell them apart; transformers alone reads a GLM-10B config as a wrong
    decoder of 40 layers, without a word. This class only chooses: no config object is ever of it.
    """

    model_type = "glm"

    def __new__(cls, **kwargs: Any) -> Any:
        return cls.from_dict({**kwargs, "model_type": "glm"})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config object of whichever family the fields are."""
        if hub_json.detect(config_dict, "config.json") == "glm-10b":
            return GlmLikeConfig.from_dict(config_dict, **kwargs)
        from transformers import GlmConfig

        return GlmConfig.from_dict(config_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """The config object of a folder or Hub id, of whichever family its fields are."""
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, *args, **kwargs)
        return cls.from_dict(config_dict, **kwargs)


def translate(config_dict: Mapping[str, Any], generation: hub_json.Generation | None = None) -> dict[str, Any]:
    """A config.json of any known format as the fields of ``GlmLikeConfig``; a native one only loses its ``auto_map``.

    Fields that neither the spec answers for nor any published code acts on are kept as they are.
    """
    fields = {key: value for key, value in config_dict.items() if key != "auto_map"}
    model_type = fields.get("model_type")
    if model_type == "glmlike" or (model_type is None and not hub_json.is_launch_arguments(fields)):
        return fields
    where = str(config_dict.get("_name_or_path") or f"config.json of model_type {model_type!r}")
    if model_type == "chatglm" and "num_hidden_layers" in fields and "num_layers" not in fields:
        return {**fields, "model_type": "glmlike"}  # a ChatGLMConfig's own fields are native already
    fmt = hub_json.detect(fields, where)
    spec = hub_json.read_spec(fields, where, generation=generation)
    if fmt == "chatglm" and generation is None and hub_json.rope_ratio_is_ambiguous(fields):
        logger.warning_once(
            f"{where}: rope_ratio={fields['rope_ratio']} is read as ChatGLM3 does (rotary base x ratio); no field "
            'tells whether this is ChatGLM2 (positions / ratio). For ChatGLM2-32k pass generation="chatglm2".'
        )
    native = {**hub_json.write_config(spec, "glmlike"), **hub_json.token_ids(fields)}
    answered = hub_json.CHATGLM_FIELDS | native.keys() | _LLAMA_STYLE_ONLY
    kept = {key: value for key, value in fields.items() if key not in answered}
    if bits := hub_json.integer_bits(fields, where):
        kept["quantization_config"] = {"quant_method": hub_json.INTEGER_METHOD, "bits": bits, "dequantize": True}
    return {**kept, **native, _ORIGIN: fmt, _DROPPED_ROWS: hub_json.dropped_rows(fields)}


def as_native(config: PreTrainedConfig) -> GlmLikeConfig:
    """Any known config object (GlmLike, ChatGLM, or transformers' Glm, Glm4, Llama, Qwen2) as a ``GlmLikeConfig``.

    Raises:
        ConfigError: the object is of no known format.
    """
    if type(config) is GlmLikeConfig:
        return config
    if not isinstance(config, PreTrainedConfig):
        raise ConfigError(f"expected a config object, got {type(config).__name__}: pass a config or a folder.")
    fields = config.to_dict()
    if isinstance(config, GlmLikeConfig):
        fields["model_type"] = "glmlike"
        fields |= {name: getattr(config, name) for name in _UNSAVED if hasattr(config, name)}
    fields.pop("transformers_version", None)
    native: GlmLikeConfig = GlmLikeConfig.from_dict(fields)
    native.name_or_path = config.name_or_path
    native._attn_implementation_internal = config._attn_implementation_internal
    return native


def _fold_rope(rope_parameters: _RopeDict | None, kwargs: _RopeDict, share: float) -> _RopeDict:
    """One dict of all rope settings: ``rope_parameters``, then the keyword arguments that transformers 4 had."""
    rope = {**(kwargs.pop("rope_scaling", None) or {}), **(rope_parameters or {})}
    for name, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", share)):
        given = kwargs.pop(name, None)
        rope.setdefault(name, default if given is None else given)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _with_rope(fields: dict[str, Any], given: _RopeDict) -> dict[str, Any]:
    """The fields with another rope scaling, and the base and share they have."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    own = {name: rope.get(name, fields.get(name)) for name in ("rope_theta", "partial_rotary_factor")}
    kept = {name: value for name, value in own.items() if value is not None}
    rest = {name: value for name, value in fields.items() if name not in ("rope_scaling", *own)}
    return {**rest, "rope_parameters": {**kept, **given}}


_ORIGIN, _DROPPED_ROWS = "_origin_format", "_dropped_rows"
_UNSAVED = (_ORIGIN, _DROPPED_ROWS)  # where the weights were read from
_SPEC_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    *("norm", "residual", "residual_scale", "feed_forward", "positions", "rotary_pairing", "rotary_precision"),
    *("attention_mask", "prefix_length", "prefix_projection"),
    *("attention_bias", "attention_output_bias", "mlp_bias", "layer_types", "sliding_window"),
    *("hidden_act", "rope_parameters"),
)
# Fields of llama, qwen2 and glm configs whose meaning the native fields already carry.
_LLAMA_STYLE_ONLY = frozenset(
    {
        *("rope_theta", "rope_scaling", "partial_rotary_factor", "pretraining_tp"),
        *("use_sliding_window", "max_window_layers", "layer_types"),
    }
)
