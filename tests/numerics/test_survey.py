"""One pass over chunks says what the single statistics say, in the memory of a few chunks."""

import math

import pytest
import torch

from numerics.allocation import largest_allocation
from unitscale.formats import E4M3FN, E5M2, E8M0FNU, FORMATS, FP16, FP64
from unitscale.numerics import amax, flushed_fraction, rms, saturated_fraction
from unitscale.numerics import chunk as chunk_module
from unitscale.numerics.chunk import chunks
from unitscale.numerics.survey import Survey, survey

NAN, INF = math.nan, math.inf
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
CHUNK = 512


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunk_module, "CHUNK", CHUNK)


def assert_same(found, expected, terms):
    """Equal but for the order of a sum of `terms` squares in float64; NaN equals NaN."""
    assert found[1:] == pytest.approx(expected[1:], rel=0, abs=0, nan_ok=True)
    assert found.rms == pytest.approx(expected.rms, rel=terms * 2.0**-53)


def by_single_statistics(x, fmt):
    finite = x[~x.isinf()]
    return Survey(
        rms(x, skip_fill=True).item(),
        amax(finite).item(),
        saturated_fraction(x, fmt).item(),
        flushed_fraction(x, fmt).item(),
    )


def test_assert_same_tells_apart():
    one = Survey(1.0, 2.0, 0.0, 0.5)
    assert_same(one._replace(amax=NAN), one._replace(amax=NAN), 1)
    for other in (one._replace(flushed=0.25), one._replace(rms=1.0 + 1e-12)):
        with pytest.raises(AssertionError):
            assert_same(one, other, 1)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
@each_float
def test_equals_the_single_statistics_for_every_format(fmt, dtype):
    """Values on both sides of both ends of each format, ties and zeros among them."""
    ends = [fmt.max, fmt.min_normal, fmt.min_subnormal, fmt.min_subnormal / 2]
    near = [end * (1 + k / 8) for end in ends for k in range(-4, 5)]
    x = torch.tensor([0.0, -0.0, NAN, INF, *near], dtype=torch.float64)
    x = torch.cat([x, -x, torch.randn(300, dtype=torch.float64)]).to(dtype)
    assert_same(survey(x, format=fmt), by_single_statistics(x, fmt), x.numel())
    clean = x[x.isfinite()]
    assert_same(survey(clean, format=fmt), by_single_statistics(clean, fmt), x.numel())


@pytest.mark.parametrize("log2_scale", [-7, 3, 40])
def test_shares_are_of_the_scaled_values(log2_scale):
    x = torch.randn(1000) * 2.0**-5
    held = (x.double() * 2.0**log2_scale).float()
    expected = by_single_statistics(held, E4M3FN)
    found = survey(x, format=E4M3FN, log2_scale=log2_scale)
    assert (found.saturated, found.flushed) == (expected.saturated, expected.flushed)
    assert found[:2] == survey(x, format=None)[:2]


def test_the_product_is_not_rounded_to_the_dtype_of_x():
    """In float16 it would overflow, or be flushed before the format is asked."""
    x = torch.tensor([2.0**-10, 2.0**-20], dtype=torch.float16)
    assert survey(x, format=FP64, log2_scale=-900)[2:] == (0.0, 0.0)
    assert survey(x, format=E5M2, log2_scale=20)[2:] == (0.0, 0.0)
    assert survey(x, format=FP16, log2_scale=40).saturated == 1.0


def test_every_shape_and_stride():
    x = torch.randn(6, 70, 40)
    expected = survey(x, format=E4M3FN)
    views = [x.mT, x.permute(2, 0, 1), x[:, None], x.flip(0), torch.stack([x, x], 2)[:, :, 0]]
    for view in views:
        assert_same(survey(view, format=E4M3FN), expected, x.numel())


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(0, 3), Survey(0.0, 0.0, 0.0, 0.0)),
        (torch.tensor(-2.0), Survey(2.0, 2.0, 0.0, 0.0)),
        (torch.tensor(2.0**-20), Survey(2.0**-20, 2.0**-20, 0.0, 1.0)),
        (torch.tensor([INF, -INF]), Survey(0.0, 0.0, 1.0, 0.0)),
        (torch.tensor([NAN, 3.0]), Survey(3.0, NAN, 0.0, 0.0)),
        (torch.tensor([-(2.0**64), 4.0, INF, 4.0]), Survey(4.0, 2.0**64, 0.5, 0.0)),
        (torch.zeros(100), Survey(0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_special_values(x, expected):
    assert survey(x, format=E4M3FN) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert survey(x, format=None)[2:] == (None, None)


def test_a_nan_in_one_chunk_is_seen():
    x = torch.ones(10 * CHUNK)
    x[5 * CHUNK] = NAN
    assert survey(x, format=None)[:1] == (1.0,)
    assert math.isnan(survey(x, format=None).amax)


def test_nothing_is_flushed_where_there_is_no_zero():
    assert survey(torch.tensor([2.0**-140]), format=E8M0FNU).flushed == 0.0


@pytest.mark.parametrize("step", [1, 2])
def test_memory_is_that_of_chunks(step):
    x = torch.randn(20 * step, CHUNK)[::step]
    assert largest_allocation(survey, x, format=E4M3FN) == CHUNK
    assert largest_allocation(lambda: x.double()) == x.numel()


def test_chunks_hold_every_element_once():
    x = torch.arange(6 * 50 * 70).view(6, 50, 70)
    holes = torch.stack([x, -x], -1)[..., 0]
    for view in (x, x.mT, x.permute(1, 2, 0), x[:, :, :65], x[:, ::3], holes, holes.mT, x[0, 0, 0]):
        found = list(chunks(view, 32))
        assert max(part.numel() for part in found) <= 32
        together = torch.cat([part.reshape(-1) for part in found])
        assert torch.equal(together.sort().values, view.reshape(-1).sort().values)
    assert list(chunks(torch.zeros(0, 3))) == []
    assert len(list(chunks(torch.zeros(2 * CHUNK)))) == 2


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"survey: dtype is torch.int64; expected float64"):
        survey(torch.zeros(3, dtype=torch.int64), format=None)
    with pytest.raises(ValueError, match="log2_scale is 1001; expected -1000 to 1000"):
        survey(torch.zeros(3), format=E4M3FN, log2_scale=1001)


def test_the_input_is_a_constant():
    x = torch.randn(10, requires_grad=True)
    assert survey(x, format=None).rms == survey(x.detach(), format=None).rms
