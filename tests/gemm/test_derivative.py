"""What gradients promise: no second derivative, and no silence about a saved tensor written to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unitscale.gemm import ProductFormats, conv2d, linear, matmul, rounded
from unitscale.gemm import scaled_dot_product_attention as attention

FP8 = ProductFormats.of("E4M3FN", "E5M2")
HARDWARE = FP8._replace(executor="scaled_mm")

FUNCTIONS = {
    "Rounded": lambda x, w: rounded(x @ w, "E4M3FN", "E5M2"),
    "LinearProduct": lambda x, w: linear(x, w, formats=FP8),
    "ScaledProduct": lambda x, w: linear(x[0], w, formats=HARDWARE),
    "MatmulProduct": lambda x, w: matmul(x, x.mT, formats=FP8),
    "ConvolutionProduct": lambda x, w: conv2d(x[None], w[:4, :2, None, None], formats=FP8),
    "AttentionProduct": lambda x, w: attention(x, x, x, formats=FP8),
}
each_function = pytest.mark.parametrize(("name", "function"), FUNCTIONS.items(), ids=FUNCTIONS)


def inputs() -> list[Tensor]:
    return [torch.randn(2, 16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)]


@each_function
@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()], ids=["sum", "squares"])
def test_a_second_derivative_is_refused_at_the_first(name, function, loss):
    """After a sum the gradient that comes in is a constant: torch's own check says nothing."""
    x, w = inputs()
    with pytest.raises(RuntimeError, match=rf"{name}: create_graph=True .*full_precision\(model"):
        torch.autograd.grad(loss(function(x, w)), x, create_graph=True)


@each_function
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputing_is_no_second_derivative(name, function, use_reentrant):
    x, w = inputs()
    function(x, w).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(function, x, w, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected)


def masked_loss(run, mask: Tensor) -> Tensor:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    return run(q, q, q, mask).square().sum()


@pytest.mark.parametrize(
    "formats", [FP8, ProductFormats.of(None, "E5M2")], ids=["both", "backward"]
)
def test_a_mask_written_between_passes_is_an_error(formats):
    ours = lambda q, k, v, mask: attention(q, k, v, mask, formats=formats)
    for run in (F.scaled_dot_product_attention, ours):
        written = torch.zeros(8, 8)
        loss = masked_loss(run, written)
        written.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        masked_loss(run, written).backward()  # and not before


def test_a_mask_of_truth_values_may_be_written_to():
    """torch makes a float mask of it, and so writes to a copy as well."""
    found = []
    for writes in (False, True):
        mask = torch.ones(8, 8, dtype=torch.bool).tril()
        torch.manual_seed(1)
        q = torch.randn(1, 2, 8, 16, requires_grad=True)
        loss = attention(q, q, q, mask, formats=FP8).square().sum()
        if writes:
            mask.fill_(True)
        found.append(torch.autograd.grad(loss, q)[0])
    assert torch.equal(*found)


def test_a_factor_written_between_passes_is_an_error():
    factor = torch.ones(())
    loss = masked_loss(
        lambda q, k, v, mask: attention(q, k, v, mask, query_factor=factor, formats=FP8), None
    )
    factor.fill_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("index", [0, 1])
def test_an_operand_that_is_saved_as_it_is_may_not_be_written_to(index):
    operands = inputs()
    values = [x.clone() for x in operands]
    loss = linear(*values, formats=ProductFormats.of(None, "E5M2")).sum()
    with torch.no_grad():
        values[index].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_operand_that_is_saved_rounded_may():
    """The gradient is that of the value that was multiplied."""
    x, w = inputs()
    (expected,) = torch.autograd.grad(linear(x, w, formats=FP8).sum(), x)
    copy = w.clone()
    loss = linear(x, copy, formats=FP8).sum()
    with torch.no_grad():
        copy.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def nodes_behind(node) -> list:
    """A node of autograd's graph and all that it passes its gradient on to."""
    return [node, *(n for other, _ in node.next_functions if other for n in nodes_behind(other))]


def test_no_function_keeps_a_tensor_beside_what_autograd_saves():
    """A tensor that is an attribute of the context is not watched."""
    x, w = inputs()
    mask, factor = torch.zeros(16, 16), torch.ones(())
    attended = attention(x, x, x, mask, query_factor=factor, formats=FP8)
    for y in [attended, *(function(x, w) for function in FUNCTIONS.values())]:
        names = {f"{name}Backward" for name in FUNCTIONS}
        found = [node for node in nodes_behind(y.grad_fn) if type(node).__name__ in names]
        assert found
        assert not [x for node in found for x in vars(node).values() if isinstance(x, Tensor)]
