"""Loading a model for a command, so that what goes wrong is one sentence."""

from __future__ import annotations

from typing import Any

from glmlike.errors import ConfigError, GlmLikeError


def load(model: str, *, dtype: str = "auto", device: str | None = None, rope: str | None = None) -> tuple[Any, Any]:
    """A causal language model, ready to run, and its tokenizer, from a folder or a Hub id.

    ``rope``, as "yarn:4", stretches its positions (:func:`glmlike.long_context.stretched`).

    Raises:
        ConfigError: neither, or no such model or dtype or device or scaling.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype {dtype}: expected auto, float32, float16 or bfloat16.")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = (
            _stretched(model, rope, dtype) if rope else AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        ).eval()
    except GlmLikeError:
        raise
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{model}: cannot be loaded ({type(error).__name__}: {reason})") from None
    try:
        return (loaded if device is None else loaded.to(device)), tokenizer
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--device {device}: cannot be used ({reason})") from None


def _stretched(model: str, rope: str, dtype: str) -> Any:
    from glmlike import GlmLikeForCausalLM
    from glmlike.long_context import stretched

    return GlmLikeForCausalLM.from_pretrained(model, config=stretched(model, rope), dtype=dtype)
