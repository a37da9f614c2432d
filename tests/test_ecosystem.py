"""The tools people put around a model: Trainer, PEFT, quantizers, device maps, sharded training, pipelines."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import glmlike
from glmlike import GlmLikeForCausalLM
from specs import SPECS

IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(5))
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS.repeat(8, 1)]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return TrainingArguments(**{**defaults, **options})


def train(model: Any, folder: Path, resume: str | None = None, stop_at: int | None = None, **options: Any) -> Trainer:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == stop_at:
                control.should_training_stop = control.should_save = True

    trainer = Trainer(
        model=model, args=arguments(folder, **options), train_dataset=ROWS, eval_dataset=ROWS, callbacks=[Stop()]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_learns_evaluates_and_saves(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["chatglm2"])
    trainer = train(model, tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=True)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert trainer.evaluate()["eval_loss"] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_training_resumes_bit_for_bit(make: Callable[..., Any], tmp_path: Path) -> None:
    whole = train(make(SPECS["glm-4-0414"]), tmp_path / "whole").model
    train(make(SPECS["glm-4-0414"]), tmp_path / "part", stop_at=4, save_strategy="no")
    resumed = train(
        make(SPECS["glm-4-0414"], seed=9), tmp_path / "part", resume=str(tmp_path / "part" / "checkpoint-4")
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_lora_on_the_plain_projections(make: Callable[..., Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    make(SPECS["chatglm2"]).save_pretrained(tmp_path / "base")
    glmlike.convert(tmp_path / "base", tmp_path / "chatglm", to="chatglm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "chatglm")
    before = model(IDS).logits
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    tuned = peft.get_peft_model(model, config)
    assert_close(tuned(IDS).logits, before)
    train(tuned, tmp_path / "trainer")
    tuned.eval()
    after = tuned(IDS).logits
    assert not torch.allclose(after, before, atol=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(again(IDS).logits, after)
    assert_close(again.merge_and_unload()(IDS).logits, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_while_loading_a_fused_file_then_saved_reloads_exactly(
    kind: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    """transformers' default would save the fused names of a quantized model and read back other numbers."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    spec = SPECS["chatglm2"].replace(hidden_size=128, intermediate_size=192, head_dim=64)
    make(spec).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "chatglm", to="chatglm")
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    quantization = BitsAndBytesConfig(**options)
    loaded = {
        name: AutoModelForCausalLM.from_pretrained(tmp_path / name, quantization_config=quantization, dtype="float32")
        for name in ("native", "chatglm")
    }
    logits = {name: model(IDS).logits for name, model in loaded.items()}
    assert torch.equal(logits["native"], logits["chatglm"])
    loaded["chatglm"].save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, logits["chatglm"])


def test_device_map_and_offload_to_disk(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["glm-4-0414"])
    model.save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "glm4", to="glm4")
    layers = {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
    device_map = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
        **layers,
    }
    for folder in ("native", "glm4"):
        placed = GlmLikeForCausalLM.from_pretrained(
            tmp_path / folder, device_map=device_map, offload_folder=str(tmp_path / f"offload-{folder}")
        )
        assert torch.equal(placed(IDS).logits, model(IDS).logits)


def test_resized_embeddings(make: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("chatglm2", "tied-recipe"):
        model = make(SPECS[name])
        before = model(IDS).logits
        model.resize_token_embeddings(104)
        assert model.config.spec.vocab_size == 104
        assert torch.equal(model(IDS).logits[..., :96], before)
        model.save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(again(IDS).logits, model(IDS).logits)


HEADS = {
    "GlmLikeForSequenceClassification": (2, 5),
    "GlmLikeForTokenClassification": (2, 12, 5),
}


@pytest.mark.parametrize("head", HEADS)
def test_classification_heads(head: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["llama-3.1"], model_class=getattr(glmlike, head), num_labels=5)
    labels = torch.tensor([1, 3]) if "Sequence" in head else IDS % 5
    output = model(IDS, labels=labels)
    assert tuple(output.logits.shape) == HEADS[head]
    output.loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    auto = f"AutoModelFor{head.removeprefix('GlmLikeFor')}"
    again = getattr(__import__("transformers"), auto).from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_question_answering_head(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"], model_class=glmlike.GlmLikeForQuestionAnswering)
    output = model(IDS, start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([3, 4]))
    assert output.start_logits.shape == output.end_logits.shape == (2, 12)
    assert torch.isfinite(output.loss)


def test_a_classifier_scores_the_last_token_before_padding(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"], model_class=glmlike.GlmLikeForSequenceClassification, num_labels=2)
    short = model(IDS[:1, :7]).logits
    padded = torch.cat((IDS[:1, :7], torch.zeros(1, 5, dtype=torch.long)), dim=1)
    mask = (padded != 0).long()
    assert_close(model(padded, attention_mask=mask).logits, short, atol=1e-5, rtol=0)


def two_processes(code: str, *argv: str) -> None:
    """Run ``code`` in two processes of one gloo group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    script = Path(argv[0]) / "worker.py"
    script.write_text(code)
    done = subprocess.run([*command, str(script), *argv], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


TENSOR_PARALLEL = """
import sys, torch, torch.distributed as dist, glmlike
from pathlib import Path
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
folder = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder / "native", distributed_config=DistributedConfig(tp_size=2)).eval()
weight = model.model.layers[0].self_attn.q_proj.weight
assert type(weight).__name__ == "DTensor" and weight.to_local().shape[0] * 2 == weight.shape[0]
expected = torch.load(folder / "expected.pt")
with torch.no_grad():
    logits = model(expected["ids"]).logits
logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
try:
    AutoModelForCausalLM.from_pretrained(folder / "chatglm", distributed_config=DistributedConfig(tp_size=2))
except glmlike.ConfigError as error:
    assert "glmlike convert" in str(error)
else:
    raise AssertionError("a fused file was sharded")
dist.destroy_process_group()
"""

FSDP2 = """
import sys, torch, torch.distributed as dist, glmlike
from pathlib import Path
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
folder = Path(sys.argv[1])
model = glmlike.GlmLikeForCausalLM.from_pretrained(folder / "chatglm")
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
expected = torch.load(folder / "expected.pt")
output = model(expected["ids"], labels=expected["ids"])
torch.testing.assert_close(output.logits, expected["logits"], atol=1e-5, rtol=0)
output.loss.backward()
gradient = model.model.layers[1].self_attn.k_proj.weight.grad.full_tensor()
torch.testing.assert_close(gradient, expected["gradient"], atol=1e-5, rtol=1e-4)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [TENSOR_PARALLEL, FSDP2], ids=["tensor parallel", "FSDP2"])
def test_two_processes_compute_what_one_does(code: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["chatglm2"])
    model.save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "chatglm", to="chatglm")
    output = model(IDS, labels=IDS)
    output.loss.backward()
    gradient = model.model.layers[1].self_attn.k_proj.weight.grad
    expected = {"ids": IDS, "logits": output.logits.detach(), "gradient": gradient}
    torch.save(expected, tmp_path / "expected.pt")
    two_processes(code, str(tmp_path))
