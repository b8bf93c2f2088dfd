"""Results of products are sums: at unit scale, rounded to FP16, they must not overflow."""

import pytest
import torch

from unitscale.formats import FP16, round_to
from unitscale.gemm import ProductFormats, conv1d, linear, matmul

ROWS = 5000  # of equal rows, whose gradients add up instead of averaging out
VALUE = 16.0  # 5000 * 16 is beyond FP16's 65504
each_source = pytest.mark.parametrize("source", [" unit", ""], ids=["unit", "cast"])


@each_source
def test_sum_over_rows_overflows_only_without_unit_scale(source):
    x, weight = torch.ones(ROWS, 2), torch.zeros(3, 2, requires_grad=True)
    formats = ProductFormats.of(f"FP16{source}", f"FP16{source}", "FP16")
    linear(x, weight, formats=formats).backward(torch.full((ROWS, 3), VALUE))
    wanted = ROWS * VALUE if source else torch.inf
    assert torch.equal(weight.grad, torch.full((3, 2), wanted))


def test_it_is_rounded_all_the_same():
    x, weight = torch.randn(64, 8), torch.zeros(4, 8, requires_grad=True)
    formats = ProductFormats.of("FP16 unit", "FP16 unit", "FP16")
    linear(x, weight, formats=formats).backward(torch.randn(64, 4))
    assert torch.equal(round_to(weight.grad, FP16), weight.grad)


FEATURES = 64
LARGE = 3000.0  # 64 * 3000 is beyond FP16's 65504, and so is a gradient of a Llama at step 112


@each_source
@pytest.mark.parametrize(
    ("op", "shape"),
    [(linear, (FEATURES, FEATURES)), (matmul, (2, FEATURES, FEATURES)), (conv1d, (64, 64, 1))],
)
def test_sum_over_features_overflows_only_without_unit_scale(op, shape, source):
    formats = ProductFormats.of(f"FP16{source}", f"FP16{source}", "FP16")
    x, weight = torch.ones(2, FEATURES, FEATURES, requires_grad=True), torch.ones(shape)
    output = op(x * LARGE, weight, formats=formats)
    wanted = FEATURES * LARGE if source else torch.inf
    assert torch.equal(output, torch.full_like(output, wanted))
    op(x, weight, formats=formats).backward(torch.full_like(output, LARGE))
    assert torch.equal(x.grad, torch.full_like(x, wanted))


def test_at_unit_scale_the_grid_is_that_of_a_smaller_value():
    """Rounding is to FP16's 11 bits, and by 2^-4 the smallest subnormal is 2^-20."""
    formats = ProductFormats.of("FP16 unit", "FP16 unit", "FP16")
    x, weight = torch.randn(32, FEATURES), torch.randn(FEATURES, FEATURES)
    x, weight = (round_to(v, FP16) for v in (x, weight))
    want = round_to((x @ weight.T) / 16, FP16) * 16
    assert torch.equal(linear(x, weight, formats=formats), want)
    tiny = linear(torch.full((1, 1), 2.0**-20), torch.full((1, 1), 0.75), formats=formats)
    assert tiny.item() == 2.0**-20
