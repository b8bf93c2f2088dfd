"""The digest against the statistics that are computed one by one."""

import math

import pytest
import torch

from numerics.allocation import largest_allocation
from unitscale.formats import E4M3FN, E5M2
from unitscale.numerics import (
    amax,
    digest,
    exponent_histogram,
    flushed_fraction,
    kurtosis,
    rms,
    saturated_fraction,
    sqnr_db,
    subnormal_fraction,
)
from unitscale.numerics import chunk as chunk_module
from unitscale.numerics.digest import LINE, every, read, stride_of

FORMATS = (E4M3FN, E5M2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 300.0])
def test_whole_tensor_has_the_exact_statistics(dtype, scale):
    x = (torch.randn(60, 50) * scale).to(dtype)
    row = digest(x, FORMATS, sample=x.numel()).row()
    assert row["rms"] == pytest.approx(rms(x).item(), rel=1e-5)
    assert row["amax"] == pytest.approx(amax(x).item(), rel=1e-5)
    assert row["kurtosis"] == pytest.approx(kurtosis(x).item(), rel=1e-4)
    assert row["mean"] == pytest.approx(x.double().mean().item(), rel=1e-3, abs=1e-9)
    assert (row["data_fraction"], row["sampled"]) == (1.0, 3000)
    low, counts = row["histogram"]
    assert {low + i: n for i, n in enumerate(counts) if n} == exponent_histogram(x)
    for fmt in FORMATS:
        from unitscale.formats import round_to

        found, y = row["formats"][fmt.name], x.float()
        assert found["flushed"] == pytest.approx(flushed_fraction(y, fmt).item(), rel=1e-5)
        assert found["subnormal"] == pytest.approx(subnormal_fraction(y, fmt).item(), rel=1e-5)
        assert found["saturated"] == pytest.approx(saturated_fraction(y, fmt).item(), rel=1e-5)
        assert found["sqnr_db"] == pytest.approx(sqnr_db(y, round_to(y, fmt)).item(), rel=1e-4)


def test_shares_are_those_of_the_tensor_as_held():
    x = torch.randn(4096) * 2.0**-20
    assert digest(x, [E5M2]).row()["formats"]["E5M2"]["flushed"] > 0.9
    held = digest(x, [E5M2], held_log2=20).row()
    assert held["formats"]["E5M2"]["flushed"] < 0.001
    assert held["rms"] == pytest.approx(2.0**-20, rel=0.05)  # of the true values


def test_nan_infinity_and_fill_values_are_no_data():
    x = torch.tensor(
        [1.0, -1.0, math.inf, math.nan, torch.finfo(torch.float32).min, 1.0, -1.0, 1.0]
    )
    row = digest(x, FORMATS).row()
    assert (row["rms"], row["amax"], row["data_fraction"]) == (1.0, 1.0, 5 / 8)
    assert row["histogram"] == [0, [5]]
    assert row["formats"]["E4M3FN"]["sqnr_db"] is None  # no error at all


@pytest.mark.parametrize("x", [torch.zeros(7), torch.empty(0, 3), torch.full((4,), math.nan)])
def test_tensor_without_values_has_zeros(x):
    row = digest(x, FORMATS).row()
    assert (row["rms"], row["amax"], row["kurtosis"], row["histogram"]) == (0.0, 0.0, None, [0, []])


@pytest.mark.parametrize("value", [1e-30, 1e18])
def test_extreme_scales_do_not_under_or_overflow(value):
    assert digest(torch.full((100,), value), FORMATS).row()["rms"] == pytest.approx(value, rel=1e-5)


def test_sample_visits_every_channel():
    x = torch.arange(64.0).repeat(4096, 1)  # a channel holds one value
    row = digest(x, FORMATS, sample=4096).row()
    assert 3000 < row["sampled"] <= 4096
    assert stride_of(x.numel(), 4096) % 2 == 1
    assert row["mean"] == pytest.approx(31.5, rel=0.02)
    assert row["amax"] == 63.0


def test_sampled_share_is_within_five_standard_errors():
    x = torch.randn(1 << 18) * 2.0**-9
    share = flushed_fraction(x, E4M3FN).item()
    row = digest(x, [E4M3FN]).row()
    tolerance = 5 * math.sqrt(share * (1 - share) / row["sampled"])
    assert abs(row["formats"]["E4M3FN"]["flushed"] - share) < tolerance


def test_many_tensors_read_together_are_as_each_alone():
    draw = torch.Generator().manual_seed(3)
    tensors = [torch.randn(n, generator=draw) for n in (5, 4096, 0, 5, 70_000, 4096, 1)]
    tensors += [torch.tril(tensors[1].view(64, 64)) + torch.full((64, 64), -math.inf).triu(1)]
    tensors += [tensors[1].half() * 2.0**-8, tensors[1].double() * 2.0**80]
    shifts = [0, 3, 1, -4, 0, 5, 2, 0, 0, -80]
    found = [digest(x, FORMATS, held_log2=k) for x, k in zip(tensors, shifts, strict=True)]
    rows = read(found)
    assert rows == [one.row() for one in found]
    assert [row["sampled"] for row in rows][:4] == [5, 4096, 0, 5]
    assert (rows[7]["sampled"], rows[7]["data_fraction"]) == (64 * 65 // 2, pytest.approx(0.507812))


def test_digest_is_of_the_tensor_as_it_was():
    x = torch.randn(300)
    found, expected = digest(x, FORMATS), digest(x.clone(), FORMATS).row()
    x.zero_()
    assert found.row() == expected


@pytest.mark.parametrize("chunk", [500, 3 * LINE])
def test_a_digest_in_chunks_is_that_of_the_whole(chunk, monkeypatch):
    x = torch.randn(200, 300)
    masked = torch.where(x > 2, -math.inf, x)
    views = [x, masked, x.t(), masked.t(), x[:, ::3], x.half(), x.double()]
    expected = [digest(view, FORMATS).row() for view in views]
    monkeypatch.setattr(chunk_module, "CHUNK", chunk)
    for view, row in zip(views, expected, strict=True):
        found = digest(view, FORMATS).row()
        assert found["rms"] == pytest.approx(row["rms"], rel=1e-5)
        assert found | {"rms": 0} == row | {"rms": 0}


def test_a_long_sum_does_not_stall():
    """A sum of ones in float32 stands still at 2**24."""
    ones = torch.ones(()).expand(2**20, 32)
    row = digest(ones, FORMATS).row()
    assert (row["rms"], row["data_fraction"]) == (1.0, 1.0)
    stalled = torch.linalg.vector_norm(ones, dtype=torch.float32)
    assert stalled / 2.0**12.5 == pytest.approx(0.5**0.5)


def test_a_sum_of_long_lines_is_exact_to_six_digits():
    x = torch.full((100 * LINE + 17,), 1.1)
    assert digest(x, FORMATS).row()["rms"] == pytest.approx(1.1, rel=1e-5)


@pytest.mark.parametrize("view", [lambda x: x, torch.t, lambda x: x[:, 1:]], ids=["", "t", "part"])
def test_a_digest_copies_no_large_tensor(view, monkeypatch):
    size = 4096
    monkeypatch.setattr(chunk_module, "CHUNK", size)
    x = view(torch.randn(40, size + 1))
    for tensor in (x, torch.where(x > 2, -math.inf, x)):
        assert largest_allocation(digest, tensor, FORMATS, sample=1000) <= size


def test_the_sample_follows_rows_in_every_layout():
    x = torch.arange(7 * 11 * 5).view(7, 11, 5)
    for view in (x, x.mT, x[:, ::2], x.permute(2, 0, 1)):
        assert torch.equal(every(view, 3), view.reshape(-1)[::3])
