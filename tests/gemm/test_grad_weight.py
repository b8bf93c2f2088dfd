"""The weight gradient is a sum over rows: at unit scale its FP16 result must not overflow."""

import pytest
import torch

from unitscale.formats import FP16, round_to
from unitscale.gemm import ProductFormats, linear

ROWS = 5000  # of equal rows, whose gradients add up instead of averaging out
VALUE = 16.0  # 5000 * 16 is beyond FP16's 65504


@pytest.mark.parametrize("unit", [True, False])
def test_sum_over_rows_overflows_only_without_unit_scale(unit):
    x, weight = torch.ones(ROWS, 2), torch.zeros(3, 2, requires_grad=True)
    formats = ProductFormats("FP16", "FP16", "FP16", unit=unit)
    linear(x, weight, formats=formats).backward(torch.full((ROWS, 3), VALUE))
    wanted = ROWS * VALUE if unit else torch.inf
    assert torch.equal(weight.grad, torch.full((3, 2), wanted))


def test_it_is_rounded_all_the_same():
    x, weight = torch.randn(64, 8), torch.zeros(4, 8, requires_grad=True)
    formats = ProductFormats("FP16", "FP16", "FP16", unit=True)
    linear(x, weight, formats=formats).backward(torch.randn(64, 4))
    assert torch.equal(round_to(weight.grad, FP16), weight.grad)
