"""`Codec` on zeros, nothing, other dtypes, wide formats, odd strides; and by chance."""

import math

import pytest
import torch

from formats.codec_oracle import each_codec, equal
from unitscale.formats import (
    BF16,
    E4M3FN,
    FP32,
    FP64,
    MX_E4M3FN,
    NVFP4,
    TF32,
    Codec,
    PerAxis,
    PerBlock,
    PerTensor,
    round_to,
)


@each_codec
def test_zeros_stay_and_keep_their_sign(codec):
    x = torch.zeros(40, 70)
    x[1] = -0.0
    for encoded in (codec.grid(x), codec.encode(x)):
        y = codec.decode(encoded)
        assert torch.equal(y, x)
        assert torch.equal(y.signbit(), x.signbit())
        assert encoded.scale.float().isfinite().all()


@each_codec
def test_empty_tensors(codec):
    for shape in ((0, 64), (64, 0), (2, 0, 64)):
        e = codec.encode(torch.zeros(shape))
        assert codec.decode(e).shape == shape
        assert codec.round(torch.zeros(shape)).shape == shape
        assert tuple(e.scale.shape) == codec.groups.scale_shape(shape)


def test_a_tensor_of_no_dimensions():
    for granularity in (PerTensor(), PerAxis()):
        codec = Codec(format=E4M3FN, granularity=granularity)
        e = codec.encode(torch.tensor(3.0))
        assert (e.data.shape, e.scale.shape) == ((), ())
        assert codec.decode(e) == 3.0
    with pytest.raises(ValueError, match="no axis -1"):
        Codec(format=MX_E4M3FN).grid(torch.tensor(3.0))


@each_codec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_are_widened_before_they_meet_a_scale(codec, dtype):
    """At 1e-5 and below, the scales of most codecs are zero in float16."""
    x = (torch.randn(40, 70) * 1e-4).to(dtype)
    e = codec.grid(x)
    assert all(map(equal, e, codec.grid(x.float())))
    assert codec.round(x).dtype == dtype
    assert equal(codec.round(x), codec.decode(e).to(dtype))


@each_codec
def test_float64(codec):
    x = torch.randn(40, 70)
    e, wide = codec.grid(x), codec.grid(x.double())
    assert (wide.data.dtype, wide.scale.dtype) == (torch.float64, torch.float32)
    assert equal(wide.scale, e.scale)
    # A quotient rounded to float32 crosses a tie at 2**-24 of its value: about 2**-20 of them do.
    differ = (wide.data != e.data).float().mean()
    assert differ == 0 if codec.rule else differ < 1e-3
    assert torch.equal(codec.decode(codec.pack(wide), torch.float64), codec.round(x.double()))


def test_16_bit_values_do_not_overflow_where_the_elements_saturate():
    """65,500 at the scale 256 is 256 steps, so 65,536: past the largest of float16."""
    codec = Codec(format=E4M3FN, power_of_two="rceil")
    x = torch.tensor([65_500.0, -65_500.0], dtype=torch.float16)
    assert codec.round(x).tolist() == [65_504.0, -65_504.0]
    assert codec.round(x.float()).tolist() == [65_536.0, -65_536.0]
    top = torch.tensor([torch.finfo(torch.float32).max])
    assert codec.round(top).isinf().all()  # as `decode` says
    assert Codec(format=E4M3FN, power_of_two="floor").round(top).isfinite().all()


@pytest.mark.parametrize("fmt", [FP32, BF16, TF32, FP64], ids=str)
def test_formats_as_wide_as_float32_are_not_scaled(fmt):
    x = torch.tensor([1e-30, 3.3, 1e38, math.inf, math.nan, -0.0])
    codec = Codec(format=fmt, granularity=PerAxis())
    e = codec.grid(x)
    assert e.scale.tolist() == [1.0]
    expected = round_to(x, fmt, saturate=False)
    assert torch.equal(codec.round(x).nan_to_num(-7.0, 1.5), expected.nan_to_num(-7.0, 1.5))


def test_strides_do_not_matter():
    x = torch.randn(64, 96)
    assert torch.equal(
        Codec(format=NVFP4).round(x.t()),
        Codec(format=NVFP4, granularity=PerBlock(16, 0)).round(x).t(),
    )


@each_codec
def test_no_gradient_passes_and_the_input_is_left_alone(codec):
    x = torch.randn(40, 70, requires_grad=True)
    before = x.detach().clone()
    for y in (*codec.encode(x), codec.round(x)):
        assert y is None or not y.requires_grad
    assert torch.equal(x.detach(), before)


def test_stochastic_is_unbiased_and_takes_a_seed():
    x = torch.full((4096,), 0.3)
    x[0] = 1.0
    codec = Codec(format=E4M3FN, power_of_two="rceil", rounding="stochastic")
    y = codec.round(x, seed=1)
    assert torch.equal(y, codec.round(x, seed=1))
    assert not torch.equal(y, codec.round(x, seed=2))
    low, high = y[1:].min(), y[1:].max()
    assert low < 0.3 < high
    # Of 4,095 draws, five standard errors of the mean, each at most half a spacing.
    assert abs(y[1:].mean() - 0.3) < 5 * (high - low) / 2 / math.sqrt(4095)
