"""Running a decoder over calibration text, and what pruning asks of a model before it cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from glmlike.configuration import GlmLikeConfig
from glmlike.errors import PruningError

Batch = Tensor | Mapping[str, Any]
# The module's number, what enters it [B, T, ...], what leaves it if asked for, and which tokens count [B, T].
Observer = Callable[[int, Tensor, Tensor | None, Tensor], None]
_NOT_THE_DECODERS = ("labels", "num_items_in_batch", "special_tokens_mask")


def decoder_of(model: PreTrainedModel) -> Any:
    """The decoder in ``model``, whose layers can be taken and cut.

    Raises:
        PruningError: it is no decoder of ours, is wrapped or hooked (adapters, offloading), or has no numbers yet.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or not isinstance(config, GlmLikeConfig):
        raise PruningError(
            f"{type(model).__name__}: expected a model of a class of glmlike. Load it with "
            "GlmLikeForCausalLM.from_pretrained, which reads llama, qwen2 and glm folders too; merge a PEFT model "
            "first (merge_and_unload)."
        )
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise PruningError("an adapter is loaded, which fits the uncut matrices: merge it (merge_and_unload) and save.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise PruningError("some parameters are on the meta device or offloaded: load the model whole, then prune.")
    return model.base_model


def configs_of(model: PreTrainedModel) -> list[Any]:
    """The configs of a model and its decoder, which may be one object or two of equal content."""
    return list({id(part.config): part.config for part in (model, model.base_model)}.values())


@torch.no_grad()
def observe(
    model: PreTrainedModel, batches: Iterable[Batch], modules: Iterable[nn.Module], see: Observer, *, output: bool
) -> int:
    """Run ``model``'s decoder in evaluation mode over ``batches``; ``see`` is shown what passes each of ``modules``.

    A batch is token ids [B, T] or the decoder's keyword arguments; padding of an ``attention_mask`` [B, T] does not
    count. Returned: the number of tokens that count. The mode of the model is restored.

    Raises:
        PruningError: there is no token in the batches.
    """
    decoder = decoder_of(model)
    counted: list[Tensor] = []

    def watch(module: nn.Module, number: int) -> Any:
        if output:
            return module.register_forward_hook(lambda _, args, out: see(number, args[0], out, counted[-1]))
        return module.register_forward_pre_hook(lambda _, args: see(number, args[0], None, counted[-1]))

    training, total = model.training, 0
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for number, module in enumerate(modules):
            stack.callback(watch(module, number).remove)
        model.eval()
        for batch in batches:
            inputs = _inputs(batch, decoder.embed_tokens.weight.device)
            counted.append(_counted(inputs))
            total += int(counted[-1].sum())
            decoder(**inputs, use_cache=False)
    if not total:
        raise PruningError("no token in the calibration batches: pass an iterable of token ids [B, T] or of dicts.")
    return total


def _inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in given.items()
        if name not in _NOT_THE_DECODERS
    }


def _counted(inputs: Mapping[str, Any]) -> Tensor:
    """[B, T] of true where a token is text."""
    tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"][..., 0]
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool()
    return torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
