"""Magnitudes over many batches, and the clips that are chosen from them."""

from dataclasses import replace

import pytest
import torch

from unitscale.deploy import SCHEMES
from unitscale.deploy.histogram import BINS, Histogram, check_use, scale_of
from unitscale.formats import E4M3FN, INT8, NVFP4, Codec

INTEGERS, FLOATS = Codec(format=INT8), Codec(format=E4M3FN)
NORMAL = torch.randn(200_000, generator=torch.Generator().manual_seed(0))


def counted(*parts):
    found = Histogram()
    for part in parts:
        found.add(part)
    return found


def test_parts_count_as_the_whole():
    parts = NORMAL.reshape(4, -1)
    found = counted(parts[0] / 1000, *parts[1:], torch.zeros(7), torch.zeros(0))
    assert found.counts.sum() == len(NORMAL) + 7
    assert found.amax == parts[1:].abs().max()
    assert found.amax <= found.range < 2 * found.amax


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_a_percentile_is_that_of_the_values_to_a_bin(percentile):
    found = counted(*NORMAL.split(1000))
    clip = found.clip("percentile", percentile, INTEGERS)
    exact = NORMAL.abs().double().quantile(percentile / 100).item()
    assert exact <= clip <= exact + 2 * found.range / BINS


def test_amax_is_exact_and_the_last_percentile_is_no_more():
    found = counted(NORMAL)
    assert found.clip("amax", 99, INTEGERS) == found.clip("percentile", 100, INTEGERS)
    assert found.clip("amax", 99, INTEGERS) == NORMAL.abs().max().item()


def test_mse_clips_integers_where_an_outlier_is_and_floats_hardly():
    x = torch.cat((NORMAL, torch.tensor([40.0])))
    found = counted(x)
    clip = found.clip("mse", 99, INTEGERS)
    assert clip < 0.6 * found.amax
    error = lambda scale, codec: (codec.round(x, scale=scale) - x).square().sum().item()
    scales = torch.linspace(0.2, 1, 33) * found.amax / 127
    best = min(error(scale.item(), INTEGERS) for scale in scales)
    # What the bins hide of it: a 16th of a step's error at most, both ways.
    assert error(clip / 127, INTEGERS) <= best * (1 + 2 / 16)
    assert error(found.amax / 127, INTEGERS) > 2 * best
    floats = found.clip("mse", 99, FLOATS)
    gained = error(found.amax / 448, FLOATS) / error(floats / 448, FLOATS)
    assert gained < 1.5


def test_zeros_have_a_scale():
    found = counted(torch.zeros(5))
    assert found.clip("mse", 99, INTEGERS) == found.clip("percentile", 99, INTEGERS) == 0
    assert scale_of(0.0, FLOATS) > 0


def test_nan_and_infinity_are_noticed():
    for value in (float("nan"), float("inf")):
        assert not counted(torch.tensor([1.0, value])).is_finite
    assert counted(NORMAL).is_finite


def test_scales():
    assert torch.equal(scale_of(448.0, FLOATS), torch.ones(1))
    assert torch.equal(scale_of(3.0, INTEGERS), torch.tensor([3.0]) / 127)
    assert torch.equal(scale_of(2688.0, Codec(format=NVFP4)), torch.ones(1))
    assert scale_of(3.0, Codec(format=INT8, power_of_two="rceil")) == 2.0**-5


@pytest.mark.parametrize("codec", [INTEGERS, FLOATS], ids=str)
def test_mse_is_that_of_scales_that_are_powers_of_two(codec):
    """The chosen scale is the best of all powers of two; the amax's is not, in integers."""
    rounded = replace(codec, power_of_two="rceil")
    found = counted(NORMAL)
    scale = scale_of(found.clip("mse", 99, rounded), rounded)
    error = lambda scale: (codec.round(NORMAL, scale=scale) - NORMAL).square().sum().item()
    largest = scale_of(found.amax, rounded).item()
    best = min(error(largest / 2**k) for k in range(3))
    # What the bins hide of it: a 16th of a step's error at most, both ways.
    assert error(scale.item()) <= best * (1 + 2 / 16)
    if codec is INTEGERS:
        assert error(largest) > 2 * best


@pytest.mark.parametrize(
    ("clip", "recipe", "message"),
    [
        ("mse", "nvfp4", "clip='mse' chooses one scale .*, and 'nvfp4' has blocks"),
        ("mse", "mxfp8", "and 'mxfp8' has blocks"),
        ("mse", "nvfp4-weight", "and 'nvfp4-weight' has blocks"),
        ("percentile", "fp8-dynamic", "static scales for inputs, and 'fp8-dynamic' has none"),
        ("percentile", "int8-weight", "and 'int8-weight' has none"),
    ],
)
def test_a_clip_that_would_do_nothing_is_refused(clip, recipe, message):
    with pytest.raises(ValueError, match=message):
        check_use(clip, SCHEMES[recipe])
    check_use("amax", SCHEMES[recipe])
    check_use(clip, SCHEMES["int8"])
