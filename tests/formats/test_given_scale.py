"""Scales that a caller gives to a codec: used as they are, or refused."""

import math
import re

import pytest
import torch

from formats.codec_oracle import CODECS, each_codec, equal
from unitscale.formats import (
    E4M3FN,
    FP16,
    MX_E4M3FN,
    NVFP4,
    Codec,
    PerBlock,
    round_to,
)


def test_a_given_scale_is_used_and_no_amax_taken():
    x = torch.tensor([[3.0, -1000.0], [0.3, math.nan]])
    for scale in (0.5, torch.tensor(0.5), torch.tensor([[0.5], [0.25]]), torch.full((2, 2), 0.5)):
        e = Codec(format=E4M3FN).grid(x, scale=scale)
        expected = round_to(x / torch.as_tensor(scale), E4M3FN)
        assert torch.equal(e.data.nan_to_num(-7), expected.nan_to_num(-7))
        assert e.data[0, 1] == -448
        assert torch.equal(e.scale, torch.as_tensor(scale, dtype=torch.float32))
    infinite = Codec(format=FP16).grid(torch.tensor([1e6]), scale=1.0)
    assert infinite.data.isinf().all()


@each_codec
def test_scales_given_back_give_the_same(codec):
    x = torch.randn(40, 70)
    e = codec.grid(x)
    assert all(map(equal, codec.grid(x, scale=e.scale, tensor_scale=e.tensor_scale), e))


def test_one_given_scale_serves_every_block():
    x = torch.randn(40, 70)
    for codec in (Codec(format=E4M3FN, granularity=PerBlock(16)), Codec(format=MX_E4M3FN)):
        e = codec.grid(x, scale=2.0**-6)
        assert e.scale.shape == codec.groups.scale_shape(x.shape)
        assert torch.equal(codec.decode(codec.pack(e)), round_to(x * 64, E4M3FN) / 64)


def test_a_given_tensor_scale_takes_no_amax_of_the_tensor():
    """A unit as the second level: a row's values do not depend on the other rows."""
    x = torch.randn(8, 32)
    nvfp4 = Codec(format=NVFP4)
    for unit in (2.0**-8, torch.tensor(2.0**-8), torch.tensor([2.0**-8])):
        y = nvfp4.round(x, tensor_scale=unit)
        assert torch.equal(nvfp4.round(x[:1] * 1, tensor_scale=unit), y[:1])
        assert nvfp4.grid(x, tensor_scale=unit).tensor_scale == 2.0**-8
    x[1:] *= 1000
    assert not torch.equal(nvfp4.round(x)[:1], nvfp4.round(x[:1]))


@pytest.mark.parametrize(
    ("codec", "given", "message"),
    [
        (CODECS[0], {"scale": 0.0}, "scale is 0.0; expected a positive number"),
        (CODECS[0], {"scale": math.nan}, "scale is nan"),
        (CODECS[0], {"scale": torch.ones(3)}, "scale has shape (3,)"),
        (CODECS[0], {"scale": torch.ones(2, 40, 70)}, "scale has shape (2, 40, 70)"),
        (CODECS[6], {"scale": torch.ones(40, 70)}, "broadcasts to (40, 3)"),
        (CODECS[6], {"scale": 0.3}, "scale is 0.3"),
        (CODECS[6], {"tensor_scale": 1.0}, "MX_E4M3FN has no tensor_scale"),
        (CODECS[0], {"tensor_scale": 1.0}, "E4M3FN has no tensor_scale"),
        (CODECS[10], {"tensor_scale": -1.0}, "tensor_scale is -1.0"),
        (CODECS[10], {"tensor_scale": torch.ones(2)}, "tensor_scale has shape (2,)"),
        (CODECS[10], {"scale": torch.tensor(449.0)}, "expected a value of E4M3FN"),
        (CODECS[0], {"seed": 3}, "a seed is of no use"),
    ],
)
def test_arguments_are_checked(codec, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        codec.grid(torch.randn(40, 70), **given)
