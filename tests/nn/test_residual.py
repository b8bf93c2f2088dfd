"""Residual schemes: shares of variance, unit gradients, placements."""

import math

import pytest
import torch
from torch import nn

from unitscale import nn as unn


class Noise(nn.Module):
    """A branch whose output is unit noise, independent of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(x) + 0 * x


def shares(scheme: unn.residual.Scheme, depth: int) -> list[float]:
    """Share of the final variance: the input's, then each branch's."""
    result = [1.0]
    for index in range(depth):
        b = (tau := scheme.tau(index, depth)) ** 2 / (1 + tau**2)
        result = [share * (1 - b) for share in result] + [b]
    return result


@pytest.mark.parametrize("depth", [1, 4, 24])
def test_running_mean_gives_equal_shares(depth: int) -> None:
    assert shares(unn.RunningMean(), depth) == pytest.approx([1 / (depth + 1)] * (depth + 1))


def test_fixed_gives_its_share_to_each_branch() -> None:
    assert shares(unn.Fixed(share=0.4), 2) == pytest.approx([0.36, 0.24, 0.4])


def test_ratio_is_branch_over_skip() -> None:
    assert shares(unn.Ratio(ratio=0.5), 1) == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("depth", [4, 24])
def test_alternating_gives_a_third_each(depth: int) -> None:
    embedding, *branches = shares(unn.Alternating(), depth)
    assert embedding == pytest.approx(1 / 3)
    assert sum(branches[::2]) == pytest.approx(1 / 3)
    assert sum(branches[1::2]) == pytest.approx(1 / 3)
    assert branches[::2] == pytest.approx([branches[0]] * (depth // 2))


def test_alternating_keeps_its_two_ratios() -> None:
    scheme = unn.Alternating(alpha_res=0.5, alpha_res_attn_ratio=2.0)
    embedding, *branches = shares(scheme, 24)
    attention, mlp = sum(branches[::2]), sum(branches[1::2])
    assert attention / mlp == pytest.approx(4)
    assert (attention + mlp) / 2 / embedding == pytest.approx(0.25)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0])
def test_stream_and_branch_have_unit_scale_both_ways(ratio: float) -> None:
    layer = unn.Linear(256, 256, bias=False)
    residual = unn.Residual(layer, unn.Ratio(ratio=ratio))
    x = torch.randn(512, 256, requires_grad=True)
    y = residual(x)
    y.backward(torch.randn_like(y))
    for tensor in (y, x.grad, layer.weight.grad):
        assert 0.95 < tensor.square().mean().sqrt() < 1.05


def test_stack_of_branches_keeps_unit_scale_and_counts_them() -> None:
    stack = unn.Stack(*(unn.Residual(Noise(), unn.RunningMean(), index=i) for i in range(8)))
    assert stack.depth == 8
    assert 0.95 < stack(torch.randn(128, 128)).std() < 1.05
    stack.append(unn.Residual(Noise(), unn.RunningMean(), index=8))
    assert stack.depth == 9
    assert stack[:3].depth == 3
    assert unn.Stack(nn.Linear(2, 2)).depth == 1


def test_placements() -> None:
    x = torch.randn(4, 8)
    body, norm, half = nn.Linear(8, 8), nn.LayerNorm(8), math.sqrt(0.5)

    def output(placement: str) -> torch.Tensor:
        return unn.Residual(body, norm=norm, placement=placement)(x)

    torch.testing.assert_close(output("pre"), half * (x + body(norm(x))))
    torch.testing.assert_close(output("post"), norm(half * (x + body(x))))
    torch.testing.assert_close(output("res-post"), half * (x + norm(body(x))))
    torch.testing.assert_close(unn.Residual(body)(x), half * (x + body(x)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: unn.Fixed(share=1.0), "share=1.0 is not between 0 and 1"),
        (lambda: unn.Ratio(ratio=-1.0), "ratio=-1.0 is not a positive number"),
        (lambda: unn.Alternating(alpha_res=0.0), "alpha_res=0.0 is not positive"),
        (
            lambda: unn.Residual(nn.Identity(), norm=nn.Identity(), placement="before"),
            "unknown norm placement 'before'; use one of pre, post, none, res-post",
        ),
        (lambda: unn.Residual(nn.Identity(), placement="pre"), "norm is NoneType and placement"),
    ],
)
def test_bad_argument_is_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
