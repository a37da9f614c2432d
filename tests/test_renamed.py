"""The cache argument has the installed transformers' name, and the older name where transformers keeps it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from glmlike import GlmLikeForCausalLM, GlmLikeModel
from glmlike.modeling import GlmLikeDecoderLayer
from glmlike.renamed import CACHE
from specs import SPECS


@pytest.mark.parametrize("owner", [GlmLikeModel, GlmLikeForCausalLM])
def test_the_signature_says_the_installed_name(owner: Any) -> None:
    names = [name for name in inspect.signature(owner.forward).parameters if name in ("cache", "past_key_values")]
    assert names == [CACHE]
    assert f"{CACHE} (" in owner.forward.__doc__


@pytest.mark.parametrize("owner", [GlmLikeModel, GlmLikeForCausalLM, GlmLikeDecoderLayer])
def test_it_stands_where_transformers_has_it(owner: Any) -> None:
    parameters = list(inspect.signature(owner.forward).parameters)
    assert parameters.index(CACHE) == 4


@torch.no_grad()
def test_the_old_name_still_works(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    ids = torch.arange(3, 12)[None]
    full = model(ids).logits
    for name in {CACHE, "past_key_values"}:
        cache = DynamicCache(config=model.config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model(ids[:, :5], **{name: cache})
            rest = model(ids[:, 5:], **{name: cache})
        torch.testing.assert_close(rest.logits, full[:, 5:], atol=1e-5, rtol=1e-5)
        assert rest[CACHE] is cache
