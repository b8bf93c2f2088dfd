from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from op_asserts import assert_multiple
from torch import Tensor

import unitscale.functional as U
from unitscale.scaling.constraints import CONSTRAINTS

F64 = torch.float64


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 4, 16), (0, 16)])
def test_linear_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, w, b = leaf(*shape), leaf(24, 16), leaf(24)
    y = U.linear(x, w, b)
    torch.testing.assert_close(y, F.linear(x, w) / 4 + b)
    y.sum().backward()
    assert w.grad is not None


def test_linear_factors_are_those_of_fan_in_fan_out_and_rows() -> None:
    x, w, b = leaf(3, 10, 16), leaf(24, 16), leaf(24)
    grad_output = torch.randn(3, 10, 24, dtype=F64)
    got = torch.autograd.grad(U.linear(x, w, b, constraint=None), (x, w, b), grad_output)
    want = torch.autograd.grad(F.linear(x, w, b), (x, w, b), grad_output)
    ratios = [assert_multiple(g, t) for g, t in zip(got, want, strict=True)]
    assert ratios == pytest.approx([24**-0.5, 30**-0.5, 30**-0.5], rel=1e-14)


def test_linear_bias_is_not_divided_by_fan_in() -> None:
    """u-muP gives a bias the base learning rate, whatever the width."""
    y = U.linear(torch.zeros(4, 64), torch.zeros(8, 64), torch.ones(8))
    assert torch.equal(y, torch.ones(4, 8))


def test_readout_divides_by_fan_in() -> None:
    x, w = leaf(5, 16), leaf(24, 16)
    torch.testing.assert_close(U.linear_readout(x, w), F.linear(x, w) / 16)
    tied = U.linear_readout(x, w, constraint="to_output_scale")
    grad_output = torch.randn_like(tied)
    got = torch.autograd.grad(tied, x, grad_output)[0]
    want = torch.autograd.grad(F.linear(x, w), x, grad_output)[0]
    assert assert_multiple(got, want) == pytest.approx(1 / 16)


def test_micro_batches_accumulate_to_the_whole_batch() -> None:
    """Four calls of 1024 rows, gradients times 4**-0.5, are one call of 4096."""
    x, w, b = leaf(4096, 16), leaf(8, 16), leaf(8)
    grad_output = torch.randn(4096, 8, dtype=F64)
    whole = torch.autograd.grad(U.linear(x, w, b), (w, b), grad_output)
    for part, g in zip(x.chunk(4), grad_output.chunk(4), strict=True):
        U.linear(part, w, b).backward(g)
    for parameter, grad in zip((w, b), whole, strict=True):
        torch.testing.assert_close(parameter.grad * 4**-0.5, grad)


@pytest.mark.parametrize(
    "constraint", [c for c in CONSTRAINTS if "left" not in c and "right" not in c]
)
def test_every_constraint_ties_output_and_input_of_linear(constraint: str) -> None:
    x, w = leaf(32, 16), leaf(64, 16)
    y, plain = U.linear(x, w, constraint=constraint), F.linear(x, w)
    forward = assert_multiple(y.detach(), plain.detach())
    grad_output = torch.randn_like(plain)
    (got,), (want,) = (torch.autograd.grad(out, x, grad_output) for out in (y, plain))
    assert assert_multiple(got, want) == pytest.approx(forward, rel=1e-12)
    ideal = {"output": 16**-0.5, "grad": 64**-0.5}
    expected = {
        "gmean": (ideal["output"] * ideal["grad"]) ** 0.5,
        "hmean": 2 / (1 / ideal["output"] + 1 / ideal["grad"]),
        "amean": (ideal["output"] + ideal["grad"]) / 2,
        "fan_amean": 40**-0.5,
        "min": ideal["grad"],
        "to_output_scale": ideal["output"],
        "to_grad_input_scale": ideal["grad"],
    }
    assert forward == pytest.approx(expected[constraint])


@pytest.mark.parametrize("constraint", ["to_left_grad_scale", "to_right_grad_scale", "gmean"])
def test_constraints_of_two_operands_tie_all_three(constraint: str) -> None:
    x, y = leaf(2, 8, 16), leaf(2, 16, 32)
    out, plain = U.matmul(x, y, constraint=constraint), torch.matmul(x, y)
    forward = assert_multiple(out.detach(), plain.detach())
    grad_output = torch.randn_like(plain)
    got, want = (torch.autograd.grad(o, (x, y), grad_output) for o in (out, plain))
    ratios = [assert_multiple(g, t) for g, t in zip(got, want, strict=True)]
    assert ratios == pytest.approx([forward, forward])
    expected = {
        "to_left_grad_scale": 32,
        "to_right_grad_scale": 8,
        "gmean": (16 * 32 * 8) ** (1 / 3),
    }
    assert forward == pytest.approx(expected[constraint] ** -0.5)


@pytest.mark.parametrize(
    ("left", "right"),
    [((8,), (8,)), ((4, 8), (8,)), ((8,), (8, 4)), ((3, 4, 8), (8, 5)), ((3, 1, 4, 8), (2, 8, 5))],
)
def test_matmul_takes_vectors_and_broadcasts(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    x, y = leaf(*left), leaf(*right)
    torch.testing.assert_close(U.matmul(x, y), torch.matmul(x, y) / 8**0.5)


def test_einsum_of_three_operands_is_scaled() -> None:
    x, y, z = leaf(64, 16), leaf(16, 32), leaf(32, 48)
    out = U.einsum("ab,bc,cd->ad", x, y, z)
    torch.testing.assert_close(out, torch.einsum("ab,bc,cd->ad", x, y, z) / (16 * 32) ** 0.5)


F32 = torch.zeros(4, 8)
WEIGHT = torch.zeros(6, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: U.linear(F32.long(), WEIGHT), TypeError, r"linear: input has dtype torch.int64"),
        (
            lambda: U.linear(F32, WEIGHT.long()),
            TypeError,
            r"weight has dtype torch.int64.*float\(\)",
        ),
        (lambda: U.linear([1.0], WEIGHT), TypeError, r"input is a list, expected .* tensor"),
        (
            lambda: U.linear(F32, WEIGHT.T),
            ValueError,
            r"input has shape \[4, 8\], expected \[..., 6\]",
        ),
        (
            lambda: U.linear(F32, WEIGHT[0]),
            ValueError,
            r"weight has shape \[8\], expected \[fan_out",
        ),
        (lambda: U.linear(F32[0, 0], WEIGHT), ValueError, r"input has shape \[\]"),
        (lambda: U.linear(F32, WEIGHT, torch.zeros(7)), ValueError, r"bias has shape \[7\].*\[6\]"),
        (
            lambda: U.linear(F32, WEIGHT, constraint="to_output"),
            ValueError,
            r"unknown constraint 'to_output', expected None or .*nearest: 'to_output_scale'",
        ),
        (
            lambda: U.linear(F32, WEIGHT, constraint="to_left_grad_scale"),
            ValueError,
            r"'to_left_grad_scale' goes with 2 .*has 1",
        ),
        (lambda: U.linear_readout(F32, WEIGHT.T), ValueError, r"linear_readout: input has shape"),
        (lambda: U.matmul(F32, F32), ValueError, r"inner sizes 8 and 4"),
        (lambda: U.matmul(F32, F32[0, 0]), ValueError, r"other \[\], expected at least one axis"),
        (
            lambda: U.matmul(torch.zeros(2, 3, 4), torch.zeros(5, 4, 3)),
            ValueError,
            r"other \[5, 4, 3\], expected batch axes that broadcast",
        ),
        (lambda: U.bmm(F32, F32), ValueError, r"bmm: input has shape \[4, 8\]"),
        (
            lambda: U.bmm(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)),
            ValueError,
            r"bmm: input has shape \[2, 3, 4\] and mat2 \[2, 5, 4\]",
        ),
        (lambda: U.einsum("ab,bc->ac", F32, F32), ValueError, r"index 'b' has sizes 8 and 4"),
        (lambda: U.einsum("ab->a", F32.int()), TypeError, r"operand 0 has dtype torch.int32"),
    ],
)
def test_a_wrong_call_says_value_expectation_and_fix(
    call: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
