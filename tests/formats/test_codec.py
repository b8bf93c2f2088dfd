"""`Codec`: the numbers of before, the figures of the specification, storage and refusals.

The bits are checked in `test_codec_oracle`, the edges in `test_codec_edges`, and graphs in
`test_codec_graph`.
"""

import math
import re

import pytest
import torch

from formats.codec_oracle import CODECS, each_codec, equal
from unitscale.formats import (
    BLOCK_FORMATS,
    E2M1FN,
    E3M4,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E8M0FNU,
    FORMATS,
    FP16,
    MX_E2M1FN,
    MX_E2M3FN,
    MX_E3M2FN,
    MX_E4M3FN,
    NVFP4,
    TF32,
    Codec,
    Encoded,
    PerAxis,
    PerBlock,
    PerTensor,
    PerTile,
    quantize_blocks,
    round_to,
    round_to_blocks,
    rounding,
)

# The same numbers as before.


def round_data(x, fmt):
    """`amax / max` in float32, and what is cast at that scale: the formula of before."""
    amax = x.abs().amax() if x.numel() else x.new_zeros(())
    scale = amax.float().clamp(min=1e-12) / fmt.max
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return round_to(wide / scale, fmt, saturate=True), scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, E4M3FNUZ, FP16, E2M1FN], ids=str)
def test_per_tensor_is_current_scaling_to_the_bit(fmt, dtype):
    for x in (torch.randn(70, 33), torch.zeros(4), torch.tensor(3.0), torch.zeros(0, 3)):
        x = x.to(dtype)
        e = Codec(format=fmt).grid(x)
        data, scale = round_data(x, fmt)
        assert equal(e.data, data)
        assert equal(e.scale, scale)


def test_per_tensor_with_inf_and_nan_is_current_scaling():
    for special in (math.inf, -math.inf, math.nan):
        x = torch.tensor([1.0, special, -0.0])
        e = Codec(format=E4M3FN).grid(x)
        data, scale = round_data(x, E4M3FN)
        for got, expected in ((e.data, data), (e.scale, scale)):
            assert torch.equal(got.nan_to_num(-7.0), expected.nan_to_num(-7.0))
        assert Codec(format=E4M3FN).round(x).isnan().all()


@pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
def test_blocks_are_those_of_the_block_functions(fmt):
    x = torch.randn(40, 70) * torch.exp2(torch.randint(-9, 9, (40, 1)).float())
    for axis in (-1, 0):
        blocks = Codec(format=fmt, granularity=PerBlock(fmt.size, axis))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert equal(blocks.round(x.to(dtype)), round_to_blocks(x.to(dtype), fmt, axis))
        e, q = blocks.encode(x), quantize_blocks(x, fmt, axis)
        assert torch.equal(e.data.view(torch.uint8), q.codes)
        assert torch.equal(e.scale.view(torch.uint8), q.scales)
        assert equal(e.tensor_scale, q.tensor_scale)
    stochastic = Codec(format=fmt, rounding="stochastic")
    expected = round_to_blocks(x, fmt, rounding="stochastic", seed=5)
    assert torch.equal(stochastic.round(x, seed=5), expected)


@each_codec
def test_in_pieces_the_same(codec, monkeypatch):
    x = torch.randn(3, 50, 130)
    whole = [codec.grid(x), codec.encode(x), (codec.round(x),)]
    given = codec.grid(x, scale=whole[0].scale, tensor_scale=whole[0].tensor_scale)
    monkeypatch.setattr(rounding, "piece_size", lambda: 1024)
    monkeypatch.setattr("unitscale.formats.grouping.piece_size", lambda: 1024)
    pieces = [codec.grid(x), codec.encode(x), (codec.round(x),)]
    for got, expected in zip(pieces, whole, strict=True):
        assert all(map(equal, got, expected))
    in_pieces = codec.grid(x, scale=whole[0].scale, tensor_scale=whole[0].tensor_scale)
    assert all(map(equal, in_pieces, given))
    assert all(map(equal, given, whole[0]))


# Figures of the specification.


@pytest.mark.parametrize(
    ("fmt", "rule", "error"),
    [
        (MX_E2M1FN, "floor", 0.1150),
        (MX_E2M1FN, "rceil", 0.1155),
        (NVFP4, None, 0.0951),
        (MX_E4M3FN, "floor", 0.0293),
        (MX_E4M3FN, "rceil", 0.0265),
        (MX_E2M3FN, "floor", 0.0284),
        (MX_E3M2FN, "floor", 0.0539),
    ],
    ids=str,
)
def test_error_on_gaussian_data(fmt, rule, error):
    x = torch.randn(2**18)
    got = (Codec(format=fmt, power_of_two=rule).round(x) - x).norm() / x.norm()
    assert abs(got.item() - error) < 0.003


def test_finer_scales_lose_less_beside_an_outlier():
    """Channel 0 times 3,000: the error of the others falls with the size of the group."""
    x = torch.randn(512, 1024)
    x[:, 0] *= 3000
    errors, flushed = [], []
    for granularity in (PerTensor(), PerAxis(), PerBlock(128), PerBlock(16)):
        y = Codec(format=E4M3FN, granularity=granularity).round(x)
        rest, rest_y = x[:, 1:], y[:, 1:]
        errors.append(((rest_y - rest).norm() / rest.norm()).item())
        flushed.append((rest_y == 0).float().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert flushed == sorted(flushed, reverse=True)
    for got, expected in zip(errors, (0.0278, 0.0266, 0.0258, 0.0224), strict=True):
        assert abs(got - expected) < 0.003
    assert flushed[0] > 3 * flushed[1] > 9 * flushed[2] > 0


def test_floor_clips_the_top_of_a_block_and_rceil_does_not():
    floor = Codec(format=MX_E4M3FN)
    rceil = Codec(format=MX_E4M3FN, power_of_two="rceil")
    for j in (-20, 0, 20):
        x = torch.full((32,), 511.0) * 2.0**j
        assert set(floor.round(x).tolist()) == {448.0 * 2.0**j}
        assert set(rceil.round(x).tolist()) == {512.0 * 2.0**j}


@pytest.mark.parametrize(
    ("fmt", "margin", "amax", "scale"),
    [
        (E4M3FNUZ, 0, 1.0, 2.0**-7),
        (E5M2, 0, 1.0, 2.0**-15),
        (E5M2, 3, 1.0, 2.0**-12),
        (E4M3FNUZ, 0, 240.0, 1.0),
        (E4M3FNUZ, 0, 240.1, 2.0),
    ],
)
def test_power_of_two_scales_of_one_amax(fmt, margin, amax, scale):
    codec = Codec(format=fmt, power_of_two="rceil", margin=margin)
    e = codec.grid(torch.tensor([amax, -amax / 3]))
    assert e.scale.item() == scale
    top = fmt.max * 2.0**-margin
    assert top / 2 <= e.data.abs().max() <= top


@pytest.mark.parametrize("rule", ["floor", "rceil", "even"])
def test_a_power_of_two_loses_nothing_of_what_fits(rule):
    """As "ceil" would: its scale leaves a binade free below 448, and the odd subnormals tie."""
    values = torch.tensor([value for value in E4M3FN.values() if math.isfinite(value)])
    for j in (-40, 0, 40):
        x = values * 2.0**j
        assert torch.equal(Codec(format=E4M3FN, power_of_two=rule).round(x), x)
        assert not torch.equal(Codec(format=E4M3FN, power_of_two="ceil").round(x), x)


def test_every_rule_but_floor_and_even_reaches_the_amax():
    x = torch.rand(2000, 32) * torch.exp2(torch.randint(-30, 30, (2000, 1)).float())
    for fmt in (E4M3FN, E5M2, E2M1FN):
        for rule in (None, "rceil", "ceil"):
            e = Codec(format=fmt, granularity=PerAxis(), power_of_two=rule).grid(x)
            past = x / e.scale > fmt.max * (1 + 2**-23)  # a quotient may round up once
            assert not past.any()
        e = Codec(format=fmt, granularity=PerAxis(), power_of_two="floor").grid(x)
        assert (x / e.scale > fmt.max).any()


@pytest.mark.parametrize("rule", [None, "floor", "rceil", "ceil", "even"])
def test_margin_leaves_binades_free(rule):
    x = torch.randn(20, 64)
    for kind in (E4M3FN, MX_E4M3FN) if rule else (E4M3FN, NVFP4):
        plain, free = (Codec(format=kind, power_of_two=rule, margin=m).grid(x) for m in (0, 3))
        factor = free.scale if free.tensor_scale is None else free.scale * free.tensor_scale
        assert (free.data.abs().max() <= plain.data.abs().max() / 4).all()
        expected = plain.scale if plain.tensor_scale is None else plain.scale * plain.tensor_scale
        assert torch.equal(factor, expected * 8)


# Storage.


@pytest.mark.parametrize("fmt", [*FORMATS.values()], ids=str)
def test_pack_is_exact_in_every_format(fmt):
    if fmt == E8M0FNU:
        pytest.skip("has no sign")
    codec = Codec(format=fmt)
    x = torch.randn(30, 17, dtype=torch.float64)
    for e in (codec.grid(x), codec.grid(x.float())):
        p = codec.pack(e)
        assert torch.equal(codec.decode(p, torch.float64), codec.decode(e, torch.float64))
        assert p.data.element_size() * 8 >= fmt.bits or fmt == TF32


def test_dtypes_of_what_is_packed():
    x = torch.randn(4, 64)
    for fmt, data, scale in (
        (E4M3FN, torch.float8_e4m3fn, torch.float32),
        (FP16, torch.float16, torch.float32),
        (E3M4, torch.uint8, torch.float32),
        (MX_E4M3FN, torch.float8_e4m3fn, torch.float8_e8m0fnu),
        (MX_E2M3FN, torch.uint8, torch.float8_e8m0fnu),
        (NVFP4, torch.uint8, torch.float8_e4m3fn),
    ):
        e = Codec(format=fmt).encode(x)
        assert (e.data.dtype, e.scale.dtype) == (data, scale)
        assert e.tensor_scale is None or e.tensor_scale.dtype == torch.float32
        g = Codec(format=fmt).grid(x)
        assert (g.data.dtype, g.scale.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        (Codec(format=E4M3FN), 6 * 300 + 4),
        (Codec(format=FP16), 6 * 300 * 2 + 4),
        (Codec(format=E4M3FN, granularity=PerAxis()), 6 * 300 + 6 * 4),
        (Codec(format=E4M3FN, granularity=PerBlock(128)), 6 * 300 + 6 * 3 * 4),
        (Codec(format=E4M3FN, granularity=PerTile(128, 128)), 6 * 300 + 3 * 4),
        (Codec(format=MX_E4M3FN), 6 * 300 + 6 * 10),
        (Codec(format=MX_E2M3FN), 6 * 300 * 3 // 4 + 6 * 10),
        (Codec(format=NVFP4), 6 * 300 // 2 + 6 * 19 + 4),
    ],
    ids=str,
)
def test_nbytes(codec, nbytes):
    assert codec.nbytes((6, 300)) == nbytes
    held = sum(t.nbytes for t in codec.encode(torch.randn(6, 300)) if t is not None)
    unused = 6 * 300 * max(0, 8 - codec.element.bits) // 8  # of each byte that holds an element
    assert held == nbytes + unused


# Refusals.


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"format": "E4M3FN"}, TypeError, "format is 'E4M3FN'; expected a FloatFormat"),
        ({"format": E8M0FNU}, ValueError, "E8M0FNU has no sign"),
        ({"format": E4M3FN, "granularity": 32}, TypeError, "granularity is 32"),
        ({"format": E4M3FN, "power_of_two": "up"}, ValueError, "power_of_two is 'up'"),
        ({"format": E4M3FN, "rounding": "toward_zero"}, ValueError, "rounding is 'toward_zero'"),
        ({"format": E4M3FN, "margin": -1}, ValueError, "margin is -1; expected an int from 0"),
        ({"format": E4M3FN, "margin": 1.5}, ValueError, "margin is 1.5"),
        ({"format": NVFP4, "power_of_two": "floor"}, ValueError, "whose scales are E4M3FN"),
        ({"format": NVFP4, "granularity": PerBlock(32)}, ValueError, "PerBlock(size=32"),
        ({"format": MX_E4M3FN, "granularity": PerAxis()}, ValueError, "expected PerBlock(32)"),
        ({"format": MX_E4M3FN, "granularity": PerTile(16, 16)}, ValueError, "PerTile(32, 32)"),
    ],
)
def test_fields_are_checked(fields, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Codec(**fields)


def test_dtypes_are_checked():
    with pytest.raises(TypeError, match=r"dtype is torch\.int32"):
        CODECS[0].grid(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"dtype is torch\.float8_e5m2"):
        CODECS[0].decode(Encoded(torch.zeros(3), torch.ones(())), torch.float8_e5m2)


def test_names_are_short():
    assert [str(codec) for codec in CODECS[:8]] == [
        "E4M3FN tensor",
        "E5M2 tensor rceil margin 3",
        "E4M3FN row",
        "E4M3FN axis 0 ceil",
        "E4M3FN 1x128 rceil",
        "E4M3FN 128x128",
        "MX_E4M3FN 1x32 rceil",
        "MX_E2M1FN 1x32 even",
    ]
    assert str(Codec(format=NVFP4, rounding="stochastic")) == "NVFP4 1x16 stochastic"
