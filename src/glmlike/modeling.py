"""The one decoder of the GLM family and its heads, built from a GlmLikeConfig.

Every layer is two residual branches: ``h = norm(x); x = skip(x, h) + post(f(h))``, where ``skip`` is ``x`` or a
multiple of ``h``, and ``post`` the identity or an RMSNorm. Module and parameter names are LLaMA's.
Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

# No `from __future__ import annotations`: transformers reads `config: GlmLikeConfig` from the class annotations.
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring, can_return_tuple, is_torchdynamo_exporting
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmlike.attention import GlmLikeAttention
from glmlike.chat import ChatMixin
from glmlike.configuration import ChatGLMConfig, GlmLikeConfig, as_native
from glmlike.errors import ConfigError
from glmlike.feed_forward import GlmLikeMLP
from glmlike.four_bits import keep_4bit_exact
from glmlike.generation import InfillingGenerationMixin
from glmlike.loading import (
    keep_head,
    one_sentence,
    open_folder,
    require_decoder,
    require_integers_declared,
    require_readable,
    require_shapes,
    resolve_config,
    resolve_files,
    settle_opened,
    warn_about_cpu_float16,
)
from glmlike.lora import native_folder, require_magnitudes
from glmlike.loss import causal_lm_loss, is_plain_head
from glmlike.masking import attention_masks, default_positions, packed_by_positions, visible_contexts
from glmlike.norms import build_norm
from glmlike.outputs import DeferredLogits, LossOutput
from glmlike.packed_loading import recompress
from glmlike.packing import require_kernel, require_packable, restart
from glmlike.prefix import refuse_paged
from glmlike.prefix_encoder import PrefixEncoder, PrefixLinear, add_columns, refuse_unprefixed, settle_prefix
from glmlike.renamed import CACHE, takes_cache
from glmlike.rotary import GlmLikeRotaryEmbedding
from glmlike.spec import DecoderSpec
from glmlike.tables import look_up_positions, look_up_tokens


class GlmLikeDecoderLayer(GradientCheckpointingLayer):
    """An attention branch and a feed-forward branch, [B, T, D] to [B, T, D]."""

    def __init__(self, config: GlmLikeConfig, layer_idx: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = GlmLikeAttention(config, layer_idx)
        self.mlp = GlmLikeMLP(config)
        self.input_layernorm = build_norm(config)
        self.post_attention_layernorm = build_norm(config)
        self.residual_scale = config.residual_scale if config.residual == "scaled" else None
        self.sandwich = config.residual == "sandwich"
        if self.sandwich:
            self.post_self_attn_layernorm = build_norm(config)
            self.post_mlp_layernorm = build_norm(config)

    @takes_cache
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        if self.residual_scale is not None:
            residual = hidden_states * self.residual_scale
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        if self.sandwich:
            hidden_states = self.post_self_attn_layernorm(hidden_states)
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        if self.residual_scale is not None:
            residual = hidden_states * self.residual_scale
        hidden_states = self.mlp(hidden_states)
        if self.sandwich:
            hidden_states = self.post_mlp_layernorm(hidden_states)
        return residual + hidden_states


class GlmLikePreTrainedModel(PreTrainedModel):
    """What all heads share: loading from any known format, saving in the native one.

    ``from_pretrained`` takes a folder or Hub id in any known format (glmlike, glm-10b, glm-130b, chatglm-6b, chatglm,
    glm, glm4, llama, qwen2, meta), and every argument transformers knows; ``generation="chatglm2"`` (or ``"chatglm3"``)
    answers what ``rope_ratio`` means in the one case where no config field does. Pre-quantized ChatGLM folders become
    floats, or stay integers with ``quantization_config=GlmIntConfig(dequantize=False)``; matrices that GPTQ, AWQ or
    compressed-tensors packed become floats wherever transformers cannot keep them. Folders of rank
    files (GLM-130B, Meta's LLaMA) have no config.json; ``spec`` (a name such as ``"glm-130b"``, or a DecoderSpec) says
    their decoder where no ``model_config.json`` or ``params.json`` does and their shapes leave it open.
    ``save_pretrained`` writes native names and a ``glmlike`` config, whatever was loaded: what was read from fused
    matrices, then quantized, reloads exactly.
    """

    config: GlmLikeConfig
    config_class = GlmLikeConfig
    base_model_prefix = "model"
    classifier_head: ClassVar[str | None] = None
    """The module that a classifier adds to the decoder: it is never quantized."""
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["GlmLikeDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = [CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": GlmLikeDecoderLayer,
        "attentions": GlmLikeAttention,
    }
    # Tables of angles that old files carry; they are computed from the config (glm_lineage: ChatGLM2 to GLM-4, LLaMA).
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_(pos_)?emb\.inv_freq$"]

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any):
        super().__init__(as_native(config), *inputs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | PathLike[str] | None = None,
        generation: str | None = None,
        spec: str | DecoderSpec | None = None,
        **kwargs: Any,
    ) -> Any:
        """A model from any known format, on the fly; see the class for what is accepted.

        Raises:
            ConfigError: the config names no known format; or tensor-parallel / FSDP loading of fused matrices is asked
                for, which would be silently wrong.
            CheckpointError: a file is damaged, or lacks a tensor the decoder needs, or holds one it has no place for.
        """
        if kwargs.get("gguf_file") is not None:
            raise ConfigError(
                f"{kwargs['gguf_file']}: GGUF is read by transformers' own class of the architecture in it. Load it "
                "there with quantization_config=GgufConfig(dequantize=True), save_pretrained, and load the new folder."
            )
        where = "state_dict" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        opened = open_folder(pretrained_model_name_or_path, config, spec, generation, kwargs)
        if opened is not None:
            pretrained_model_name_or_path, (config, kwargs["state_dict"], folder) = None, opened
        require_readable(pretrained_model_name_or_path, kwargs)
        config = resolve_config(pretrained_model_name_or_path, config, generation, kwargs)
        config = resolve_files(pretrained_model_name_or_path, config, kwargs)
        if cls.classifier_head is not None:
            config = keep_head(cls.classifier_head, pretrained_model_name_or_path, config, kwargs)
        return_info = kwargs.pop("output_loading_info", False)
        reinitialize = kwargs.pop("ignore_mismatched_sizes", False)
        with one_sentence(where, bare=cls is GlmLikeModel):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the tensor's name and both shapes
                **kwargs,
            )
        settle_prefix(model, info, where, reinitialize=reinitialize)
        require_integers_declared(info, where)
        if not reinitialize:
            require_shapes(info, where)
        if opened is not None:
            settle_opened(model, folder, where, kwargs)
        if opened is not None or kwargs.get("state_dict") is None:  # tensors handed over are the caller's own choice
            require_decoder(model, info, where)
        if getattr(model, "is_loaded_in_4bit", False):
            keep_4bit_exact(model)
        warn_about_cpu_float16(model, where)
        return (model, info) if return_info else model

    def load_adapter(self, peft_model_id: str | PathLike[str] | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a LoRA adapter of another layout is put onto the native modules (glmlike.load_adapter).

        Raises:
            ConfigError, CheckpointError: it is of another decoder, or has no exact translation, or has DoRA magnitudes,
                which transformers leaves out without an error.
        """
        with native_folder(self, peft_model_id, **kwargs) as folder:
            info = super().load_adapter(None if folder is None else str(folder), *args, **kwargs)
        require_magnitudes(info, str(peft_model_id))
        return info

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PrefixLinear):
            module.initialize()

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Write native tensor names and a ``glmlike`` config.json, whatever format was loaded.

        Raises:
            ValueError: ``save_original_format=True``; ``glmlike convert`` writes other formats, whole and checked.
        """
        if kwargs.pop("save_original_format", False):
            raise ValueError(
                "save_original_format=True: a glmlike model is always saved in native names (reversing a fused layout "
                "after quantization corrupts it). Save, then `glmlike convert SRC DST --to FORMAT`."
            )
        recompress(self)
        return super().save_pretrained(save_directory, *args, save_original_format=False, **kwargs)


@auto_docstring(custom_intro="The decoder without a head: token ids or embeddings to hidden states [B, T, D].")
class GlmLikeModel(GlmLikePreTrainedModel):
    def __init__(self, config: GlmLikeConfig):
        super().__init__(config)
        config = self.config
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([GlmLikeDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = build_norm(config)
        if config.positions == "learned_2d":
            rows = config.max_position_embeddings + 1
            self.embed_positions = nn.Embedding(rows, config.hidden_size)
            self.embed_block_positions = nn.Embedding(rows, config.hidden_size)
        else:
            self.rotary_emb = GlmLikeRotaryEmbedding(config)
        self.prefix_encoder = PrefixEncoder(config) if config.prefix_length else None
        self.layer_types = list(config.spec.layer_types or ["full_attention"] * config.num_hidden_layers)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        seq_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        r"""
        seq_idx (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            Which of the samples packed into a row each token belongs to: samples do not see each other, and each has
            positions of its own. No cache is built then, and none may be given.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = look_up_tokens(self.embed_tokens, input_ids, self.config.vocab_size)
        infilling = self.config.attention_mask == "prefix"
        if infilling and past_key_values is None:
            position_ids, seq_idx = packed_by_positions(self.config, input_ids, position_ids, attention_mask, seq_idx)
        if seq_idx is not None:
            require_packable(seq_idx, inputs_embeds, past_key_values, attention_mask)
            seq_idx, use_cache = seq_idx.to(inputs_embeds.device), False
        elif use_cache and past_key_values is None and attention_mask is None and not infilling:
            use_cache = not restart(position_ids)  # beside a cache, transformers does not look for packed samples
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if infilling:
            refuse_paged(past_key_values, kwargs.get("cache"))
        if self.prefix_encoder is not None:
            refuse_unprefixed(self.config._attn_implementation, past_key_values, kwargs.get("cache"))
        if position_ids is None:
            position_ids = default_positions(
                self.config, input_ids, inputs_embeds, attention_mask, past_key_values, seq_idx
            )
        elif self.config.positions in ("rotary_2d", "learned_2d") and position_ids.ndim != 3:
            raise ValueError(
                f"position_ids {list(position_ids.shape)}: this decoder has two-dimensional positions, [B, 2, T]. "
                "Leave them out, or pass those of model.infilling_positions(input_ids)."
            )

        blocks = visible_contexts(self.config, input_ids, position_ids, attention_mask, past_key_values, seq_idx)
        if seq_idx is not None:
            require_kernel(
                self.config._attn_implementation, seq_idx.shape[0], attention_mask, kwargs.get("cu_seq_lens_q")
            )
        masks = attention_masks(
            self.config,
            set(self.layer_types),
            attention_mask,
            inputs_embeds,
            past_key_values,
            position_ids,
            blocks,
            seq_idx,
        )
        prefixes: list[Any] = [None] * len(self.layers)
        if self.prefix_encoder is not None:
            prefixes = self.prefix_encoder(inputs_embeds)
            masks = add_columns(masks, self.prefix_encoder.length, inputs_embeds)
        hidden_states = inputs_embeds
        position_embeddings = None
        if self.config.positions == "learned_2d":
            rows = self.config.max_position_embeddings + 1
            hidden_states = hidden_states + look_up_positions(self.embed_positions, position_ids[:, 0], rows)
            hidden_states = hidden_states + look_up_positions(self.embed_block_positions, position_ids[:, 1], rows)
        else:
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        layers = self.layers[: self.config.num_hidden_layers]
        for layer, layer_type, prefix in zip(layers, self.layer_types, prefixes, strict=False):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                use_cache=use_cache,
                prefix=prefix,
                **{**kwargs, CACHE: past_key_values},
            )
        hidden_states = self.norm(hidden_states)
        kept = past_key_values if use_cache else None  # generate takes a returned cache for a wish to use it
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE: kept})


@auto_docstring(
    custom_intro="The decoder with a language-modelling head: logits [B, T, V], and the loss when given labels."
)
class GlmLikeForCausalLM(GlmLikePreTrainedModel, InfillingGenerationMixin, ChatMixin):
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, Any]] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GlmLikeConfig):
        super().__init__(config)
        self.model = GlmLikeModel(self.config)
        self.vocab_size = self.config.vocab_size
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        seq_idx (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            Which of the samples packed into a row each token belongs to: samples do not see each other, and each has
            positions of its own. No cache is built then, and none may be given.
        skip_logits (`bool`, *optional*):
            With `labels`: `True` makes the loss alone, `False` the logits first. By default a model in training makes
            the loss without logits, at the labelled tokens only, and logits when the output's are read.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            seq_idx=seq_idx,
            **{**kwargs, CACHE: past_key_values},
        )
        hidden_states = outputs.last_hidden_state
        loss, logits, output_class = None, None, CausalLMOutputWithPast
        whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is not None and whole and self._makes_loss_alone(hidden_states, skip_logits):
            weight = self.lm_head.weight
            loss = causal_lm_loss(hidden_states, weight, labels, **kwargs)
            if not skip_logits:
                logits, output_class = DeferredLogits(hidden_states, weight), LossOutput
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept, :])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return output_class(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _makes_loss_alone(self, hidden_states: Tensor, skip_logits: bool | None) -> bool:
        """Whether the loss comes from glmlike.loss rather than from logits.

        Not if the config says so; not in evaluation, where logits are wanted too, unless asked; not within an exported
        graph, which runs without glmlike; not with a loss function of one's own; and not if the head is anything but a
        matrix: adapters, quantization, offloading and sharding act when the module is called.
        """
        if not self.config.chunked_loss or not (self.training if skip_logits is None else skip_logits):
            return False
        if is_torchdynamo_exporting() or hidden_states.is_meta or self.loss_function is not ForCausalLMLoss:
            return False
        return type(hidden_states) is Tensor and is_plain_head(self.lm_head)


class GlmLikeForSequenceClassification(GenericForSequenceClassification, GlmLikePreTrainedModel):
    """A linear score of the last token that is not padding: logits [B, num_labels]."""

    classifier_head = "score"

    def __init__(self, config: GlmLikeConfig):
        super().__init__(as_native(config))


class GlmLikeForTokenClassification(GenericForTokenClassification, GlmLikePreTrainedModel):
    """A linear score of every token: logits [B, T, num_labels]."""

    classifier_head = "score"

    def __init__(self, config: GlmLikeConfig):
        super().__init__(as_native(config))


class GlmLikeForQuestionAnswering(GenericForQuestionAnswering, GlmLikePreTrainedModel):
    """Start and end scores of an answer span: two logits [B, T]."""

    classifier_head = "qa_outputs"

    def __init__(self, config: GlmLikeConfig):
        super().__init__(as_native(config))


def _chatglm_face(native: type[GlmLikePreTrainedModel], name: str, what: str) -> Any:
    """The class that an original ``auto_map`` names; it loads and builds ``native``, config included."""

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return native.from_pretrained(*args, **kwargs)

    def _from_config(cls: Any, config: PreTrainedConfig, /, **kwargs: Any) -> Any:
        return native._from_config(as_native(config), **kwargs)

    return type(
        name,
        (native,),
        {
            "__doc__": f"The name original ChatGLM repositories give {what}; makes a :class:`{native.__name__}`.",
            "__module__": __name__,
            "config_class": ChatGLMConfig,
            "from_pretrained": classmethod(from_pretrained),
            "_from_config": classmethod(_from_config),
        },
    )


# In these repositories AutoModel means the language model with its head (auto_map: AutoModel ->
# modeling_chatglm.ChatGLMForConditionalGeneration); the bare decoder is ChatGLMModel, by name.
ChatGLMForConditionalGeneration = _chatglm_face(
    GlmLikeForCausalLM, "ChatGLMForConditionalGeneration", "the language model"
)
ChatGLMForSequenceClassification = _chatglm_face(
    GlmLikeForSequenceClassification, "ChatGLMForSequenceClassification", "the sequence classifier"
)
ChatGLMForTokenClassification = _chatglm_face(
    GlmLikeForTokenClassification, "ChatGLMForTokenClassification", "a token classifier"
)
ChatGLMForQuestionAnswering = _chatglm_face(
    GlmLikeForQuestionAnswering, "ChatGLMForQuestionAnswering", "an extractive question-answering model"
)
ChatGLMModel = _chatglm_face(GlmLikeModel, "ChatGLMModel", "the decoder without a head")
