"""The chunked linear cross-entropy against the plain one: values, gradients, and what is never made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_utils import ForCausalLMLoss

from glmlike import loss_chunks as room
from glmlike.loss import causal_lm_loss, linear_cross_entropy


def tensors(tokens: int, width: int, vocabulary: int, ignored: float = 0.3, seed: int = 0, dtype: Any = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100
    return hidden, weight, labels


def plain(hidden, weight, labels, softcap=None, z_loss=0.0, num_items_in_batch=None):
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    total = F.cross_entropy(logits, labels, reduction="sum")
    scored = labels != -100
    total = total + z_loss * (logits.logsumexp(-1)[scored] ** 2).sum()
    return total / (scored.sum() if num_items_in_batch is None else num_items_in_batch)


def gradients(function, hidden, weight, *args, scale=1.0, **kwargs):
    found = function(hidden, weight, *args, **kwargs)
    wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    return found, torch.autograd.grad(found * scale, wanted)


def shrink(monkeypatch, chunk=60, tile=40, part=30, narrowest=3):
    for name, value in (("_CHUNK", chunk), ("_TILE", tile), ("_PART", part), ("_NARROWEST", narrowest)):
        monkeypatch.setattr(room, name, value)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    chunk=st.integers(1, 3000),
    tile=st.integers(1, 3000),
    softcap=st.sampled_from([None, 3.0]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    seed=st.integers(0, 99),
)
def test_by_rows_is_the_plain_loss(tokens, width, vocabulary, ignored, chunk, tile, softcap, z_loss, seed):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, chunk, tile, tile, 1 + seed % 5)
        inputs = tensors(tokens, width, vocabulary, ignored, seed)
        options = {"softcap": softcap, "z_loss": z_loss, "num_items_in_batch": 7}
        expected, wanted = gradients(plain, *inputs, scale=-2.5, **options)
        found, got = gradients(linear_cross_entropy, *inputs, scale=-2.5, **options)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    vocabulary=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    tile=st.integers(1, 3000),
    softcap=st.sampled_from([None, 3.0]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    share=st.sampled_from([None, 0, 0.4, 1]),
    seed=st.integers(0, 99),
)
def test_both_passes_by_tiles_are_the_plain_loss(tokens, vocabulary, ignored, tile, softcap, z_loss, share, seed):
    """In float64, so that what is compared is the algorithm and not the rounding it exists for."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, tile=tile, narrowest=1 + seed % 5)
        hidden, weight, labels = tensors(tokens, 6, vocabulary, ignored, seed, torch.float64)
        _, wanted = gradients(plain, hidden, weight, labels, softcap, z_loss, 1)
        scored = labels != -100
        shape, rows = room.Shape(softcap, z_loss), (hidden.detach()[scored], weight.detach(), labels[scored])
        kept = None if share is None else room.Kept(*rows[:2], share)
        first = room.first_pass(*rows, shape, kept)
        got = room.second_pass(*rows, *first, shape, torch.tensor(1.0), True, kept)
    assert_close(shape.loss(*first), plain(hidden, weight, labels, softcap, z_loss, 1).detach())
    assert_close(got, (wanted[0][scored], wanted[1]))


@pytest.mark.parametrize(("softcap", "z_loss"), [(None, 0.0), (4.0, 0.02)])
def test_gradcheck(monkeypatch, softcap, z_loss):
    shrink(monkeypatch)
    hidden, weight, labels = tensors(9, 4, 13, dtype=torch.float64)
    check = lambda h, w: linear_cross_entropy(h, w, labels, softcap=softcap, z_loss=z_loss)  # noqa: E731
    assert torch.autograd.gradcheck(check, (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", ["", "hidden", "weight"])
def test_low_precision_is_no_further_from_the_truth_than_the_plain_loss(monkeypatch, dtype, frozen):
    shrink(monkeypatch, chunk=20_000, tile=20_000, narrowest=16)
    hidden, weight, labels = tensors(300, 32, 500, dtype=dtype)
    weight = (weight.detach() / 6).requires_grad_(frozen != "weight")
    hidden.requires_grad_(frozen != "hidden")
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (hidden, weight)]
    scale = 1024.0  # as a gradient scaler has it
    _, exact = gradients(plain, *wide, labels, scale=scale)
    expected, theirs = gradients(plain, hidden, weight, labels, scale=scale)
    found, ours = gradients(linear_cross_entropy, hidden, weight, labels, scale=scale)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=2e-6, atol=0)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine - true).norm() <= 1.1 * (other - true).norm()


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside had, and how many matrix products there were."""

    elements = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        self.products += "mm" in function.__name__
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_no_tensor_is_as_large_as_the_logits(monkeypatch, dtype, frozen):
    shrink(monkeypatch, 2000, 2000, 500)
    hidden, weight, labels = tensors(200, 4, 300, dtype=dtype)
    weight.requires_grad_(not frozen)
    with Largest() as seen:
        linear_cross_entropy(hidden, weight, labels).backward()
    kept = 0 if frozen or dtype == torch.float32 else int(0.4 * 300) * 200
    assert seen.elements <= max(2000, kept) < 200 * 300 / 2
    assert (weight.grad is None) == frozen


def test_what_needs_no_gradient_costs_no_product(monkeypatch):
    hidden, weight, labels = tensors(20, 4, 30)

    def products(hidden, weight):
        with Largest() as seen:
            linear_cross_entropy(hidden, weight, labels)
        return seen.products

    assert products(hidden, weight) == 3
    assert products(hidden, weight.detach()) == products(hidden.detach(), weight) == 2
    with torch.no_grad():
        assert products(hidden, weight) == 1


def test_a_kept_graph_can_be_walked_again(monkeypatch):
    hidden, weight, labels = tensors(9, 4, 13)
    found = linear_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(found, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(3 * found, (hidden, weight))
    assert_close(again, tuple(3 * gradient for gradient in first))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_gradient_checkpointing(dtype, reentrant):
    from torch.utils.checkpoint import checkpoint

    inputs = tensors(9, 4, 13, dtype=dtype)
    _, expected = gradients(linear_cross_entropy, *inputs)
    for tensor in inputs[:2]:
        tensor.grad = None
    checkpoint(linear_cross_entropy, *inputs, use_reentrant=reentrant).backward()
    assert_close((inputs[0].grad, inputs[1].grad), expected)


def test_under_autocast():
    inputs = tensors(40, 8, 50)

    def plain_loss(hidden, weight, labels):
        return F.cross_entropy(F.linear(hidden, weight), labels)

    with torch.autocast("cpu", torch.bfloat16):
        expected, wanted = gradients(plain_loss, *inputs)
        found, got = gradients(linear_cross_entropy, *inputs)
    assert [gradient.dtype for gradient in got] == [torch.float32] * 2
    assert_close(found, expected, rtol=1e-5, atol=0)
    assert_close(got, wanted, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("num_items_in_batch", [None, 11, torch.tensor(11)])
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_the_contract_of_transformers_loss_function(num_items_in_batch, placed, ignore_index):
    hidden, weight, labels = tensors(24, 4, 13)
    hidden, labels = hidden.view(3, 8, 4), labels.where(labels != -100, ignore_index).view(3, 8)
    options = {"num_items_in_batch": num_items_in_batch, "ignore_index": ignore_index, "unknown": 1}
    if placed:
        options["shift_labels"] = labels.flip(1)
    expected = ForCausalLMLoss(F.linear(hidden, weight), labels, 13, **options)
    assert_close(causal_lm_loss(hidden, weight, labels, **options), expected)


def test_nothing_labelled_is_what_torch_says():
    hidden, weight, labels = tensors(5, 4, 13, ignored=1.1)
    assert linear_cross_entropy(hidden, weight, labels).isnan()
    linear_cross_entropy(hidden, weight, labels, num_items_in_batch=3).backward()
    assert hidden.grad.count_nonzero() == weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("label", [-1, 13])
def test_a_label_outside_the_head_is_refused(label):
    hidden, weight, labels = tensors(5, 4, 13)
    labels[2] = label
    with pytest.raises(IndexError, match="expected 0 to 12, the rows of the head, or -100"):
        linear_cross_entropy(hidden, weight, labels)
