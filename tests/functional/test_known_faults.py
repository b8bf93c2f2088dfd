"""Faults of graphcore's unit-scaling 0.3.5, the PyTorch library of the paper, that we do not have.

Those of one operation are tested beside it: the mean over ignored tokens and reduction "none" in
test_loss.py, unconstrained adds and the meaning of tau in test_residual.py, the attention factor at
every length, grouped queries and decoding with a cache in test_attention.py, dropout in evaluation,
the factor of gelu in test_activation.py, accumulated micro-batches in test_linear.py.
"""

import pytest
import torch
from torch import Tensor

import unitscale.functional as U

F64 = torch.float64


def network(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    skip, branch = U.residual_split(U.layer_norm(x, 8), 0.5)
    h = U.residual_add(U.gelu(U.linear(branch, w)), skip, 0.5)
    h = U.scaled_dot_product_attention(h[None], h[None], h[None], is_causal=True)[0]
    return U.cross_entropy(h, target)


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 8, dtype=F64), torch.randn(8, 8, dtype=F64), torch.randint(8, (6,))


def test_functional_grad_equals_autograd(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, target = operands
    got = torch.func.grad(network, argnums=1)(x, w, target)
    w.requires_grad_()
    (want,) = torch.autograd.grad(network(x, w, target), w)
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of torch's vmap
def test_per_example_gradients_by_vmap(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, target = operands
    batch, targets = torch.stack((x, x.flip(0), -x)), torch.stack((target,) * 3)
    per_example = torch.func.vmap(torch.func.grad(network, argnums=1), in_dims=(0, None, 0))
    got = per_example(batch, w, targets)
    for i in range(3):
        want = torch.func.grad(network, argnums=1)(batch[i], w, targets[i])
        torch.testing.assert_close(got[i], want)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_uses_the_backward_factor() -> None:
    """A Jacobian-vector product is the transpose of what the backward pass computes."""
    x, w, tangent = torch.randn(4, 8), torch.randn(8, 8), torch.randn(8, 8)
    layer = lambda w: U.silu(U.linear(x, w))
    _, jvp = torch.func.jvp(layer, (w,), (tangent,))
    output, vjp = torch.func.vjp(layer, w)
    cotangent = torch.randn_like(output)
    torch.testing.assert_close((jvp * cotangent).sum(), (vjp(cotangent)[0] * tangent).sum())


def test_a_second_derivative_exists(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, _ = operands
    w.requires_grad_()
    (grad,) = torch.autograd.grad(U.tanh(U.linear(x, w)).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), w)
    assert second.abs().sum() > 0


def test_forward_and_backward_factors_are_one_number_in_bfloat16() -> None:
    """A backward factor kept in the dtype of the tensor is 0.4 % off, and the tie is broken."""
    x = torch.rand(1000).bfloat16().requires_grad_()
    y = U.relu(x)
    y.backward(x.detach())
    assert torch.equal(x.grad, y)


def test_conv1d_heeds_its_constraint() -> None:
    x, w = torch.randn(8, 16, 64, requires_grad=True), torch.randn(256, 16, 5)
    rms = {}
    for constraint in (None, "to_output_scale"):
        y = U.conv1d(x, w, constraint=constraint)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
        rms[constraint] = grad.square().mean().sqrt().item()
    # The border has 60 of 64 windows; 256 outputs for 16 inputs make the tied gradient 4 times.
    assert rms[None] == pytest.approx((60 / 64) ** 0.5, rel=0.03)
    assert rms["to_output_scale"] == pytest.approx(4 * (60 / 64) ** 0.5, rel=0.03)


def test_operations_that_were_missing_exist() -> None:
    assert {
        *("relu", "tanh", "sigmoid", "mish", "elu", "conv2d", "conv3d", "batch_norm", "group_norm"),
        *("avg_pool2d", "max_pool2d", "lstm", "gru", "rnn_tanh", "bmm", "einsum", "sum", "mean"),
        *("binary_cross_entropy_with_logits", "kl_div", "huber_loss", "l1_loss"),
    } <= set(U.__all__)


def test_an_empty_batch_gives_an_empty_output() -> None:
    x, w, image = torch.zeros(0, 8, requires_grad=True), torch.ones(8, 8), torch.zeros(0, 4, 9, 9)
    outputs = [
        *(U.linear(x, w), U.matmul(x, w), U.add(x, torch.ones(8)), U.mul(x, torch.ones(8))),
        *(U.gelu(x), U.silu_glu(x, x), U.softmax(x, -1), U.layer_norm(x, 8), U.dropout(x)),
        *(U.conv2d(image, torch.ones(2, 4, 3, 3)), U.max_pool2d(image, 3)),
        *(U.adaptive_avg_pool2d(image, 3), U.residual_apply(U.relu, x), U.sum(x, 1)),
        U.scaled_dot_product_attention(*[torch.zeros(0, 2, 4, 8)] * 3),
    ]
    assert all(y.numel() == 0 for y in outputs)


def test_operands_need_not_be_contiguous() -> None:
    x, w = torch.randn(8, 6), torch.randn(6, 8)
    assert not x.T.is_contiguous()
    torch.testing.assert_close(U.linear(x.T, w), U.linear(x.T.contiguous(), w))
    image, kernel = torch.randn(2, 9, 9, 4).permute(0, 3, 1, 2), torch.randn(3, 4, 3, 3)
    torch.testing.assert_close(U.conv2d(image, kernel), U.conv2d(image.contiguous(), kernel))
    torch.testing.assert_close(U.softmax(x.T, 0), U.softmax(x.T.contiguous(), 0))
