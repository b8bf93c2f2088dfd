"""FSDP2's collectives by themselves: what they write, count and refuse, on one rank."""

import pytest
import torch
import torch.distributed as dist

from distributed.grid import assert_few_bits, relative_error
from unitscale.distributed.fsdp import BLOCK, AllGather, ReduceScatter
from unitscale.formats import E4M3FN, E5M2, round_to

pytestmark = pytest.mark.usefixtures("one_rank")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def scattered(x: torch.Tensor, op: object = dist.ReduceOp.AVG, fmt=E4M3FN) -> torch.Tensor:
    out = torch.empty_like(x)
    ReduceScatter(fmt, 1)(output_tensor=out, input_tensor=x, group=dist.group.WORLD, op=op)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, BLOCK, 3 * BLOCK + 5])
def test_each_block_has_a_scale_of_its_own(dtype: torch.dtype, count: int) -> None:
    sizes = 10.0 ** -(torch.arange(count) // BLOCK).float()  # one for each block
    x = (torch.randn(count) * sizes).to(dtype)
    y = scattered(x)
    assert y.dtype == dtype
    assert_few_bits(y, E4M3FN)
    for mine, given in zip(y.float().split(BLOCK), x.float().split(BLOCK), strict=True):
        assert relative_error(mine, given) < 2.0**-4  # half a spacing


def test_a_value_at_the_end_of_16_bits_stays_finite() -> None:
    assert scattered(torch.tensor([65504.0]).half()).item() == 65504


def test_what_is_not_finite_is_nan_in_its_block_alone() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        x = torch.ones(3 * BLOCK)
        x[BLOCK + 3] = value
        assert scattered(x).isnan().split(BLOCK)[1].all()
        assert scattered(x).isnan().sum() == BLOCK


def test_bytes_and_flushed_elements_are_counted() -> None:
    comm = ReduceScatter(E5M2, 1)
    x = torch.tensor([1.0, 1e-30, 0.0, -1e-30])
    assert comm.encode(x[None]).shape == (1, 4 + 1)
    assert comm.report().flushed == 2
    assert ReduceScatter(E5M2, 1).encode(torch.ones(2, BLOCK + 1)).shape == (2, BLOCK + 1 + 2)


def test_another_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction is .*MAX.*; expected AVG or SUM"):
        scattered(torch.ones(4), dist.ReduceOp.MAX)


def test_one_own_shard_is_rounded_as_it_is_elsewhere() -> None:
    out = torch.randn(300)
    exact = out.clone()
    AllGather(E4M3FN, 1)(output_tensor=out, input_tensor=out[:], group=dist.group.WORLD)
    assert_few_bits(out, E4M3FN)
    assert relative_error(out, exact) == pytest.approx(0.0265, abs=0.003)


def test_a_product_at_a_unit_gets_the_bits_that_it_would_have_got() -> None:
    """Two roundings of the same mantissa bits are one, at any powers of two."""
    weight = torch.randn(40 * BLOCK) * 0.02
    gathered = weight.clone()
    AllGather(E4M3FN, 1)(output_tensor=gathered, input_tensor=gathered, group=dist.group.WORLD)
    for unit in (2.0**-9, 2.0**-6, 2.0**-4):
        wanted = round_to(weight / unit, E4M3FN)
        found = round_to(gathered / unit, E4M3FN)
        # Blocks put their amax at 224 or above, so that below 2**-6 of it times 2**-8 lies within
        # the normals of both.
        is_normal = (weight.abs() > weight.abs().max() * 2.0**-14) & (wanted.abs() >= 2.0**-6)
        assert is_normal.sum() > 0.9 * len(weight)
        assert torch.equal(found[is_normal], wanted[is_normal])
