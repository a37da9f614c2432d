"""P-tuning v2 prefixes (arXiv 2110.07602): trained keys and values that every token of every layer sees.

Facts from modeling_chatglm.py of ChatGLM-6B and ChatGLM2 (``PrefixEncoder``, ``get_prompt``): a row of the table holds
a key and a value of each layer; prefix keys are not rotated and no padding hides them; positions of the tokens do not
count them; in training the rows have a dropout of 0.1. They are not kept in the cache here, so that caches, positions
and ``generate`` know nothing of them.
Shapes: B batch, T tokens, S keys, K key-value heads, P prefix tokens, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from glmlike.configuration import GlmLikeConfig
from glmlike.errors import CheckpointError, ConfigError

logger = logging.get_logger(__name__)

_NAME = "prefix_encoder."
_KNOWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")


class PrefixLinear(nn.Module):
    """A matrix and its bias, no ``nn.Linear``: quantizers and LoRA, which look for those, leave the prefix alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.initialize()

    def initialize(self) -> None:
        """Random numbers as in ``nn.Linear``, which the original prefixes began from."""
        bound = self.weight.shape[1] ** -0.5
        initialization.uniform_(self.weight, -bound, bound)
        initialization.uniform_(self.bias, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.weight, self.bias)


class PrefixEncoder(nn.Module):
    """The table of prefix rows and, with ``prefix_projection``, the two matrices that make them keys and values."""

    def __init__(self, config: GlmLikeConfig) -> None:
        super().__init__()
        spec = config.spec
        self.shape = (spec.prefix_length, spec.num_hidden_layers, 2, spec.num_key_value_heads, spec.head_dim)
        self.length = spec.prefix_length
        self.dropout = config.prefix_dropout
        self.embedding = nn.Embedding(spec.prefix_length, spec.prefix_row_size)
        self.trans: nn.Sequential | None = None
        if spec.prefix_projection:
            wide, narrow = spec.prefix_size, spec.hidden_size
            self.trans = nn.Sequential(
                PrefixLinear(spec.prefix_row_size, narrow), nn.Tanh(), PrefixLinear(narrow, wide)
            )

    def rows(self, device: torch.device) -> Tensor:
        """[P, layers * 2 * K * H]: every prefix token's key and value of each layer in turn."""
        rows: Tensor = self.embedding(torch.arange(self.length, device=device))
        if self.trans is not None:
            rows = self.trans(rows)
        return rows

    def forward(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The key and value [B, K, P, H] of each layer for activations ``like`` [B, T, D], in their dtype."""
        rows = self.rows(like.device).to(like.dtype).view(self.shape).permute(1, 2, 3, 0, 4)
        batch = rows[:, :, None].expand(-1, -1, like.shape[0], -1, -1, -1)
        if self.training and self.dropout:
            batch = nn.functional.dropout(batch, self.dropout)
        return [(pair[0], pair[1]) for pair in batch.unbind(0)]


def prepend(prefix: tuple[Tensor, Tensor], key: Tensor, value: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    """Keys and values [B, K, P + S, H]; of a static cache only as much as the mask counts (the rest is still empty)."""
    seen = mask.shape[-1] - prefix[0].shape[2] if isinstance(mask, Tensor) else key.shape[2]
    pairs = zip(prefix, (key, value), strict=True)
    joined = [torch.cat((first.to(rest.dtype), rest[:, :, :seen]), dim=2) for first, rest in pairs]
    return joined[0], joined[1]


def add_columns(masks: dict[str, Any], length: int, like: Tensor) -> dict[str, Any]:
    """The masks [B, 1, T, S] with ``length`` columns in front that every token sees; ``like`` is [B, T, D]."""
    return {layer_type: _add_columns(mask, length, like) for layer_type, mask in masks.items()}


def _add_columns(mask: Any, length: int, like: Tensor) -> Any:
    tokens = like.shape[1]
    if mask is None:  # transformers' word for "causal": nothing to hide from one token, a triangle for several
        if tokens == 1:
            return None
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=like.device).tril()
    if isinstance(mask, Tensor):
        return nn.functional.pad(mask, (length, 0), value=1 if mask.dtype == torch.bool else 0)
    from torch.nn.attention.flex_attention import create_block_mask

    seen = mask.mask_mod

    def prefix_or_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible: Tensor = (key < length) | seen(batch, head, query, (key - length).clamp(min=0))
        return visible

    queries, keys = mask.seq_lengths
    return create_block_mask(
        prefix_or_seen, B=mask.shape[0], H=None, Q_LEN=queries, KV_LEN=keys + length, device=str(like.device)
    )


def refuse_unprefixed(attention: str | None, *caches: Any) -> None:
    """Raise ConfigError for an attention implementation or cache that does not count the prefix among the keys."""
    if attention not in _KNOWN_ATTENTION:
        raise ConfigError(
            f"attn_implementation={attention!r} with a P-tuning prefix: it takes no mask or keeps keys of its own, and "
            "would cut or drop the prefix without a word. Use 'sdpa', 'eager' or 'flex_attention'."
        )
    if any(cache is not None and not hasattr(cache, "get_seq_length") for cache in caches):
        raise ConfigError(
            "continuous batching (generate_batch) with a P-tuning prefix: its paged cache has no place for keys before "
            "the first token of each row. Use generate."
        )


def settle_prefix(model: PreTrainedModel, info: dict[str, Any], where: str, *, reinitialize: bool = False) -> None:
    """The files hold the prefix that config.json describes, or there is none.

    A config may promise a prefix that the files lack (chatglm-6b-slim: ``pre_seq_len`` 128): the decoder is then kept
    without one, and a warning says so once. ``info`` is transformers' loading info; what is settled leaves it.
    ``reinitialize``: a prefix of another shape is to be replaced by a new one.

    Raises:
        CheckpointError: a prefix of another width or length, a projection with part of its tensors, a prefix that
            config.json does not mention, or files that hold nothing but a prefix.
    """
    ours = {name for name, _ in model.named_parameters() if _NAME in name}
    missing = {name for name in info["missing_keys"] if _NAME in name}
    extra = sorted(name for name in info["unexpected_keys"] if _NAME in name)
    length, projection = model.config.prefix_length, model.config.prefix_projection
    others = {name for name, _ in model.named_parameters()} - ours
    if (extra or ours - missing) and others and others <= set(info["missing_keys"]):
        raise CheckpointError(
            f"{where}: the files hold a P-tuning prefix and no decoder. Load the base model from its own folder, then "
            f"`from glmlike.ptuning import load_prefix; load_prefix(model, {where!r})`."
        )
    if extra:
        raise CheckpointError(
            f"{where}: the files hold {extra[0]!r}, but config.json has pre_seq_len={length or None}, "
            f"prefix_projection={str(projection).lower()}. Set pre_seq_len to the rows of "
            "prefix_encoder.embedding.weight, and prefix_projection to whether there are prefix_encoder.trans tensors."
        )
    mismatched = [] if reinitialize else [entry for entry in info["mismatched_keys"] if _NAME in entry[0]]
    for name, found, asked in sorted(mismatched, key=str):
        raise CheckpointError(
            f"{where}: {name!r} has shape {list(found)} in the files, but pre_seq_len={length} and "
            f"prefix_projection={str(projection).lower()} of this decoder ask for {list(asked)}: {_width(model)}. "
            "Correct config.json, or use the base model that the prefix was trained with."
        )
    if ours and missing == ours:
        logger.warning_once(
            f"{where}: config.json has pre_seq_len={length}, but the files hold no prefix_encoder: loaded without a "
            "prefix. In glmlike.ptuning, load_prefix takes one from another folder and start_prefix begins a new one."
        )
        info["missing_keys"] = type(info["missing_keys"])(set(info["missing_keys"]) - missing)
        detach(model)
    elif missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of the P-tuning prefix are in none of its files (first: "
            f"{min(missing)!r}), but config.json has prefix_projection={str(projection).lower()}. Correct it, or "
            "complete the files."
        )


def _width(model: PreTrainedModel) -> str:
    spec = model.config.spec
    return (
        f"a row holds 2 x {spec.num_hidden_layers} layers x {spec.num_key_value_heads} key-value heads x "
        f"{spec.head_dim} = {spec.prefix_size} numbers"
    )


def detach(model: PreTrainedModel) -> None:
    """Take the prefix off a model and out of its config."""
    set_lengths(model, 0, False)
    model.base_model.prefix_encoder = None


def set_lengths(model: PreTrainedModel, length: int, projection: bool) -> None:
    """Write the two prefix fields of a model's configs (a head and its decoder may each have one)."""
    for config in {id(part.config): part.config for part in (model, model.base_model)}.values():
        config.prefix_length, config.prefix_projection = length, projection
