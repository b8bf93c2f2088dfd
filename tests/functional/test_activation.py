import math

import pytest
import torch
import torch.nn.functional as F

import unitscale.functional as U

SIMPLE = [
    "relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "elu", "celu", "selu", "softplus",
    "logsigmoid", "tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid", "hardswish",
    "tanhshrink", "softshrink", "hardshrink",
]  # fmt: skip


def test_every_activation_of_torch_is_here() -> None:
    assert set(SIMPLE) | {"threshold", "rrelu", "prelu", "glu"} <= set(U.__all__)


def test_rrelu_draws_its_slopes_in_training_only() -> None:
    x = -torch.ones(2**16)
    assert U.rrelu(x).unique().numel() == 1
    assert U.rrelu(x, training=True).unique().numel() > 1000
    y = U.rrelu(torch.randn(2**18), training=True)
    # 2^18 samples: five standard errors are below 1 %, and the mean slope is off by less than 1 %.
    assert y.std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", SIMPLE)
def test_mult_multiplies_the_argument_and_keeps_unit_scale(name: str) -> None:
    x = torch.randn(2**18, dtype=torch.float64, requires_grad=True)
    for mult in (0.5, 3.0):
        y = getattr(U, name)(x, mult=mult, constraint=None)
        plain = getattr(F, name)(x * mult)
        ratio = (y / plain)[plain != 0]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        y.backward(torch.randn_like(y))
        # 2^18 samples: five standard errors are below 3 % for a kurtosis below 40.
        assert y.std().item() == pytest.approx(1, rel=0.03)
        assert x.grad.square().mean().sqrt().item() == pytest.approx(1, rel=0.03)
        x.grad = None


@pytest.mark.parametrize("name", ["relu", "gelu", "softplus", "sigmoid", "silu"])
def test_center_rms_counts_the_mean(name: str) -> None:
    x = torch.randn(2**18)
    y = getattr(U, name)(x, center="rms")
    # 2^18 samples: five standard errors are below 2 % for a kurtosis below 16.
    assert y.square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
    assert getattr(U, name)(x).square().mean().sqrt() > 1.06


def test_factors_are_the_published_ones() -> None:
    """Blake et al. 2023: gelu 1.701 and 1.481, tanh 1.593 and 1.467, sigmoid 4.802 and 4.722."""
    for name, forward, backward in (
        ("gelu", 1.700926, 1.481114),
        ("tanh", 1.592537, 1.467414),
        ("sigmoid", 4.801313, 4.722646),
        ("relu", 1.712859, 1.414214),
    ):
        x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        plain = getattr(torch, name, None) or getattr(F, name)
        y = getattr(U, name)(x, constraint=None)
        assert (y / plain(x)).item() == pytest.approx(forward, abs=1e-6)
        (got,), (want,) = (torch.autograd.grad(out, x) for out in (y, plain(x)))
        assert (got / want).item() == pytest.approx(backward, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
def test_special_values_go_through_as_in_torch(value: float) -> None:
    x = torch.tensor([value])
    for name in SIMPLE:
        plain, ours = getattr(F, name)(x), getattr(U, name)(x)
        assert torch.equal(ours.isnan(), plain.isnan()), name
        assert torch.equal(ours.isinf(), plain.isinf()), name
        assert torch.equal(ours.signbit(), plain.signbit()) or plain.isnan(), name


def test_wrong_calls_say_value_and_expectation() -> None:
    x = torch.zeros(3)
    with pytest.raises(TypeError, match=r"gelu: input has dtype torch\.int64"):
        U.gelu(x.long())
    with pytest.raises(ValueError, match=r"center is 'mean', expected 'std' or 'rms'"):
        U.gelu(x, center="mean")
    with pytest.raises(ValueError, match=r"unknown constraint 'gmea'.*nearest: 'gmean'"):
        U.relu(x, constraint="gmea")
    with pytest.raises(ValueError, match=r"mult is 0"):
        U.silu(x, mult=0.0)


def test_gated_units_refuse_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"silu_glu: input has shape \[3\] and gate \[4\]"):
        U.silu_glu(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"glu: input of shape \[2, 3\] has an odd size"):
        U.glu(torch.zeros(2, 3))


WITH_MULT = {
    "gelu": lambda x, mult: U.gelu(x, mult=mult),
    "glu": lambda x, mult: U.glu(x, mult=mult),
    "softmax": lambda x, mult: U.softmax(x, -1, mult=mult),
    "softmin": lambda x, mult: U.softmin(x, -1, mult=mult),
    "elementwise": lambda x, mult: U.elementwise(torch.sin, mult=mult)(x),
    "cross_entropy": lambda x, mult: U.cross_entropy(x, torch.tensor([0, 1]), mult=mult),
    "scaled_dot_product_attention": lambda x, mult: U.scaled_dot_product_attention(
        x, x, x, mult=mult
    ),
}


@pytest.mark.parametrize("mult", [-1.0, 0, math.nan, math.inf, True, "2"], ids=str)
@pytest.mark.parametrize("name", WITH_MULT)
def test_mult_is_a_positive_number_in_every_op(name: str, mult: object) -> None:
    x = torch.randn(2, 4)
    WITH_MULT[name](x, 2)
    with pytest.raises(ValueError, match=f"^{name}: mult is {mult!r}; expected a positive number"):
        WITH_MULT[name](x, mult)
