"""Why payloads are summed in float32: what sums in 8 bits would do, computed in one process."""

import pytest
import torch
from torch import Tensor

from unitscale.distributed.collective import finite_amaxes, gather, ring_bytes, scatter_mean
from unitscale.distributed.payload import Layout, values
from unitscale.formats import E4M3FN, round_to


def rounded_mean(parts: Tensor) -> Tensor:
    """What the ranks of the hook compute, at the scale 1: each payload rounded, and the mean."""
    return round_to(round_to(parts, E4M3FN).mean(0), E4M3FN)


def ring_mean(parts: Tensor) -> Tensor:
    """A ring that rounds its running sum at every hop; the 1 / N comes first, so none overflows."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = round_to(total + round_to(part / len(parts), E4M3FN), E4M3FN)
    return total


def error_of(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_the_error_does_not_grow_with_ranks_and_that_of_a_ring_does() -> None:
    ours, ring = [], []
    for ranks in (4, 16, 64):
        parts = 16 * torch.randn(ranks, 4000)
        ours.append(error_of(rounded_mean(parts), parts.mean(0)))
        ring.append(error_of(ring_mean(parts), parts.mean(0)))
    assert ours == pytest.approx([0.0375] * 3, abs=0.002)
    # Each hop adds a rounding of the running sum: errors grow as the root of the ranks.
    assert ring[0] > 1.2 * ours[0]
    assert ring[1] > 1.5 * ring[0]
    assert ring[2] > 1.5 * ring[1]


def test_sums_in_8_bits_overflow_where_those_in_float32_do_not() -> None:
    parts = torch.full((16, 8), 64.0)  # well inside of the format, whose largest value is 448
    total = torch.zeros(8)
    for part in parts:
        total = round_to(total + part, E4M3FN)
    assert (total / 16 == 28).all()  # it should be 64
    assert (rounded_mean(parts) == 64).all()


def test_a_ring_sends_all_but_its_own_share_twice() -> None:
    assert [ring_bytes(100, ranks) for ranks in (1, 2, 4, 3)] == [0, 100, 150, 134]


def test_one_rank_sends_nothing_and_rounds_once() -> None:
    layout = Layout((5,), 1)
    payload = torch.tensor([1.0, -2, 448, 0.5, torch.nan]).to(torch.float8_e4m3fn).view(torch.uint8)
    shard, sent = scatter_mean(payload, layout, E4M3FN, E4M3FN, None)
    whole, trailers, more = gather(shard, torch.tensor([7, 8], dtype=torch.int32), layout, None)
    assert sent == more == 0
    assert torch.equal(whole, payload)
    assert trailers.tolist() == [[7, 8]]
    assert values(whole, E4M3FN)[4].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_amaxes_are_of_finite_elements(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -3, torch.nan, -torch.inf, torch.inf, 0, 0, 2], dtype=dtype)
    assert finite_amaxes(x, [3, 2, 0, 2, 1]).tolist() == [3, 0, 0, 0, 2]


def test_an_amax_beyond_float32_is_its_largest_value() -> None:
    assert finite_amaxes(torch.tensor([1e300], dtype=torch.float64), [1]).tolist() == [
        torch.finfo(torch.float32).max
    ]
