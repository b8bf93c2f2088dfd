from collections.abc import Callable

import pytest
import torch
from op_asserts import assert_multiple
from torch import Tensor

import unitscale.functional as U
from validity import true_gradients

F64 = torch.float64


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, requires_grad=True)


def gradients(block: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    output = block(*leaves)
    return list(torch.autograd.grad(output, leaves, torch.randn_like(output)))


def ratios(
    block: Callable[..., Tensor], leaves: list[Tensor], tolerance: float = 1e-10
) -> list[float]:
    """Of each gradient to the true one of the same forward function."""
    got = gradients(block, leaves)
    with true_gradients():
        want = gradients(block, leaves)
    return [assert_multiple(g, w, tolerance) for g, w in zip(got, want, strict=True)]


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 2.0])
def test_gradients_are_unit_on_every_edge_of_a_residual_layer(tau: float) -> None:
    x, w = torch.randn(512, 256, requires_grad=True), torch.randn(256, 256, requires_grad=True)
    skip, branch = U.residual_split(x, tau)
    inside = U.linear(branch, w)
    y = U.residual_add(inside, skip, tau)
    edges = torch.autograd.grad(y, (x, branch, inside, w), torch.randn_like(y))
    for tensor in (y, *edges):  # 2^16 entries and more: five standard errors are 1.4 %
        assert tensor.square().mean().sqrt().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("constraint", ["to_output_scale", "gmean"])
def test_a_residual_layer_before_and_after_layers_has_valid_gradients(constraint: str) -> None:
    def block(x: Tensor, w0: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        mlp = lambda h: U.linear(
            U.gelu(U.linear(U.layer_norm(h, 16), w1, constraint=constraint), constraint=constraint),
            w2,
            constraint=constraint,
        )
        return U.linear_readout(U.residual_apply(mlp, U.linear(x, w0, constraint=None), 0.5), w3)

    leaves = [leaf(32, 8), leaf(16, 8), leaf(64, 16), leaf(16, 64), leaf(4, 16)]
    ratios(block, leaves)


def test_an_unconstrained_layer_inside_a_branch_makes_gradients_before_it_wrong() -> None:
    def block(x: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
        h = U.linear(x, w0)
        return U.residual_apply(lambda b: U.linear(b, w1, constraint=None)[:, :16], h)

    leaves = [leaf(32, 8), leaf(16, 8), leaf(256, 16)]
    with pytest.raises(AssertionError, match="distance"):
        ratios(block, leaves)


def test_a_mirrored_pair_without_constraint_is_valid() -> None:
    def block(x: Tensor, w0: Tensor, up: Tensor, down: Tensor) -> Tensor:
        branch = lambda h: U.linear(U.linear(h, up, constraint=None), down, constraint=None)
        return U.residual_apply(branch, U.linear(x, w0))

    ratios(block, [leaf(32, 8), leaf(16, 8), leaf(64, 16), leaf(16, 64)])


def test_plain_adds_are_constrained_unless_asked() -> None:
    """The existing library's transform added without constraint, and its gradient was wrong."""

    def block(constraint: str | None) -> Callable[..., Tensor]:
        return lambda x, w0, w1: U.add(
            U.linear(x, w0), U.linear(U.linear(x, w0), w1), (3.0, 1.0), constraint=constraint
        )

    leaves = [leaf(32, 16), leaf(16, 16), leaf(16, 16)]
    ratios(block("to_output_scale"), leaves)
    with pytest.raises(AssertionError, match="distance"):
        ratios(block(None), leaves)


@pytest.mark.parametrize(
    ("tau", "share"), [(1.0, 1 / 2), (2.0, 4 / 5), (0.5, 1 / 5), ((0.4 / 0.6) ** 0.5, 0.4)]
)
def test_tau_is_the_ratio_of_branch_to_skip(tau: float, share: float) -> None:
    """Not the share of the variance, which the existing library's transform still passes."""
    branch, skip = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    y = U.residual_add(branch, skip, tau)
    assert y.square().tolist() == pytest.approx([share, 1 - share])


def test_weights_keep_their_ratio_and_sign_and_the_sum_is_unit() -> None:
    x, y = torch.randn(512, 512, dtype=F64), torch.randn(512, 512, dtype=F64)
    torch.testing.assert_close(U.add(x, y, (3.0, -4.0)), 0.6 * x - 0.8 * y)
    torch.testing.assert_close(U.add(x, y), (x + y) * 2**-0.5)
    # 2^18 entries: five standard errors are 0.7 %.
    assert U.add(x, y, (1.0, 5.0)).std().item() == pytest.approx(1, rel=0.007)


@pytest.mark.parametrize("constant", [3.0, 2, torch.tensor(3.0), torch.full((1, 1), -2.0)], ids=str)
@pytest.mark.parametrize("constraint", ["to_output_scale", None])
def test_a_constant_adds_no_spread(constant: Tensor | float, constraint: str | None) -> None:
    x = torch.randn(64, 64, requires_grad=True)
    for y in (U.add(x, constant, constraint=constraint), U.add(constant, x, constraint=constraint)):
        torch.testing.assert_close(y, x + constant)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(grad, torch.ones_like(x))
    torch.testing.assert_close(U.add(x, constant, (-2.0, 3.0)), -x + 1.5 * constant)
    torch.testing.assert_close(U.add(constant, x, (3.0, -2.0)), -x + 1.5 * constant)


def test_one_element_and_one_element_are_two_tensors() -> None:
    x, y = torch.randn(1), torch.randn(1)
    torch.testing.assert_close(U.add(x, y), (x + y) * 2**-0.5)
    torch.testing.assert_close(U.add(x[0], y[0]), (x + y)[0] * 2**-0.5)


def test_the_gradient_of_one_element_is_that_of_the_sum() -> None:
    x, c = leaf(64, 8), leaf(1)
    grad_output = torch.randn(64, 8, dtype=F64)
    (got,) = torch.autograd.grad(U.add(x, c), c, grad_output)
    torch.testing.assert_close(got, grad_output.sum().view(1))
    (got,) = torch.autograd.grad(U.add(x, c, constraint=None), c, grad_output)
    torch.testing.assert_close(got, grad_output.sum().view(1) * 512**-0.5)


def test_add_and_mul_undo_the_copies_of_what_is_broadcast() -> None:
    x, y = leaf(64, 8), leaf(8)
    for op, plain in ((U.add, torch.add), (U.mul, torch.mul)):
        grad_output = torch.randn(64, 8, dtype=F64)
        free = op(x, y, constraint=None)
        (got,), (want,) = (torch.autograd.grad(out, y, grad_output) for out in (free, plain(x, y)))
        assert assert_multiple(got, want) == pytest.approx(64**-0.5)


X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: U.add(X, X[:2]), ValueError, r"add: input has shape \[3, 4\] and other \[2, 4\]"),
        (lambda: U.add(2.0, 1.0), TypeError, r"add: input is a float"),
        (lambda: U.add(X, "1"), TypeError, r"add: other is a str"),
        (lambda: U.add(1.0, X.int()), TypeError, r"add: other has dtype torch\.int32"),
        (lambda: U.add(X, 1.0, constraint="mean"), ValueError, r"mean"),
        (lambda: U.add(X, 1.0, (1.0, 0.0)), ValueError, r"weights are \(1\.0, 0\.0\)"),
        (lambda: U.add(X, X, (1.0, 0.0)), ValueError, r"weights are \(1\.0, 0\.0\)"),
        (lambda: U.add(X, X, (1.0,)), ValueError, r"expected two non-zero numbers"),
        (lambda: U.residual_add(X, X[:1]), ValueError, r"branch has shape \[3, 4\] and skip \[1"),
        (lambda: U.residual_split(X, -1.0), ValueError, r"tau is -1\.0"),
        (lambda: U.residual_split(X.int()), TypeError, r"input has dtype torch\.int32"),
        (lambda: U.mul(X, X[:2]), ValueError, r"mul: input has shape \[3, 4\]"),
    ],
)
def test_a_wrong_call_says_value_and_expectation(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
