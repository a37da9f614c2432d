"""How each generation generates by default: where it stops, and the sampling values its authors published.

Stops and padding are given to a model that is loaded without a generation_config.json. Sampling values are not: the
originals' ``generate`` takes the likeliest token, and only their ``chat`` samples; ``chat`` here takes them.

Sources: modeling_chatglm.py (``chat``) of ChatGLM-6B, ChatGLM2, ChatGLM3; generation_config.json of glm-4-9b-chat,
Meta-Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct; the README of GLM-Z1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.generation import GenerationConfig

from glmlike.errors import ConfigError


@dataclass(frozen=True)
class Defaults:
    """The ids that end a text, the one that pads, and the values to sample with (empty: none were published)."""

    stops: tuple[int, ...]
    pad: int
    sampling: Mapping[str, Any] = field(default_factory=dict)


_CHAT = {"max_length": 8192, "do_sample": True, "top_p": 0.8, "temperature": 0.8}
_CHATGLM_6B = {"max_length": 2048, "do_sample": True, "top_p": 0.7, "temperature": 0.95}
_GLM4 = Defaults((151_329, 151_336, 151_338), 151_329, _CHAT)

DEFAULTS: Mapping[str, Defaults] = {
    "glm-10b": Defaults((50_258,), 50_256),
    "glm-10b-chinese": Defaults((50_007,), 50_000),
    "glm-bert": Defaults((30_523,), 0),
    "glm-roberta": Defaults((50_266,), 1),
    "glm-130b": Defaults((150_005, 20_002), 20_003),
    "chatglm-6b": Defaults((130_005,), 3, _CHATGLM_6B),
    "chatglm2": Defaults((2,), 0, _CHAT),
    "codegeex2": Defaults((2,), 0),
    "chatglm3": Defaults((2, 64_795, 64_797), 0, _CHAT),
    "glm-4": _GLM4,
    "codegeex4": _GLM4,
    "glm-4-0414": Defaults(_GLM4.stops, _GLM4.pad),
    "glm-z1": Defaults(_GLM4.stops, _GLM4.pad, {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 40}),
    "glm-edge": Defaults((59_246, 59_253, 59_255), 59_246),
    "llama-3": Defaults((128_001, 128_008, 128_009), 128_004, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
    "qwen2.5": Defaults(
        (151_645, 151_643),
        151_643,
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    ),
}
"""The defaults of every generation by its name."""

# Rows of the embedding, which tell the vocabulary, and the generation whose stops hold for all that share it. ChatGLM2
# and ChatGLM3 do; what ChatGLM3 adds is of rows that ChatGLM2 never trained and never names.
_BY_ROWS = {
    65_024: "chatglm3",
    151_552: "glm-4",
    59_264: "glm-edge",
    128_256: "llama-3",
    151_936: "qwen2.5",
    152_064: "qwen2.5",
}


def generation_config(generation: str) -> GenerationConfig:
    """Everything published for a generation as a GenerationConfig: stops, padding, sampling values.

    Raises:
        ConfigError: a name that is no generation.
    """
    if generation not in DEFAULTS:
        raise ConfigError(f"generation={generation!r} is not known; known: {', '.join(sorted(DEFAULTS))}.")
    found = DEFAULTS[generation]
    return GenerationConfig(eos_token_id=list(found.stops), pad_token_id=found.pad, **found.sampling)


def all_stops(config: Any) -> list[int] | None:
    """Every id that ends a text of this decoder; None where that is not known.

    Known are published vocabularies, by their number of rows, whose config.json names some of the stops: ChatGLM3's
    names ``</s>`` alone, and its chat stops at two role tokens as well. Other ids in the config are its owner's choice.
    """
    said = config.eos_token_id
    said = set(said if isinstance(said, (list, tuple)) else [] if said is None else [said])
    generation = _BY_ROWS.get(config.vocab_size)
    if not said or generation is None or not said <= set(DEFAULTS[generation].stops):
        return None
    return list(DEFAULTS[generation].stops)


def chat_arguments(generation: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``generate`` in ``chat``: published values under what the caller gave."""
    found = DEFAULTS.get(generation)
    arguments = {"num_beams": 1, **((found.sampling if found else {}) or _CHAT), **given}
    if "max_new_tokens" in given and "max_length" not in given:
        arguments.pop("max_length", None)
    if not arguments["do_sample"]:
        sampling = ("top_p", "top_k", "temperature")
        arguments = {name: value for name, value in arguments.items() if name not in sampling or name in given}
    return arguments
