"""The chunked loss as an operator of a compiled graph: one graph, the eager path's numbers, no whole logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close
from torch.utils import _pytree

from glmlike import loss, loss_chunks
from glmlike.loss import causal_lm_loss, linear_cross_entropy
from test_loss import Largest, gradients, plain, shrink, tensors


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    """``function`` as one graph; a graph break is an error."""
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=backend)
    return made


def between(hidden: Any, weight: Any, labels: Any, **options: Any) -> Any:
    """The loss amid other work, whose gradients go through its own."""
    return 3 * linear_cross_entropy(hidden.tanh(), weight * 2, labels, **options) + 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_items_in_batch": 11, "softcap": 3.0},
        {"num_items_in_batch": torch.tensor(11), "z_loss": 1e-2},
        {"ignore_index": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [9, 40], ids=["by tiles", "by rows"])
def test_it_is_the_eager_loss(monkeypatch: Any, options: dict[str, Any], tokens: int) -> None:
    shrink(monkeypatch)
    hidden, weight, labels = tensors(tokens, 8, 13)
    labels = labels.where(labels != -100, options.get("ignore_index", -100))
    assert loss_chunks.goes_by_tiles(hidden[labels >= 0], weight, (True, True)) == (tokens == 9)
    expected = gradients(between, hidden, weight, labels, **options)
    assert_close(gradients(compiled(between), hidden, weight, labels, **options), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_a_gradient_only_of_what_wants_one(monkeypatch: Any, frozen: str) -> None:
    products, ahead = [], loss._ahead

    def counted(*arguments: Any) -> Any:
        with Largest() as seen:
            found = ahead(*arguments)
        products.append(seen.products)
        return found

    monkeypatch.setattr(loss, "_ahead", counted)
    hidden, weight, labels = tensors(20, 4, 13)
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    found = compiled(linear_cross_entropy)(hidden, weight, labels)
    assert products == [1 if frozen == "both" else 2]
    assert_close(found, linear_cross_entropy(hidden, weight, labels))
    if frozen != "both":
        wanted = [one for one in (hidden, weight) if one.requires_grad]
        expected = gradients(linear_cross_entropy, hidden, weight, labels)[1]
        assert_close(torch.autograd.grad(found, wanted), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_as_large_as_the_logits(monkeypatch: Any, dtype: Any) -> None:
    """Neither in the graph, nor within the operator, where both gradients are made at once."""
    shrink(monkeypatch, 2000, 2000, 500)
    sizes, ahead = [], loss._ahead

    def watched(*arguments: Any) -> Any:
        with Largest() as seen:
            found = ahead(*arguments)
        sizes.append(seen.elements)
        return found

    monkeypatch.setattr(loss, "_ahead", watched)
    hidden, weight, labels = tensors(200, 4, 300, 0.0, dtype=dtype)
    nodes: list[int] = []

    def noted(graph: Any, inputs: Any) -> Any:
        made = (leaf for node in graph.graph.nodes for leaf in _pytree.tree_leaves(node.meta.get("val")))
        nodes.extend(leaf.numel() for leaf in made if isinstance(leaf, torch.Tensor))
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=noted, bw_compiler=noted)
    compiled(linear_cross_entropy, backend)(hidden, weight, labels).backward()
    kept = 0 if dtype == torch.float32 else int(0.4 * 300) * 200
    assert 0 < sizes[0] <= max(2000, kept) < 200 * 300 / 2
    assert max(nodes) == 300 * 4


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_further_from_the_truth_than_the_plain_loss(dtype: Any, frozen: bool) -> None:
    hidden, weight, labels = tensors(300, 32, 500, dtype=dtype)
    weight = (weight.detach() / 6).requires_grad_(not frozen)
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (hidden, weight)]
    scale = 1024.0  # as a gradient scaler has it
    _, exact = gradients(plain, *wide, labels, scale=scale)
    expected, theirs = gradients(plain, hidden, weight, labels, scale=scale)
    found, ours = gradients(compiled(linear_cross_entropy), hidden, weight, labels, scale=scale)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=2e-6, atol=0)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine - true).norm() <= 1.1 * (other - true).norm()


def test_a_sum_beyond_float16_is_a_mean_within() -> None:
    hidden = torch.full((4000, 4), 60.0, dtype=torch.float16)
    weight = torch.zeros(7, 4, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(4000, dtype=torch.long)
    expected = gradients(linear_cross_entropy, hidden, weight, labels)
    assert 4000 * expected[1][0].abs().max() > torch.finfo(torch.float16).max
    assert_close(gradients(compiled(linear_cross_entropy), hidden, weight, labels), expected)


def test_under_autocast() -> None:
    inputs = tensors(40, 8, 50)

    def cast(*arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(*arguments)

    found, got = gradients(compiled(cast), *inputs)
    expected, wanted = gradients(cast, *inputs)
    assert_close(found, expected)
    assert [gradient.dtype for gradient in got] == [torch.float32] * 2
    assert_close(got, wanted, rtol=1e-2, atol=1e-4)


def test_under_gradient_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    def recomputed(*arguments: Any) -> Any:
        return checkpoint(between, *arguments, use_reentrant=False)

    inputs = tensors(9, 4, 13)
    assert_close(gradients(compiled(recomputed), *inputs), gradients(between, *inputs))


def test_other_numbers_of_tokens_labels_and_items_compile_nothing_new() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    graphs, counts = CompileCounterWithBackend("aot_eager"), []
    shifted = torch.compile(causal_lm_loss, fullgraph=True, backend=graphs, dynamic=True)
    for rows, columns, ignored, items in ((3, 8, 0.3, 7), (2, 9, 0.0, 19), (5, 6, 1.1, 4)):
        hidden, weight, labels = tensors(rows * columns, 4, 13, ignored)
        batch = (hidden.view(rows, columns, 4), weight, labels.view(rows, columns), items)
        expected = F.cross_entropy(F.linear(batch[0], weight)[:, :-1].mT, batch[2][:, 1:], reduction="sum") / items
        assert_close(shifted(*batch), expected)
        counts.append(graphs.frame_count)
    assert counts == counts[:1] * 3


def test_a_label_outside_the_head_is_refused() -> None:
    hidden, weight, labels = tensors(5, 4, 13)
    labels[2] = 13
    with pytest.raises(IndexError, match="expected 0 to 12, the rows of the head, or -100"):
        compiled(linear_cross_entropy)(hidden, weight, labels)


def test_the_operator_keeps_what_it_promises_to_compilers() -> None:
    """By torch's own checks: no alias of inputs or outputs, fake outputs like real ones, the formula in a graph."""
    for layout in (lambda tensor: tensor, lambda tensor: tensor.T.contiguous().T):
        hidden, weight, labels = tensors(12, 4, 13)
        weight = layout(weight.detach()).requires_grad_()
        for softcap, wanted in ((None, (True, True)), (4.0, (True, False)), (None, (False, False))):
            arguments = (
                (layout(hidden.detach()).requires_grad_(wanted[0]), weight.detach().requires_grad_(wanted[1])),
                (labels, torch.tensor(5), -100, softcap, 0.0, *wanted),
            )
            torch.library.opcheck(loss._OPERATOR, (*arguments[0], *arguments[1]))


class Fused(torch.autograd.Function):
    """As Liger's: gradients made in the forward, by no autograd, and scaled in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, labels: Any) -> Any:
        logits = hidden @ weight.T
        by_logits = logits.softmax(-1) - F.one_hot(labels, len(weight))
        ctx.ahead = (by_logits @ weight, by_logits.T @ hidden)
        return F.cross_entropy(logits, labels, reduction="sum")

    @staticmethod
    def backward(ctx: Any, scale: Any) -> Any:
        return (*(gradient.mul_(scale) for gradient in ctx.ahead), None)


def test_ligers_kernel_serves_in_a_graph_too(monkeypatch: Any) -> None:
    calls = []

    def kernel(hidden: Any, weight: Any, labels: Any, **_: Any) -> Any:
        calls.append(len(labels))
        return Fused.apply(hidden, weight, labels)

    inputs = tensors(20, 4, 13)
    expected = gradients(between, *inputs)
    monkeypatch.setattr(loss, "_FUSED_ON", ("cpu",))
    monkeypatch.setattr(loss, "_fused_kernel", lambda: kernel)
    assert_close(gradients(compiled(between), *inputs), expected)
    assert calls == [(inputs[2] >= 0).sum()]


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: apt-get install g++")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor(dtype: Any) -> None:
    inputs = tensors(40, 8, 50, dtype=dtype)
    expected = gradients(linear_cross_entropy, *inputs)
    assert_close(gradients(compiled(linear_cross_entropy, "inductor"), *inputs), expected, rtol=1e-2, atol=1e-5)
