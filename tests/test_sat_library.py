"""GLM-130B beside THUDM's own library: its class writes a folder and logits, and ours reads the folder.

``GLMLIKE_SAT_PYTHON`` names a Python that has SwissArmyTransformer 0.4.12 (default: this one); it need not have CUDA,
apex or DeepSpeed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from glmlike import GlmLikeForCausalLM, detect

REFERENCE = Path(__file__).with_name("sat_reference.py")
BLANKS = {"mask_token_id": 90, "smask_token_id": 91, "gmask_token_id": 92, "sop_token_id": 93}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the library wrote: a tiny random GLM130B, and its logits."""
    python = os.environ.get("GLMLIKE_SAT_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import sat"], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.splitlines() or ["it ended without a word"])[-1]
        pytest.skip(f"SwissArmyTransformer does not import ({reason}); set GLMLIKE_SAT_PYTHON to a Python that has it")
    target = tmp_path_factory.mktemp("sat") / "checkpoint"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, str(REFERENCE), str(target)], check=True, capture_output=True, env=environment)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mask", "smask", "gmask"])
@torch.no_grad()
def test_logits_are_those_of_swiss_army_transformer(case: str, folder: Path) -> None:
    """Names, arguments, positions, mask and numbers, none of them ours."""
    found = detect(folder)
    assert found.said_by == "model_config.json"
    assert found.spec.rotary_precision == "float32"  # its float32 models have unrounded angles, unlike GLM-130B
    expected = torch.load(folder / "logits.pt", weights_only=True)
    model = GlmLikeForCausalLM.from_pretrained(folder, **BLANKS)
    ids, logits = expected[f"{case}.input_ids"], expected[f"{case}.logits"]
    assert torch.equal(model.infilling_positions(ids), expected[f"{case}.position_ids"])
    assert_close(model(ids).logits, logits, atol=3e-5, rtol=0)
    assert_close(model(ids, position_ids=expected[f"{case}.position_ids"]).logits, logits, atol=3e-5, rtol=0)
    assert logits.abs().max() > 3  # numbers large enough for a wrong order or factor to show

    rounded = GlmLikeForCausalLM.from_pretrained(folder, spec=found.spec.replace(rotary_precision="float16"), **BLANKS)
    assert (rounded(ids).logits - logits).abs().max() > 3e-4
