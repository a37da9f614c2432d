"""Every GLM ever released, in the Hugging Face transformers people have today. No remote code.

Importing this package registers its classes with transformers' Auto classes; that is its only side effect. Nothing
heavy is imported before it is used: registration itself waits until transformers' Auto classes are there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glmlike.registration import register

__version__ = "0.1.0"

if TYPE_CHECKING:
    from glmlike.checkpoint import ConversionReport, convert, convert_adapter, detect, merge, verify
    from glmlike.configuration import ChatGLMConfig, GlmLikeConfig
    from glmlike.errors import CannotExpressError, CheckpointError, ConfigError, GlmLikeError, SpecError, TokenizerError
    from glmlike.lora import load_adapter
    from glmlike.modeling import (
        GlmLikeForCausalLM,
        GlmLikeForQuestionAnswering,
        GlmLikeForSequenceClassification,
        GlmLikeForTokenClassification,
        GlmLikeModel,
        GlmLikePreTrainedModel,
    )
    from glmlike.quantization import GlmIntConfig
    from glmlike.spec import DecoderSpec
    from glmlike.tokenization.tokenizer import GlmLikeTokenizer

_HOME = {
    "DecoderSpec": "spec",
    "GlmLikeConfig": "configuration",
    "ChatGLMConfig": "configuration",
    "GlmLikePreTrainedModel": "modeling",
    "GlmLikeModel": "modeling",
    "GlmLikeForCausalLM": "modeling",
    "GlmLikeForSequenceClassification": "modeling",
    "GlmLikeForTokenClassification": "modeling",
    "GlmLikeForQuestionAnswering": "modeling",
    "ConversionReport": "checkpoint",
    "convert": "checkpoint",
    "convert_adapter": "checkpoint",
    "detect": "checkpoint",
    "load_adapter": "lora",
    "merge": "checkpoint",
    "verify": "checkpoint",
    "GlmIntConfig": "quantization",
    "GlmLikeTokenizer": "tokenization.tokenizer",
    "GlmLikeError": "errors",
    "SpecError": "errors",
    "TokenizerError": "errors",
    "ConfigError": "errors",
    "CannotExpressError": "errors",
    "CheckpointError": "errors",
}

__all__ = [
    "CannotExpressError",
    "ChatGLMConfig",
    "CheckpointError",
    "ConfigError",
    "ConversionReport",
    "DecoderSpec",
    "GlmIntConfig",
    "GlmLikeConfig",
    "GlmLikeError",
    "GlmLikeForCausalLM",
    "GlmLikeForQuestionAnswering",
    "GlmLikeForSequenceClassification",
    "GlmLikeForTokenClassification",
    "GlmLikeModel",
    "GlmLikePreTrainedModel",
    "GlmLikeTokenizer",
    "SpecError",
    "TokenizerError",
    "convert",
    "convert_adapter",
    "detect",
    "load_adapter",
    "merge",
    "register",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"glmlike.{_HOME[name]}"), name)
    raise AttributeError(f"module 'glmlike' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
