"""Ids and positions that have no row in a table are named, where torch says "index out of range in self"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from glmlike import GlmLikeConfig, GlmLikeForCausalLM, GlmLikeForTokenClassification, GlmLikeModel
from glmlike.errors import GlmLikeError, VocabularyError
from glmlike.tables import look_up_tokens
from specs import SPECS

SOP = 93


@pytest.mark.parametrize("name", ["chatglm2", "chatglm-6b", "glm-10b"])
@pytest.mark.parametrize("model_class", [GlmLikeForCausalLM, GlmLikeModel, GlmLikeForTokenClassification])
def test_an_id_outside_the_vocabulary_is_named(model_class: Any, name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name], model_class=model_class)
    ids = torch.tensor([[5, 6, 7], [5, 96, 120]])
    expected = r"input_ids hold 96 in row 1, place 1 \(and 1 more\): vocab_size is 96, ids go from 0 to 95\. Use the"
    with pytest.raises(VocabularyError, match=expected) as raised:
        model(ids)
    assert isinstance(raised.value, GlmLikeError)
    assert isinstance(raised.value, IndexError)
    if model_class is GlmLikeForCausalLM:
        with pytest.raises(VocabularyError, match="vocab_size is 96"):
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
    with pytest.raises(VocabularyError, match=r"hold -100 in row 0, place 2: .*Negative ids are labels"):
        model(torch.tensor([[5, 6, -100]]))


@pytest.mark.parametrize("token", [130_528, 150_004, 150_527])
def test_ids_of_the_other_chatglm_6b_vocabulary_are_recognized(token: int) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    spec = SPECS["chatglm-6b"].replace(vocab_size=130_528, num_key_value_heads=2, head_dim=4, **sizes)
    model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(spec))
    with pytest.raises(VocabularyError, match="ChatGLM-6B's first vocabulary .150528 rows.*subtract 20000"):
        model(torch.tensor([[20_005, token]]))
    with pytest.raises(VocabularyError, match="hold 150528.*Use the tokenizer that belongs"):
        model(torch.tensor([[20_005, 150_528]]))
    with pytest.raises(VocabularyError, match="hold 150004.*Use the tokenizer that belongs"):
        look_up_tokens(nn.Embedding(96, 4), torch.tensor([[5, 150_004]]), 96)


def test_a_text_longer_than_learned_positions_is_named(make: Callable[..., Any]) -> None:
    model = make(SPECS["glm-10b"].replace(max_position_embeddings=8), eos_token_id=None)
    assert model(torch.full((1, 9), 5)).logits.shape == (1, 9, 96)  # the table has one row more
    with pytest.raises(VocabularyError, match=r"position 9 in row 0, place 9: .*learned positions from 0 to 8\. Short"):
        model(torch.full((1, 10), 5))
    with pytest.raises(VocabularyError, match=r"position 9 in row 0, place 0: .*generate fewer tokens"):
        model.generate(torch.tensor([[5, 90, SOP]]), max_new_tokens=12, do_sample=False, suppress_tokens=[SOP])


def test_other_errors_of_a_table_pass_through() -> None:
    class Broken(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            raise IndexError("something else")

    with pytest.raises(IndexError, match="something else"):
        look_up_tokens(Broken(), torch.tensor([[5]]), 96)


def test_resized_tables_take_the_added_ids(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"])
    model.resize_token_embeddings(100)
    assert model(torch.tensor([[99]])).logits.shape == (1, 1, 100)
    with pytest.raises(VocabularyError, match="vocab_size is 100, ids go from 0 to 99"):
        model(torch.tensor([[100]]))
