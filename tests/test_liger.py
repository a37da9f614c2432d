"""Liger's kernels in our decoder: registered when Liger is imported, and applied only where they are exact.

Liger's kernels are Triton's. Where liger-kernel is installed (`make liger`), its own table, module classes, rotation
and loss are used, the latter two in Triton's interpreter; elsewhere a stand-in of the same names, which computes with
torch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glmlike import ConfigError, GlmLikeConfig, loss
from glmlike.liger import apply_liger_kernel_to_glmlike, turns_as_llama
from specs import SPECS

HERE = Path(__file__).parent
REAL = importlib.util.find_spec("liger_kernel") is not None

TRAIN = """
import sys
{first}
import torch
from transformers import Trainer, TrainingArguments
from glmlike import GlmLikeConfig, GlmLikeForCausalLM, loss
from specs import SPECS

real, folder = {real}, {folder!r}
assert "liger_kernel" not in sys.modules or "liger" in {first!r}
loss._FUSED_ON = ("cpu",)
rows = [{{"input_ids": list(range(3, 43)), "labels": [-100] * 5 + list(range(8, 43))}}] * 4
expected_calls = {{
    "llama-3": {{"rms_norm", "swiglu", "rope", "loss"}},
    "glm-4-0414": {{"rms_norm", "swiglu", "loss"}},
    "llama-biased": {{"rms_norm", "swiglu", "rope", "loss"}},
    "glm-130b": {{"layer_norm", "rope", "loss"}},
}}

def train(name, liger):
    torch.manual_seed(0)
    model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(SPECS[name], pad_token_id=0))
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    # Triton's interpreter (3.9) runs neither Liger's norms nor its SwiGLU
    chosen = {{"rms_norm": False, "layer_norm": False, "swiglu": False}} if real else None
    loss._fused_kernel.cache_clear()
    loss._FUSED_ON = ("cpu",) if liger else ()
    arguments = TrainingArguments(folder, max_steps=2, report_to="none", use_cpu=True, save_strategy="no", seed=1,
        per_device_train_batch_size=2, use_liger_kernel=liger, liger_kernel_config=chosen, logging_steps=1)
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model

for name in ("llama-3",) if real or {first!r} != "import glmlike" else expected_calls:
    plain, before = train(name, False)
    if not real:
        from liger_kernel.transformers.monkey_patch import calls
        calls.clear()
    fused, after = train(name, True)
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
    for left, right in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-5)
    if not real:
        assert set(calls) == expected_calls[name], (name, set(calls))
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
assert MODEL_TYPE_TO_APPLY_LIGER_FN["glmlike"].__module__ == "glmlike.liger"
"""
FIRST = {"glmlike first": "import glmlike", "liger first": "import liger_kernel.transformers\nimport glmlike"}


def run(code: str, folder: Path) -> None:
    """Run ``code`` where Liger, or its stand-in and what pip would have written beside it, can be imported."""
    paths = [str(HERE), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    if not REAL:
        info = folder / "liger_kernel-0.8.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liger_kernel\nVersion: 0.8.5\n", encoding="utf8")
        paths += [str(folder), str(HERE / "liger_stand_in")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("order", FIRST)
def test_trainer_with_use_liger_kernel(order: str, tmp_path: Path) -> None:
    """The same losses and the same parameters as without, by the kernels that are exact for each decoder."""
    run(TRAIN.format(first=FIRST[order], real=REAL, folder=str(tmp_path / "out")), tmp_path)


@pytest.mark.skipif(not REAL, reason="liger-kernel is not installed")
@pytest.mark.parametrize("name", ["glm-4-0414", "llama-3", "glm-130b", "chatglm2"])
def test_modules_have_what_ligers_forwards_read(name: str, make: Callable[..., Any]) -> None:
    from liger_kernel.transformers import LigerLayerNorm, LigerRMSNorm, LigerSwiGLUMLP

    model = make(SPECS[name])
    eps = {key: module.variance_epsilon for key, module in model.named_modules() if hasattr(module, "variance_epsilon")}
    apply_liger_kernel_to_glmlike(model=model)
    norm = LigerLayerNorm if SPECS[name].norm == "layer" else LigerRMSNorm
    layer = model.model.layers[0]
    for module in (model.model.norm, layer.input_layernorm, layer.post_attention_layernorm):
        assert module.forward.__func__ is norm.forward
        assert module.variance_epsilon == SPECS[name].norm_eps
    assert ("forward" in vars(layer.mlp)) == (SPECS[name].feed_forward == "swiglu")
    if SPECS[name].feed_forward == "swiglu":
        assert layer.mlp.forward.__func__ is LigerSwiGLUMLP.forward
    assert all(model.get_submodule(key).variance_epsilon == value for key, value in eps.items())


def test_only_the_rotation_of_llama_is_replaced() -> None:
    turned = {name for name, spec in SPECS.items() if turns_as_llama(spec)}
    assert {"llama-3", "llama-3.1", "qwen2.5", "glm-130b"} <= turned
    assert not turned & {"chatglm2", "glm-4-9b", "glm-edge", "glm-4-0414", "chatglm-6b", "glm-10b", "infilling-recipe"}


def test_what_would_reach_beyond_the_model_is_refused(make: Callable[..., Any]) -> None:
    model = make(SPECS["llama-3"])
    with pytest.raises(ConfigError, match="whole process"):
        apply_liger_kernel_to_glmlike(cross_entropy=True, model=model)
    with pytest.raises(ConfigError, match="load it first"):
        apply_liger_kernel_to_glmlike()
    nothing = {"rope": False, "rms_norm": False, "layer_norm": False, "swiglu": False}
    apply_liger_kernel_to_glmlike(fused_linear_cross_entropy=False, model=model, **nothing)
    assert model.config.chunked_loss is False
    assert "rotate" not in vars(model.model.layers[0].self_attn)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """glmlike.loss on a CPU with the stand-in of Liger's kernel; the types that each call accumulated in."""
    calls: list[Any] = []

    def stand_in(hidden: Any, weight: Any, labels: Any, **chosen: Any) -> Any:
        calls.append(chosen.pop("accum_dtype"))
        assert chosen.pop("reduction") == "sum"
        logits = torch.nn.functional.linear(hidden, weight).float()
        if chosen["softcap"] is not None:
            logits = chosen["softcap"] * (logits / chosen["softcap"]).tanh()
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return losses + chosen["lse_square_scale"] * logits.logsumexp(-1).square().sum()

    monkeypatch.setattr(loss, "_FUSED_ON", ("cpu",))
    monkeypatch.setattr(loss, "_fused_kernel", lambda: stand_in)
    return calls


@pytest.mark.parametrize("chosen", [{}, {"softcap": 3.0, "z_loss": 1e-2}, {"num_items_in_batch": 7}])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, False), (False, True)])
def test_loss_by_the_fused_kernel(
    chosen: dict[str, Any], trained: tuple[bool, bool], kernel: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss and gradients; Liger forms no gradient of a head alone, which ours then does."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16), torch.randn(40, 16)
    labels = torch.randint(0, 40, (2, 9)).index_fill(1, torch.tensor([0, 4]), -100)
    results = []
    for devices in (("cpu",), ()):
        monkeypatch.setattr(loss, "_FUSED_ON", devices)
        leaves = [tensor.clone().requires_grad_(flag) for tensor, flag in zip((hidden, weight), trained, strict=True)]
        total = loss.linear_cross_entropy(*leaves, labels, **chosen)
        if any(trained):
            total.backward()
        results.append((total.detach(), [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(results[0], results[1])
    assert kernel == ([] if trained == (False, True) else [torch.float32 if trained[1] else None])


def test_what_the_fused_kernel_does_not_serve(kernel: list[Any]) -> None:
    hidden, weight, labels = torch.randn(3, 4).double(), torch.randn(5, 4).double(), torch.tensor([0, 1, 4])
    assert loss.linear_cross_entropy(hidden, weight, labels).dtype == torch.float64
    assert loss.linear_cross_entropy(hidden.float(), weight.float(), labels * 0 - 100).isnan()
    with pytest.raises(IndexError, match="expected 0 to 4"):
        loss.linear_cross_entropy(hidden.float(), weight.float(), labels + 1)
    assert kernel == []


def test_without_liger_the_loss_is_ours() -> None:
    assert REAL or loss._fused_kernel() is None
    assert GlmLikeConfig().chunked_loss
