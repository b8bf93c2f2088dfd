"""Rounding in the lanes of a vmap is rounding of all of them at once."""

import pytest
import torch

from unitscale.formats import E4M3FN, E5M2, round_to
from unitscale.formats.batched import is_batched, over_lanes


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_lanes_are_rounded_to_the_same_bits(fmt, axis):
    x = torch.randn(5, 7) * 300
    y = torch.vmap(lambda lane: round_to(lane, fmt), in_dims=axis, out_dims=axis)(x)
    assert torch.equal(y, round_to(x, fmt))
    assert not torch.equal(y, x)


def test_lanes_of_lanes_are_rounded_too():
    x = torch.randn(3, 4, 5) * 300
    y = torch.vmap(torch.vmap(lambda lane: round_to(lane, E4M3FN)))(x)
    assert torch.equal(y, round_to(x, E4M3FN))


def test_a_tensor_is_batched_inside_of_vmap_alone():
    seen = []

    def look(lane):
        seen.append(is_batched(lane))
        return over_lanes(torch.neg, lane)

    x = torch.randn(3, 2)
    assert torch.equal(torch.vmap(look)(x), -x)
    assert seen == [True]
    assert not is_batched(x)
