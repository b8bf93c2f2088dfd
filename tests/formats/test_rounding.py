"""`round_to`, nearest and toward zero: enumerated, not sampled, against oracles that share nothing.

Every value of bfloat16 and float16 goes into every format of the catalogue, in all four dtypes. For
float32 a prime stride through the 2**32 patterns plus every tie of every small format and both its
neighbours; `benchmarks/exhaustive_float32.py` does all 2**32.
"""

import dataclasses

import numpy as np
import pytest
import torch

from formats.oracle import (
    CARRIERS,
    ML_DTYPES,
    SMALL,
    TABULATED,
    assert_same,
    by_ml_dtypes,
    count_differences,
    is_misrounded_by_ml_dtypes,
    not_negative,
    patterns,
    strided_float32,
    table,
    ties,
)
from unitscale.formats import (
    BF16,
    E2M1FN,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E8M0FNU,
    FORMATS,
    FP16,
    FP32,
    FP64,
    TF32,
    parse,
    round_to,
    rounding,
)
from unitscale.formats.dtypes import CARRIERS as CARRIER_FORMATS

MODES = [(r, s) for r in ("nearest", "toward_zero") for s in (True, False)]
each_mode = pytest.mark.parametrize(("mode", "saturate"), MODES)
each_small = pytest.mark.parametrize("fmt", SMALL, ids=str)
each_tabulated = pytest.mark.parametrize("fmt", TABULATED, ids=str)
each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
each_saturate = pytest.mark.parametrize("saturate", [True, False])
each_input = pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=str)

NAN, INF = float("nan"), float("inf")


# The oracles themselves.


@each_small
@each_saturate
def test_the_two_oracles_agree(fmt, saturate):
    x = patterns(torch.bfloat16).double().numpy()
    expected = by_ml_dtypes(x, fmt, saturate=saturate)
    agree = table(x, fmt, rounding="nearest", saturate=saturate)
    keep = ~is_misrounded_by_ml_dtypes(x, fmt)
    assert count_differences(agree[keep], expected[keep]) == 0


@pytest.mark.parametrize("wrong", [[1.0, 2.5], [1.0, NAN], [-0.0, 2.0], [NAN, 2.0]])
def test_assert_same_sees_a_difference(wrong):
    right = torch.tensor([1.0, 2.0]) if wrong[0] else torch.tensor([0.0, 2.0])
    assert_same(right, right.double().numpy(), right)
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        assert_same(right, np.array(wrong), right)


# Every 16-bit input.


@each_input
@each_saturate
@each_tabulated
def test_nearest_equals_ml_dtypes_on_every_input(fmt, saturate, source):
    x = patterns(source).double().numpy()
    expected = by_ml_dtypes(x, fmt, saturate=saturate)
    keep = ~is_misrounded_by_ml_dtypes(x, fmt)
    for dtype in (torch.float32, torch.float64):
        held = patterns(source).to(dtype)
        y = round_to(held, fmt, saturate=saturate)
        assert y.dtype == dtype
        assert_same(y[keep], expected[keep], held[keep])


@each_input
@each_mode
@each_tabulated
def test_every_input_rounds_within_its_own_dtype(fmt, mode, saturate, source):
    """Where the dtype does not hold the format's value, its own end takes that place."""
    x = patterns(source)
    expected = table(x.double().numpy(), fmt, rounding=mode, saturate=saturate)
    y = round_to(x, fmt, mode, saturate)
    assert y.dtype == source
    is_held = torch.from_numpy(expected).to(source).double().numpy() == expected
    is_held |= np.isnan(expected)
    assert_same(y[is_held], expected[is_held], x[is_held])
    carrier = CARRIER_FORMATS[source]
    ends = {fmt.max_within(carrier), max(fmt.min_subnormal, carrier.min_subnormal)}
    if not saturate:
        ends.add(INF if fmt.has_inf else NAN)
    strays = y[~is_held].double().abs().tolist()
    assert set(map(str, strays)) <= set(map(str, ends))  # as strings, NaN equals NaN


@each_input
@each_mode
@each_tabulated
def test_every_input_equals_the_table(fmt, mode, saturate, source):
    x = patterns(source).float()
    expected = table(x.double().numpy(), fmt, rounding=mode, saturate=saturate)
    assert_same(round_to(x, fmt, mode, saturate), expected, x)


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        (E4M3FN, torch.float8_e4m3fn),
        (E4M3FNUZ, torch.float8_e4m3fnuz),
        (E5M2, torch.float8_e5m2),
        (FORMATS["E5M2FNUZ"], torch.float8_e5m2fnuz),
        (FP16, torch.float16),
        (BF16, torch.bfloat16),
    ],
    ids=str,
)
def test_nearest_equals_torch_casts(fmt, dtype):
    x = torch.cat([strided_float32(), patterns(torch.float16).float()])
    expected = x.clamp(-fmt.max, fmt.max).to(dtype).double().numpy()
    assert_same(round_to(x, fmt), expected, x)


# float32 and float64.


@each_small
@each_saturate
def test_strided_float32_equals_ml_dtypes(fmt, saturate):
    x = strided_float32()
    exact = x.double().numpy()
    keep = ~is_misrounded_by_ml_dtypes(exact, fmt)
    expected = by_ml_dtypes(x.numpy(), fmt, saturate=saturate)
    assert_same(round_to(x, fmt, saturate=saturate)[keep], expected[keep], x[keep])


@each_mode
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_tabulated
def test_ties_and_their_neighbours(fmt, dtype, mode, saturate):
    """A neighbour of a tie in float64 becomes the tie if it is cast to float32 on the way."""
    middles = ties(fmt)
    middles = middles[middles <= np.finfo(dtype).max].astype(dtype)
    around = [np.nextafter(middles, dtype(to)) for to in (-np.inf, np.inf)]
    x = np.concatenate([middles, *around, not_negative(fmt).astype(dtype)])
    x = np.concatenate([x, -x])
    expected = table(x.astype(np.float64), fmt, rounding=mode, saturate=saturate)
    assert_same(round_to(torch.from_numpy(x), fmt, mode, saturate), expected, torch.from_numpy(x))


def test_float64_is_not_rounded_through_float32():
    tie = 1.0625  # of E4M3FN: between 1 and 1.125
    x = torch.tensor([tie, tie + 2.0**-40], dtype=torch.float64)
    assert round_to(x, E4M3FN).tolist() == [1.0, 1.125]
    assert round_to(x.float().double(), E4M3FN).tolist() == [1.0, 1.0]


def test_tf32_equals_rounding_the_bits():
    bits = strided_float32().view(torch.int32).numpy().view(np.uint32)
    x = bits.view(np.float32)
    finite = np.isfinite(x)
    rounded = (bits[finite] + np.uint32(0xFFF) + (bits[finite] >> 13 & 1)) & ~np.uint32(0x1FFF)
    y = round_to(torch.from_numpy(x[finite]), TF32, saturate=False)
    assert_same(y, rounded.view(np.float32).astype(np.float64), torch.from_numpy(x[finite]))


@pytest.mark.parametrize("fmt", [FP32, FP64, parse("E11M40"), parse("E9M30")], ids=str)
def test_a_wider_format_changes_nothing(fmt):
    x = strided_float32()
    for mode in ("nearest", "toward_zero", "stochastic"):
        assert_same(round_to(x, fmt, mode, saturate=False), x.double().numpy(), x)


def test_fp32_of_float64_is_the_cast():
    x = torch.cat([torch.randn(10_000, dtype=torch.float64) * 2.0**e for e in (-140, 0, 120)])
    assert_same(round_to(x, FP32), x.float().double().numpy(), x)


# Laws.


@each_mode
@each_format
def test_idempotent_and_monotone(fmt, mode, saturate):
    x = strided_float32(65_537)
    y = round_to(x, fmt, mode, saturate)
    assert_same(round_to(y, fmt, mode, saturate), y.double().numpy(), y)
    ascending = round_to(x[x.isfinite()].sort().values, fmt, mode)
    ascending = ascending[~ascending.isnan()]
    assert (ascending[1:] >= ascending[:-1]).all()


@each_small
def test_every_result_is_a_value_of_the_format(fmt):
    y = round_to(strided_float32(), fmt)
    assert set(y[~y.isnan()].tolist()) <= set(fmt.values())


def test_rounding_cannot_be_off_nor_the_other_format():
    x = torch.randn(10_000)
    e4, e5 = round_to(x, E4M3FN), round_to(x, E5M2)
    for y, worst, least in ((e4, 2.0**-4, 2.0**-5), (e5, 2.0**-3, 2.0**-4)):
        normal = x.abs() >= 2.0**-6
        error = ((y - x).abs() / x.abs())[normal]
        assert least < error.max() <= worst  # half a spacing; the other format's is outside
    assert not torch.equal(e4, e5)


# The two ways to the same bits.


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16, BF16, FP32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_saturate
def test_the_cast_and_the_formula_give_the_same_bits(fmt, dtype, saturate, monkeypatch):
    x = strided_float32() if dtype == torch.float32 else patterns(dtype)
    results = []
    for use_cast in (True, False):
        use_cast = use_cast and (saturate or fmt != E4M3FN)
        monkeypatch.setattr(rounding, "_cast_is_exact", lambda *_, use=use_cast: use)
        results.append(round_to(x, fmt, saturate=saturate))
    assert_same(results[0], results[1].double().numpy(), x)


# Ends and special values, one row each: fmt, x, saturated, not saturated.

ENDS = [
    (E4M3FN, 464.0, 448.0, 448.0),
    (E4M3FN, 464.01, 448.0, NAN),
    (E4M3FN, 480.0, 448.0, NAN),
    (E4M3FN, 1e38, 448.0, NAN),
    (E4M3FN, INF, 448.0, NAN),
    (E4M3FN, -INF, -448.0, NAN),
    (E4M3FN, NAN, NAN, NAN),
    (E5M2, 61439.0, 57344.0, 57344.0),
    (E5M2, 61440.0, 57344.0, INF),
    (E5M2, -INF, -57344.0, -INF),
    (E5M2, NAN, NAN, NAN),
    (E4M3FNUZ, 247.9, 240.0, 240.0),
    (E4M3FNUZ, 248.0, 240.0, NAN),
    (E4M3FNUZ, INF, 240.0, NAN),
    (E4M3FNUZ, -0.0, 0.0, 0.0),
    (E4M3FNUZ, -(2.0**-20), 0.0, 0.0),
    (FORMATS["E5M2FNUZ"], 61439.0, 57344.0, 57344.0),
    (FORMATS["E5M2FNUZ"], 61440.0, 57344.0, NAN),
    (E4M3FN, -0.0, -0.0, -0.0),
    (E4M3FN, -(2.0**-11), -0.0, -0.0),
    (E4M3FN, 2.0**-10, 0.0, 0.0),
    (E8M0FNU, 0.0, 2.0**-127, NAN),
    (E8M0FNU, -0.0, 2.0**-127, NAN),
    (E8M0FNU, -1.0, NAN, NAN),
    (E8M0FNU, 1.5, 2.0, 2.0),
    (E8M0FNU, 3.0, 4.0, 4.0),
    (E8M0FNU, 0.75, 1.0, 1.0),
    (E8M0FNU, 1.5 * 2.0**127, 2.0**127, NAN),
    (E8M0FNU, INF, 2.0**127, NAN),
    (E8M0FNU, 2.0**-149, 2.0**-127, 2.0**-127),
    (E8M0FNU, 1.25 * 2.0**-127, 2.0**-127, 2.0**-127),
    (E2M1FN, 5.0, 4.0, 4.0),
    (E2M1FN, 7.0, 6.0, 6.0),
    (E2M1FN, INF, 6.0, 6.0),
    (E2M1FN, NAN, NAN, NAN),
    (FORMATS["E2M3FN"], 8.0, 7.5, 7.5),
    (FORMATS["E3M2FN"], 30.0, 28.0, 28.0),
    (FP16, 65520.0, 65504.0, INF),
    (FP16, 65519.0, 65504.0, 65504.0),
]


@pytest.mark.parametrize(("fmt", "x", "saturated", "unsaturated"), ENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ends(fmt, x, saturated, unsaturated, dtype):
    given = torch.tensor([x], dtype=dtype)
    assert_same(round_to(given, fmt), np.array([saturated]), given)
    assert_same(round_to(given, fmt, saturate=False), np.array([unsaturated]), given)


def test_an_unsigned_format_makes_nan_of_negative_values():
    unsigned = dataclasses.replace(E4M3FN, name="UE4M3FN", is_signed=False)
    x = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1.06, 1000.0, NAN])
    assert_same(round_to(x, unsigned), np.array([NAN, NAN, 0.0, 0.0, 1.0, 448.0, NAN]), x)


def test_toward_zero_overflows_only_from_infinity():
    x = torch.tensor([500.0, 1e38, INF, -INF])
    assert_same(round_to(x, E4M3FN, "toward_zero", False), np.array([448, 448, NAN, NAN]), x)
    assert_same(round_to(x, E5M2, "toward_zero", False), np.array([448, 57344, INF, -INF]), x)


# Shapes, strides, out, autograd.

FORMS = {
    "0-dim": lambda x: x[7],
    "empty": lambda x: x[:0],
    "transposed": lambda x: x.view(50, 20).t(),
    "every other": lambda x: x[::2],
    "expanded": lambda x: x[:20].expand(3, 20),
    "three axes": lambda x: x.view(10, 10, 10).permute(2, 0, 1)[:, 1:],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16, E8M0FNU], ids=str)
@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_any_shape_and_stride(form, fmt, dtype):
    whole = (torch.randn(1000) * 100).to(dtype)
    x = FORMS[form](whole)
    y = round_to(x, fmt)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    expected = FORMS[form](round_to(whole, fmt))
    assert_same(y, expected.double().numpy(), x)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    assert round_to(x, fmt, out=out) is out
    assert_same(out, expected.double().numpy(), x)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, FP16], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "toward_zero", "stochastic"])
def test_in_place(fmt, mode):
    x = torch.randn(40, 30).t()
    generators = [torch.Generator().manual_seed(1) if mode == "stochastic" else None for _ in "12"]
    expected = round_to(x, fmt, mode, generator=generators[0])
    address = x.data_ptr()
    assert round_to(x, fmt, mode, generator=generators[1], out=x) is x
    assert x.data_ptr() == address
    assert torch.equal(x, expected)


@each_format
@each_mode
def test_input_is_left_alone_and_not_shared(fmt, mode, saturate):
    x = torch.randn(100) * 100
    before = x.clone()
    round_to(x, fmt, mode, saturate).fill_(1.0)
    assert torch.equal(x, before)


def test_no_gradient_passes():
    x = torch.randn(10, requires_grad=True)
    for fmt in (E4M3FN, E5M2, FP16, FP32):
        assert not round_to(x, fmt).requires_grad
    with torch.no_grad():
        round_to(x, E4M3FN, out=x)
    assert x.requires_grad


# Wrong calls.


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"round_to: dtype is {dtype}; expected float64, float32"):
        round_to(torch.zeros(3).to(dtype), E4M3FN)


def test_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rounding is 'up'; expected one of \('nearest', "):
        round_to(torch.zeros(3), E4M3FN, "up")


def test_useless_generator_is_refused():
    with pytest.raises(ValueError, match="generator is of no use for rounding='nearest'"):
        round_to(torch.zeros(3), E4M3FN, generator=torch.Generator())


@pytest.mark.parametrize("out", [torch.zeros(4), torch.zeros(3).double()])
def test_unfit_out_is_refused(out):
    with pytest.raises(ValueError, match=r"out is torch.* expected torch.float32 \(3,\), as x"):
        round_to(torch.zeros(3), E4M3FN, out=out)


def test_ml_dtypes_has_every_small_format_but_int8():
    assert {fmt.name for fmt in SMALL} - set(ML_DTYPES) == {"INT8"}
