import math

import pytest
import torch
from torch import Tensor

import unitscale.functional as U
from unitscale.functional.elementwise import integrate


def squash(x: Tensor) -> Tensor:
    return x * torch.exp(-x.abs())


def ratios(function: object, plain: object, at: float = 0.3) -> tuple[float, float]:
    x = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    y, want = function(x), plain(x)
    (got,), (true,) = torch.autograd.grad(y, x), torch.autograd.grad(want, x)
    return (y / want).item(), (got / true).item()


def test_closed_forms_are_met_to_rounding() -> None:
    forward, backward = ratios(U.elementwise(torch.exp, constraint=None), torch.exp)
    assert forward == pytest.approx((math.e * (math.e - 1)) ** -0.5, rel=1e-13)
    assert backward == pytest.approx(math.e**-1, rel=1e-13)
    forward, backward = ratios(U.elementwise(torch.sin, constraint=None), torch.sin)
    assert forward == pytest.approx(((1 - math.e**-2) / 2) ** -0.5, rel=1e-13)
    assert backward == pytest.approx(((1 + math.e**-2) / 2) ** -0.5, rel=1e-13)


def test_kinks_make_a_kinked_function_exact_and_scale_with_mult() -> None:
    clamp = lambda x: x.clamp(-0.7, 0.7)
    assert ratios(U.elementwise(clamp, kinks=(-0.7, 0.7), constraint=None), clamp) == pytest.approx(
        ratios(lambda x: U.hardtanh(x, -0.7, 0.7, constraint=None), clamp), rel=1e-13
    )
    doubled = lambda x: (2 * x).clamp(-0.7, 0.7)
    ours = U.elementwise(clamp, kinks=(-0.7, 0.7), mult=2.0, constraint=None)
    assert ratios(ours, doubled) == pytest.approx(
        ratios(lambda x: U.hardtanh(x, -0.7, 0.7, mult=2.0, constraint=None), doubled), rel=1e-13
    )


def test_center_and_constraint_are_those_of_activations() -> None:
    for options in ({"center": "rms"}, {"constraint": "gmean"}, {"constraint": None}):
        ours = U.elementwise(torch.nn.functional.gelu, **options)
        named = lambda x, options=options: U.gelu(x, **options)
        assert ratios(ours, torch.nn.functional.gelu) == pytest.approx(
            ratios(named, torch.nn.functional.gelu), rel=1e-13
        )


def test_equal_arguments_are_integrated_once() -> None:
    integrate.cache_clear()
    for _ in range(3):
        U.elementwise(squash, kinks=(0.0,))
    assert integrate.cache_info().misses == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_factors_do_not_depend_on_the_grad_mode(mode: type) -> None:
    integrate.cache_clear()
    with mode():
        inside = U.elementwise(squash, kinks=(0.0,))(torch.ones(3))
    integrate.cache_clear()
    assert torch.equal(inside, U.elementwise(squash, kinks=(0.0,))(torch.ones(3)))


def test_functions_that_cannot_be_scaled_are_refused() -> None:
    with pytest.raises(ValueError, match="constant"):
        U.elementwise(lambda x: x * 0 + 3)
    with pytest.raises(ValueError, match="finite"):
        U.elementwise(torch.log)
    with pytest.raises(ValueError, match=r"shape .* expected an element-wise function"):
        U.elementwise(lambda x: x[:-1])
    with pytest.raises(TypeError, match=r"elementwise: input has dtype torch\.int64"):
        U.elementwise(squash)(torch.ones(3, dtype=torch.int64))


def test_prelu_with_one_slope_or_one_per_channel() -> None:
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    for slopes in (1, 6):
        w = torch.full((slopes,), 0.25, dtype=torch.float64, requires_grad=True)
        y = U.prelu(x, w)
        torch.testing.assert_close(y, U.leaky_relu(x, 0.25))
        y.backward(torch.randn_like(y))
        assert w.grad.shape == (slopes,)
