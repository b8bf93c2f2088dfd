"""Factors change numbers, and neither the layout nor what a kernel makes of it."""

import pytest
import torch
import torch.nn.functional as F

from unitscale.units.hold import gapped, hold, measured_hold

HALF, TWO = torch.tensor(0.5), torch.tensor(2.0)

LAYOUTS = {
    "contiguous": torch.randn(4, 6, 8),
    "permuted": torch.randn(4, 6, 8).permute(2, 0, 1),
    "sliced in the last axis": torch.randn(4, 6, 39)[..., :-1],
    "sliced in a middle axis": torch.randn(4, 6, 8)[:, ::2],
    "every second element": torch.randn(4, 6, 8)[..., ::2],
    "half of a chunk": torch.randn(4, 6, 128).chunk(2, -1)[1],
    "starting past the alignment": torch.randn(7, 24)[1:],
    "starting there, with gaps": torch.randn(8, 5, 17)[:, 1],
    "an axis of one": torch.randn(5, 1, 6)[..., ::2],
    "expanded": torch.randn(4, 1, 8).expand(4, 6, 8),
    "empty": torch.randn(4, 6, 8)[:0],
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_factor_multiplies_and_keeps_what_gelu_makes_of_the_layout(x: torch.Tensor) -> None:
    held = hold(x, TWO)
    assert torch.equal(held, 2 * x)
    assert [stride == 0 for stride in held.stride()] == [stride == 0 for stride in x.stride()]
    if 0 not in x.stride():
        assert held.is_contiguous() == x.is_contiguous()
        assert torch.equal(F.gelu(hold(held, HALF)), F.gelu(x))


def test_gaps_shrink_to_what_alignment_needs() -> None:
    x = torch.randn(4, 6, 128).chunk(2, -1)[1]
    assert x.stride() == (768, 128, 1)
    assert gapped(x) == [6 * 80, 80, 1]
    assert gapped(x.double()[..., :-1]) == [6 * 64, 64, 1]


@pytest.mark.parametrize("length", [17, 18, 31])
def test_rows_keep_their_alignment(length: int) -> None:
    """The first token of each sequence, say: the product on it is that of the plain model."""
    x = torch.randn(8, 5, length)[:, 0]
    assert (hold(x, TWO).stride(0) - x.stride(0)) % 16 == 0
    first = torch.randn(8, 17, 64)[:, 0]
    weight = torch.randn(10, 64)
    assert torch.equal(F.linear(hold(first, TWO), weight), 2 * F.linear(first, weight))


@pytest.mark.parametrize("start", [0, 1, 5, 15])
@pytest.mark.parametrize("width", [5, 24])
def test_the_first_element_keeps_its_alignment(width: int, start: int) -> None:
    """A step of a sequence, say: MKL chooses a kernel by the address on some processors."""
    x = torch.randn(100).as_strided((3, width), (width + 3, 1), start)
    held = hold(x, TWO)
    assert held.data_ptr() % 64 == x.data_ptr() % 64 == 4 * start
    weight = torch.randn(width, width)
    assert torch.equal(F.linear(held, weight), 2 * F.linear(x, weight))


def test_gradient_is_multiplied_by_the_other_factor() -> None:
    x = torch.randn(3, requires_grad=True)
    hold(x, TWO, HALF).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 0.5))


@pytest.mark.parametrize("fwd", [None, 4.0, 0.125])
@pytest.mark.parametrize("bwd", [None, 2.0, 0.5])
def test_value_and_gradient_have_factors_of_their_own(fwd, bwd):
    x = torch.randn(3, 4, requires_grad=True)
    y = hold(x, *(None if f is None else torch.tensor(f) for f in (fwd, bwd)))
    grad = torch.randn(3, 4)
    y.backward(grad)
    assert torch.equal(y, x * (fwd or 1.0))
    assert torch.equal(x.grad, grad * (bwd or 1.0))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_stays_whatever_the_factor_is(dtype, shape):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = hold(x, torch.tensor(2.0), torch.tensor(4.0))
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, x * 2)


@pytest.mark.parametrize("power", [-40, -3, 0, 17, 40])
def test_power_of_two_and_back_is_exact(power):
    x = torch.randn(1000)
    there = hold(x, torch.tensor(2.0**power))
    assert torch.equal(hold(there, torch.tensor(2.0**-power)), x)


def test_special_values_go_through():
    x = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    y = hold(x, torch.tensor(8.0))
    assert y[:3].tolist() == [0.0, 0.0, float("inf")]
    assert torch.signbit(y[1])
    assert y[3].isnan()


def test_second_derivative_is_refused():
    x = torch.randn(3, requires_grad=True)
    y = hold(x, torch.tensor(2.0), torch.tensor(2.0)).square().sum()
    with pytest.raises(RuntimeError, match=r"second derivative .*us\.full_precision"):
        torch.autograd.grad(y, x, create_graph=True)


def test_measured_hold_refuses_a_second_derivative_too():
    x = torch.randn(3, requires_grad=True)
    y = measured_hold(x, 2.0, lambda grad: 2.0, exact=True).square().sum()
    (grad,) = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(grad, 8 * x)  # 2 * held * 2
    with pytest.raises(RuntimeError, match=r"second derivative .*us\.full_precision"):
        torch.autograd.grad(y, x, create_graph=True)
