"""The one name that transformers changed within the supported versions: 5.24 calls the key-value cache ``cache``.

Before, the argument and the output field were ``past_key_values``, and ``cache`` was the paged cache of continuous
batching, which only passes through. Our modules say ``past_key_values``; both ends are translated here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers.masking_utils import create_causal_mask

CACHE: str = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What the installed transformers calls the key-value cache, as an argument and in outputs."""

Forward = Callable[..., Any]


def takes_cache(forward: Forward) -> Forward:
    """A forward with a ``past_key_values`` argument, under the name that the installed version calls it by.

    Where that is ``cache``, the old name still works and warns, as in transformers' own classes.
    """
    if CACHE == "past_key_values":
        return forward
    from transformers.utils.deprecation import deprecate_kwarg

    @functools.wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return forward(*args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [
        parameter.replace(name="cache") if parameter.name == "past_key_values" else parameter
        for parameter in signature.parameters.values()
    ]
    renamed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    old_name: Callable[[Forward], Forward] = deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    return _filled_first(old_name(renamed))


def _filled_first(forward: Forward) -> Forward:
    """Where both names are given, an empty ``cache`` yields to a filled ``past_key_values``.

    PEFT (0.21) hands its prefix over under the old name while ``generate`` passes the cache it has just made under the
    new one; transformers keeps the new, and the prefix would be lost.
    """

    @functools.wraps(forward)
    def settled(*args: Any, **kwargs: Any) -> Any:
        cache, filled = kwargs.get("cache"), kwargs.get("past_key_values")
        if cache is not None and filled is not None and not cache.get_seq_length() and filled.get_seq_length():
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    return settled
