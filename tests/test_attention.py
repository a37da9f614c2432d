"""What serving engines read in an attention module's source before they replace parts of it."""

from __future__ import annotations

import ast
import inspect
import textwrap

import torch

from glmlike import GlmLikeConfig, GlmLikeModel
from glmlike.attention import GlmLikeAttention, repeat_kv
from specs import SPECS


def test_the_interface_is_called_once_through_a_local_name() -> None:
    """vLLM's Transformers backend: one plain call of a local bound from ALL_ATTENTION_FUNCTIONS.get_interface."""
    (forward,) = ast.parse(textwrap.dedent(inspect.getsource(GlmLikeAttention.forward))).body
    assert isinstance(forward, ast.FunctionDef)
    assert forward.decorator_list == []
    bound = [
        target.id
        for node in ast.walk(forward)
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "ALL_ATTENTION_FUNCTIONS.get_interface"
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    assert len(bound) == 1
    calls = [n for n in ast.walk(forward) if isinstance(n, ast.Call) and ast.unparse(n.func) == bound[0]]
    assert len(calls) == 1
    assert {word.arg: ast.unparse(word.value) for word in calls[0].keywords}["scaling"] == "self.scaling"


def test_every_module_knows_its_layer_and_config() -> None:
    with torch.device("meta"):
        model = GlmLikeModel(GlmLikeConfig.from_spec(SPECS["glm-4-0414"]))
    modules = [module for module in model.modules() if isinstance(module, GlmLikeAttention)]
    assert [module.layer_idx for module in modules] == [0, 1, 2]
    assert all(module.config is model.config and module.is_causal for module in modules)


def test_repeated_heads_stand_side_by_side() -> None:
    states = torch.arange(2.0).reshape(1, 2, 1, 1)
    assert repeat_kv(states, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1]
