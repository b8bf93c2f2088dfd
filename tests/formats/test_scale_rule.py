"""The rules for powers of two, at every exponent and next to every value where one changes."""

import numpy as np
import pytest
import torch

from formats.codec_oracle import RULES, power_of_two
from unitscale.formats import E2M1FN, E4M3FN, E4M3FNUZ, E5M2, FP16
from unitscale.formats.scale_rule import (
    power_of_two_code,
    power_of_two_scale,
    power_of_two_value,
)


def amaxes(fmt):
    """Each power of two of float32 times each mantissa of four bits and its two neighbors."""
    mantissas = torch.cat([torch.arange(16, 32) / 16, torch.tensor([fmt.max])])
    x = (mantissas * torch.exp2(torch.arange(-126.0, 112))[:, None]).flatten()
    return torch.cat([x, x.nextafter(torch.zeros(())), x.nextafter(x * 2)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fmt", [E2M1FN, E4M3FN, E4M3FNUZ, E5M2, FP16], ids=str)
def test_every_exponent(fmt, rule):
    amax = amaxes(fmt)
    for margin in (0, 5):
        scale, inverse = power_of_two_scale(amax, fmt, rule, margin)
        exponent = power_of_two(amax.double().numpy(), fmt, rule, margin).clip(-127, 127)
        assert np.array_equal(scale.double().numpy(), np.ldexp(1.0, exponent))
        assert torch.equal(scale * inverse, torch.ones_like(scale))
        assert torch.equal(power_of_two_value(power_of_two_code(scale)), scale)


def test_the_ends():
    amax = torch.tensor([0.0, 2.0**-149, torch.finfo(torch.float32).max, torch.inf, torch.nan])
    scale, inverse = power_of_two_scale(amax, E4M3FN, "floor", 0)
    assert scale[:4].tolist() == [2.0**-127, 2.0**-127, 2.0**119, torch.inf]
    assert inverse[:4].tolist() == [2.0**127, 2.0**127, 2.0**-119, 0.0]
    assert scale[4].isnan()
    assert inverse[4].isnan()
    scale, inverse = power_of_two_scale(amax[2:3], E4M3FN, "floor", 64)
    assert (scale.item(), inverse.item()) == (2.0**127, 2.0**-127)


def test_all_codes():
    codes = torch.arange(256).to(torch.uint8)
    values = power_of_two_value(codes)
    assert values[:255].double().tolist() == [2.0**code for code in range(-127, 128)]
    assert values[255].isnan()
    assert torch.equal(power_of_two_code(values), codes)
