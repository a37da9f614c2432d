"""generate for infilling decoders: transformers' own, with masks and positions that follow from whole rows of tokens.

Causal decoders pass through. Nothing is kept between steps: every step derives the positions of all tokens it is given.
Shapes: B rows, T tokens of the prompt.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_masks_for_generate
from transformers.utils import cached_file

from glmlike.configuration import GlmLikeConfig
from glmlike.generation_defaults import all_stops
from glmlike.prefix import continued_positions, infilling_positions, prompt_positions, refuse_paged, require_whole_rows
from glmlike.prefix_encoder import refuse_unprefixed
from glmlike.renamed import CACHE

_PAGED = object()  # stands for the cache of continuous batching, which has no length


class InfillingGenerationMixin(GenerationMixin):
    """GenerationMixin for decoders of ``attention_mask="causal"`` and ``"prefix"`` alike."""

    config: GlmLikeConfig

    def infilling_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """Positions [B, 2, T] (or [B, T]) of whole rows of an infilling decoder; see glmlike.prefix."""
        return infilling_positions(input_ids, attention_mask, self.config, seq_idx)

    @functools.wraps(GenerationMixin.generate)
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; explicit ``position_ids`` of an infilling prompt are used and continued.

        Raises:
            ValueError: positions that are not one for each token of the prompt; packed samples; what a cache cannot
                continue (see ``require_whole_rows``); embeddings that come without the positions of their tokens.
        """
        kwargs = _from_original_tokenizer(kwargs)
        given = kwargs.get("position_ids")
        if self.config.attention_mask == "prefix" and given is not None:
            ids = inputs if inputs is not None else kwargs.get("input_ids")
            embeddings = kwargs.get("inputs_embeds")
            if ids is not None and embeddings is not None:
                raise ValueError("generate with input_ids, inputs_embeds and position_ids: pass one of the first two.")
            prompt = next((tensor for tensor in (ids, embeddings) if tensor is not None), given.movedim(-1, 1))
            kwargs["prompt_position_ids"] = prompt_positions(kwargs.pop("position_ids"), prompt, self.config)
        return super().generate(inputs, *args, **kwargs)

    def adjust_generation_fn(self, generation_config: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers reads the generation config of a folder; without such a file, with all stops of the model.

        Called by ``from_pretrained``. A file, or a config that is passed, is the user's and stays as it is.
        """
        super().adjust_generation_fn(generation_config, *args, **kwargs)
        if generation_config is not None or not self.can_generate():
            return
        stops = all_stops(self.config)
        if stops is not None and not _has_generation_file(*args, **kwargs):
            self.generation_config.eos_token_id = stops

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, behind ``generate_batch`` too; refused before its thread starts, which would not end.

        Raises:
            ConfigError: a decoder whose context or P-tuning prefix a paged cache would drop.
        """
        if self.config.attention_mask == "prefix":
            refuse_paged(_PAGED)
        if self.config.prefix_length:
            refuse_unprefixed(self.config._attn_implementation, _PAGED)
        return super().init_continuous_batching(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        prompt_position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers does it, with the positions of blank infilling where the decoder has them.

        ``prompt_position_ids`` are what ``generate`` was given as ``position_ids``, under a name of their own because
        transformers continues and repeats three-dimensional ones as those of images.
        """
        if kwargs.get("seq_idx") is not None:
            raise ValueError("generate with seq_idx: packed samples cannot be continued. Give one sample a row.")
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if self.config.attention_mask == "prefix":
            padding = kwargs.get("attention_mask")
            positions = self._row_positions(input_ids, inputs_embeds, padding, prompt_position_ids)
            cache = kwargs.get(CACHE)
            beginning = is_first_iteration or next_sequence_length is None  # older versions prefill chunks so
            if beginning and inputs_embeds is None and cache is not None:
                seen, given = int(cache.get_seq_length()), prompt_position_ids is not None
                require_whole_rows(input_ids, padding, seen, self.config, positions_given=given)
            tokens = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
            inputs["position_ids"] = positions[..., -tokens.shape[1] :]
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Any:
        """None for an infilling decoder: they follow from the token ids anew at every step."""
        if self.config.attention_mask == "prefix":
            return None
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def _row_positions(
        self, input_ids: Tensor, embeddings: Tensor | None, padding: Tensor | None, prompt: Tensor | None
    ) -> Tensor:
        """Positions of all tokens that generation has come to, prompt included."""
        if prompt is None:
            if embeddings is not None:
                raise ValueError(
                    "generate with inputs_embeds and attention_mask='prefix': masks and positions follow from token "
                    "ids. Pass input_ids alone, or the prompt's position_ids too (two-dimensional ones say the mask)."
                )
            return infilling_positions(input_ids, padding, self.config)
        length = input_ids.shape[1] + (0 if embeddings is None else embeddings.shape[1])
        return continued_positions(prompt, padding, length)

    def create_masks_for_generate(self, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """The masks of a static cache; an infilling decoder makes its own, since they follow from the token ids."""
        if self.config.attention_mask == "prefix":
            return attention_mask
        kwargs["config"] = self.config
        return create_masks_for_generate(attention_mask=attention_mask, **kwargs)


def _has_generation_file(
    from_auto_class: Any = None,
    from_pipeline: Any = None,
    pretrained_model_name_or_path: Any = None,
    cache_dir: Any = None,
    *_: Any,
    revision: Any = None,
    subfolder: str | None = None,
    **kwargs: Any,
) -> bool:
    """Whether the folder, or the Hub's copy that was just asked for it, has a generation_config.json.

    The arguments are those of ``adjust_generation_fn``; the cache is asked, not the Hub once more.
    """
    where = kwargs.get("pretrained_model_name_or_path", pretrained_model_name_or_path)
    if where is None:
        return False
    found = cached_file(
        where,
        "generation_config.json",
        cache_dir=kwargs.get("cache_dir", cache_dir),
        revision=revision,
        subfolder=subfolder or "",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return found is not None


def _from_original_tokenizer(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Inputs that GLM-10B's ``build_inputs_for_generation`` made, as ``generate`` takes them; others as they are.

    Its mask and positions reach as far as the longest piece. Both follow from the ids and the padding, so only that is
    taken from them.
    """
    mask = kwargs.get("generation_attention_mask")
    if mask is None:
        return kwargs
    left = {name: value for name, value in kwargs.items() if name not in ("generation_attention_mask", "position_ids")}
    ids = kwargs["input_ids"]
    context = mask[:, 0, -1, : ids.shape[1] - 1]
    start = context.new_ones((len(ids), 1))
    return {**left, "attention_mask": torch.cat((context, start), 1)}
