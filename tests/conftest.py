"""What tests share: data, and small models with numbers far from their initialisation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads than cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from glmlike import GlmLikeConfig, GlmLikeForCausalLM
from glmlike.spec import DecoderSpec

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the repository: published configs, indices, vocabularies; not ours to ship."""
    path = Path(os.environ.get("GLMLIKE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (path / "originals").exists():
        pytest.skip(f"{path}: no originals there; set GLMLIKE_SHARED to the folder that has them")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Tiny checkpoints in original layouts with the original implementation's outputs."""
    return FIXTURES


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter values that make a wrong mask, order or permutation show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.dim() > 1 else parameter + noise * 0.1)
    return model


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """``make(spec, **config)``: our language model of a spec with random numbers, in evaluation mode."""

    def build(spec: DecoderSpec, *, model_class: Any = GlmLikeForCausalLM, seed: int = 0, **config: Any) -> Any:
        blanks = {"mask_token_id": 90, "smask_token_id": 91, "gmask_token_id": 92, "sop_token_id": 93}
        config = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "prefix_dropout": 0.0, **blanks, **config}
        return randomize(model_class(GlmLikeConfig.from_spec(spec, **config)), seed).eval()

    return build
