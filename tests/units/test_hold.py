"""Factors change numbers, and neither the layout nor what a kernel makes of it."""

import pytest
import torch
import torch.nn.functional as F

from unitscale.units.hold import gapped, hold

HALF, TWO = torch.tensor(0.5), torch.tensor(2.0)

LAYOUTS = {
    "contiguous": torch.randn(4, 6, 8),
    "permuted": torch.randn(4, 6, 8).permute(2, 0, 1),
    "sliced in the last axis": torch.randn(4, 6, 39)[..., :-1],
    "sliced in a middle axis": torch.randn(4, 6, 8)[:, ::2],
    "every second element": torch.randn(4, 6, 8)[..., ::2],
    "half of a chunk": torch.randn(4, 6, 128).chunk(2, -1)[1],
    "an axis of one": torch.randn(5, 1, 6)[..., ::2],
    "expanded": torch.randn(4, 1, 8).expand(4, 6, 8),
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_factor_multiplies_and_keeps_what_gelu_makes_of_the_layout(x: torch.Tensor) -> None:
    held = hold(x, TWO)
    assert torch.equal(held, 2 * x)
    if 0 not in x.stride():
        assert held.is_contiguous() == x.is_contiguous()
        assert torch.equal(F.gelu(hold(held, HALF)), F.gelu(x))


def test_gaps_shrink_to_one_element() -> None:
    x = torch.randn(4, 6, 128).chunk(2, -1)[1]
    assert x.stride() == (768, 128, 1)
    assert gapped(x) == [6 * 65, 65, 1]


def test_gradient_is_multiplied_by_the_other_factor() -> None:
    x = torch.randn(3, requires_grad=True)
    hold(x, TWO, HALF).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 0.5))
