"""transformers' own ``glm``: GLM-4-9b-hf and GLM-Edge. Native but for one matrix that holds gate and up."""

from __future__ import annotations

from glmlike.checkpoint.layouts import Fused
from glmlike.checkpoint.native import LAYER, native_patterns
from glmlike.checkpoint.rules import Rule, same
from glmlike.spec import DecoderSpec

DROPPED: tuple[str, ...] = ()


def table(spec: DecoderSpec) -> list[Rule]:
    """Native names, except ``gate_up_proj`` = [gate; up] (transformers: modeling_glm.py, ``chunk(2)``, gate first)."""
    gate, up = LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"
    halves = Fused((spec.intermediate_size, spec.intermediate_size))
    kept = [same(name, name) for name in native_patterns(spec) if name not in (gate, up)]
    return [*kept, Rule((gate, up), (LAYER + "mlp.gate_up_proj.weight",), halves)]
