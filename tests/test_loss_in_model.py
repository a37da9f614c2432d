"""The loss inside the language model: when it is made without logits, and that whoever reads them finds them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils import _pytree

from glmlike import GlmLikeConfig, GlmLikeForCausalLM
from glmlike.outputs import DeferredLogits

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def model_and_batch(**fields: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = GlmLikeForCausalLM(GlmLikeConfig(**SIZES, **fields)).train()
    ids = torch.randint(40, (2, 7))
    return model, {"input_ids": ids, "labels": ids.where(ids % 3 > 0, -100)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each time that deferred logits are made."""
    made: list[int] = []
    original = DeferredLogits.__call__
    monkeypatch.setattr(DeferredLogits, "__call__", lambda self: (made.append(1), original(self))[1])
    return made


def step(model: Any, **batch: Any) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return outputs, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 20}, {"num_items_in_batch": torch.tensor(20)}])
def test_loss_logits_and_gradients_are_those_of_the_plain_model(tied: bool, extra: dict[str, Any]) -> None:
    model, batch = model_and_batch(tie_word_embeddings=tied)
    found, gradients = step(model, **batch, **extra)
    model.config.chunked_loss = False
    expected, theirs = step(model, **batch, **extra)
    assert isinstance(dict.get(found, "logits"), DeferredLogits)
    assert isinstance(dict.get(expected, "logits"), torch.Tensor)
    assert_close(found.loss, expected.loss)
    assert_close(gradients, theirs)
    assert_close(found.logits, expected.logits)


def test_logits_read_before_the_backward_have_gradients() -> None:
    model, batch = model_and_batch()
    results = []
    for chunked in (True, False):
        model.config.chunked_loss = chunked
        outputs = model(**batch)
        loss = outputs.loss + outputs.logits.softmax(-1).square().sum()
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    assert_close(*results)


READERS = {
    "attribute": lambda outputs: outputs.logits,
    "key": lambda outputs: outputs["logits"],
    "index": lambda outputs: outputs[1],
    "slice": lambda outputs: outputs[1:2][0],
    "get": lambda outputs: outputs.get("logits"),
    "tuple": lambda outputs: outputs.to_tuple()[1],
    "dict": lambda outputs: dict(outputs)["logits"],
    "pickle": lambda outputs: pickle.loads(pickle.dumps(outputs)).logits,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_way_to_read_them(reader: str, calls: list[int]) -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        outputs, expected = model(**batch), model(input_ids=batch["input_ids"]).logits
        assert outputs["loss"] is outputs[0] is outputs.loss
        assert calls == []
        assert_close(READERS[reader](outputs), expected)
        assert_close(outputs.logits, expected)
    assert calls == [1]


def test_a_tuple_is_whole() -> None:
    model, batch = model_and_batch()
    loss, logits, *_ = model(**batch, return_dict=False)
    assert loss.shape == ()
    assert logits.shape == (2, 7, 40)


def test_what_walks_over_outputs_makes_no_logits(calls: list[int]) -> None:
    from torch.nn.parallel.distributed import _find_tensors

    model, batch = model_and_batch()
    outputs = model(**batch)
    assert any(tensor is outputs.loss for tensor in _find_tensors(outputs))
    again = _pytree.tree_map(lambda leaf: leaf, outputs)
    assert calls == []
    assert type(again) is type(outputs)
    assert_close(again.logits, outputs.logits)


def test_mixed_precision_of_accelerate(calls: list[int]) -> None:
    operations = pytest.importorskip("accelerate.utils.operations")
    model, batch = model_and_batch()
    forward = operations.convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    outputs = forward(**batch)
    outputs.loss.backward()
    assert calls == []
    model.config.chunked_loss = False
    expected = forward(**batch)
    assert outputs.logits.dtype == expected.logits.dtype == torch.float32
    assert_close(outputs.logits, expected.logits)
    assert_close(outputs.loss, expected.loss)


def test_logits_of_a_changed_head_are_refused() -> None:
    model, batch = model_and_batch()
    outputs = model(**batch)
    outputs.loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    with pytest.raises(RuntimeError, match=r"before optimizer\.step"):
        _ = outputs.logits


def logits_of(model: Any, **arguments: Any) -> Any:
    return dict.get(model(**arguments), "logits")


def test_who_gets_logits_at_once() -> None:
    model, batch = model_and_batch()
    assert isinstance(logits_of(model, **batch), DeferredLogits)
    assert logits_of(model, **batch, skip_logits=True) is None
    assert isinstance(logits_of(model, **batch, skip_logits=False), torch.Tensor)
    assert isinstance(logits_of(model, input_ids=batch["input_ids"]), torch.Tensor)
    model.eval()
    assert isinstance(logits_of(model, **batch), torch.Tensor)
    assert logits_of(model, **batch, skip_logits=True) is None
    assert_close(model(**batch).loss, model(**batch, skip_logits=True).loss)


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)


def own_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, **kwargs: logits.sum()


def other_head(model: Any) -> None:
    model.lm_head = torch.nn.Sequential(model.lm_head)


@pytest.mark.parametrize("change", [hooked, own_loss, other_head])
def test_what_acts_on_the_heads_call_is_called(change: Any) -> None:
    model, batch = model_and_batch()
    change(model)
    assert isinstance(logits_of(model, **batch), torch.Tensor)


def frozen_head(model: Any) -> Any:
    model.lm_head.requires_grad_(False)
    return model


def adapted(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False))


KINDS: dict[str, Any] = {
    "tied": ({"tie_word_embeddings": True}, lambda model: model),
    "frozen head": ({}, frozen_head),
    "LoRA": ({}, adapted),
    "bfloat16": ({}, lambda model: model.bfloat16()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_training_is_one_graph_without_logits(kind: str, calls: list[int]) -> None:
    fields, change = KINDS[kind]
    model, batch = model_and_batch(**fields)
    model = change(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = model(**batch, num_items_in_batch=9)
    wanted = torch.autograd.grad(expected.loss, trained)
    torch.compiler.reset()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch, num_items_in_batch=9)
    assert isinstance(dict.get(found, "logits"), DeferredLogits)
    assert_close(found.loss, expected.loss)
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if kind == "bfloat16" else {}
    assert_close(torch.autograd.grad(found.loss, trained), wanted, **tolerance)
    assert calls == []
    assert_close(found.logits, expected.logits, **tolerance)


def test_logits_after_a_compiled_step() -> None:
    """Read before the optimizer's step they are those of the loss, with gradients; after it they are refused."""
    model, batch = model_and_batch()
    torch.compiler.reset()
    step_of = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        outputs = (step_of(**batch), model(**batch))
        found, expected = (one.loss + one.logits.logsumexp(-1).sum() for one in outputs)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(found, parameters)
        assert_close(gradients, torch.autograd.grad(expected, parameters))
        late = step_of(**batch)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"before optimizer\.step"):
            _ = late.logits


def test_logits_read_within_the_graph() -> None:
    model, batch = model_and_batch()

    def loss(**batch: Any) -> Any:
        outputs = model(**batch)
        return outputs.loss + outputs.logits.softmax(-1).square().sum()

    expected = torch.autograd.grad(loss(**batch), list(model.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(**batch), list(model.parameters())), expected)


def test_an_exported_graph_has_no_operator_of_ours() -> None:
    model, batch = model_and_batch()
    exported = torch.export.export(model, (), {**batch, "use_cache": False}, strict=False)
    assert "glmlike" not in exported.graph_module.code
    assert_close(exported.module()(**batch, use_cache=False).loss, model(**batch).loss)


def test_the_config_field_round_trips(tmp_path: Any) -> None:
    assert "chunked_loss" not in GlmLikeConfig(**SIZES).to_dict()
    GlmLikeConfig(**SIZES, chunked_loss=False).save_pretrained(tmp_path)
    assert GlmLikeConfig.from_pretrained(tmp_path).chunked_loss is False
    assert GlmLikeForCausalLM(GlmLikeConfig.from_pretrained(tmp_path)).config.chunked_loss is False


def test_the_trainer_trains_and_evaluates_without_a_subclass(tmp_path: Any, calls: list[int]) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    losses = []
    for chunked in (True, False):
        model, batch = model_and_batch(chunked_loss=chunked)
        rows = [{name: tensor[index % 2] for name, tensor in batch.items()} for index in range(8)]
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        )
        seen = []
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            compute_metrics=lambda found, seen=seen: seen.append(found.predictions.shape) or {},
        )
        trained = trainer.train().training_loss
        losses.append((trained, trainer.evaluate()["eval_loss"]))
        assert seen == [(8, 7, 40)]
    assert calls == []
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
