"""What commands load: a model as it is, or with positions stretched for longer texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmlike.commands.models import load
from glmlike.data import TINY
from glmlike.errors import ConfigError
from specs import SPECS
from tokenization.tokenizers_for_tests import small_tokenizer_of


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    make(SPECS["chatglm2"]).save_pretrained(tmp_path)
    small_tokenizer_of("glm-4").save_pretrained(tmp_path)
    return tmp_path


def test_positions_are_stretched_and_nothing_else(folder: Path) -> None:
    plain, _ = load(str(folder))
    model, tokenizer = load(str(folder), rope="yarn:4")
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.rope_parameters["rope_theta"] == plain.config.rope_parameters["rope_theta"]
    assert model.config.max_position_embeddings == 4 * plain.config.max_position_embeddings
    ours, theirs = model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert len(tokenizer)


@pytest.mark.parametrize(
    ("rope", "said"), [("yarn", "KIND:FACTOR"), ("yarn:much", "KIND:FACTOR"), ("twice:2", "expected one of")]
)
def test_a_scaling_that_is_none(folder: Path, rope: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(str(folder), rope=rope)


def test_positions_that_cannot_be_stretched() -> None:
    with pytest.raises(ConfigError, match="two-dimensional"):
        load(str(TINY), rope="yarn:2")
