"""Block formats against a reference in float64 and ml_dtypes, block by block, on every path.

For MX the reference shares nothing with the code: exponents by `numpy.frexp`, elements by
ml_dtypes' casts. For NVFP4 products and quotients are those of float32, in numpy.
"""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from formats.oracle import ML_DTYPES, assert_same, by_ml_dtypes
from unitscale.formats import (
    BLOCK_FORMATS,
    E2M1FN,
    E4M3FN,
    MX_E2M1FN,
    MX_E2M3FN,
    MX_E4M3FN,
    MX_E5M2,
    NVFP4,
    blockwise,
    dequantize_blocks,
    quantize_blocks,
    round_to,
    round_to_blocks,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

NAN, INF = math.nan, math.inf
each_format = pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)


@pytest.fixture(autouse=True)
def fresh_kernels():
    yield
    blockwise._kernel.cache_clear()


def mx_reference(rows, fmt):
    """Values and scales of rows of one block each, float64."""
    rows = rows.astype(np.float64)
    amax = np.abs(rows).max(1, keepdims=True)
    exponent = np.frexp(amax)[1] - 1 - fmt.element.max_exponent
    scale = np.exp2(np.where(amax == 0, -127.0, np.maximum(exponent, -127)))
    scale[~np.isfinite(amax)] = NAN
    with np.errstate(all="ignore"):
        return by_ml_dtypes(rows / scale, fmt.element, saturate=True) * scale, scale[:, 0]


def nvfp4_reference(rows, tensor_scale):
    rows, tensor_scale = rows.astype(np.float32), np.float32(tensor_scale)
    amax = np.abs(rows).max(1, keepdims=True)
    with np.errstate(all="ignore"):
        ratio = amax / (np.float32(6) * tensor_scale)
        stored = by_ml_dtypes(ratio.astype(np.float64), E4M3FN, saturate=True).astype(np.float32)
        stored[~np.isfinite(amax)] = NAN
        scale = stored * tensor_scale
        steps = rows / np.where(scale == 0, np.float32(np.inf), scale)
        values = by_ml_dtypes(steps.astype(np.float64), E2M1FN, saturate=True)
        return values.astype(np.float32) * scale, stored[:, 0]


def hard_rows(size, n=2100):
    """Blocks of every magnitude, wide and narrow; ties; zeros; the ends; special values."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, size, generator=generator)
    x *= torch.exp2(torch.randint(-140, 125, (n, 1), generator=generator).float())
    x[: n // 2] *= torch.exp2(torch.randint(-12, 3, (n // 2, size), generator=generator).float())
    x[::5] = torch.round(x[::5].sign() * torch.arange(1, size + 1) * 8) / 16  # ties, to 4.5 bits
    x[3] = 0.0
    x[4] = -0.0
    x[5] = 2.0**-149
    x[6] = torch.finfo(torch.float32).max
    x[7] = 511.0 * 2.0 ** torch.arange(size).remainder(3)
    for i, special in enumerate((NAN, INF, -INF)):
        x[8 + i, i + 2] = special
    return x


# Compiling takes seconds, so not every format is compiled; they differ in constants.
COMPILED = (MX_E4M3FN, MX_E2M1FN, NVFP4)
BY_PATH = [(fmt, how) for fmt in BLOCK_FORMATS.values() for how in ("whole", "pieces")]
BY_PATH += [(fmt, "compiled") for fmt in COMPILED]


def take(how, monkeypatch):
    """Options for a call that is to go that way."""
    monkeypatch.setattr(blockwise, "piece_size", lambda: 1024 if how == "pieces" else 2**20)
    return {"compiled": how == "compiled"}


@pytest.mark.parametrize(("fmt", "how"), [row for row in BY_PATH if row[0] != NVFP4])
def test_mx_equals_the_reference(fmt, how, monkeypatch):
    path = take(how, monkeypatch)
    x = hard_rows(32)
    values, scales = mx_reference(x.numpy(), fmt)
    assert_same(round_to_blocks(x, fmt, **path), values, x)
    q = quantize_blocks(x, fmt, **path)
    assert (q.codes.shape, q.codes.dtype) == (x.shape, torch.uint8)
    assert (q.scales.shape, q.scales.dtype) == ((len(x), 1), torch.uint8)
    assert q.codes.int().max() < 1 << fmt.element.bits
    assert q.tensor_scale is None
    with np.errstate(all="ignore"):
        expected = scales.astype(np.float32).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    assert np.array_equal(q.scales.numpy()[:, 0], expected)
    finite = np.isfinite(values).all(1)
    elements = q.codes.numpy().view(ML_DTYPES[fmt.element.name]).astype(np.float64)
    decoded = torch.from_numpy(elements * scales[:, None])
    assert_same(decoded[finite], values[finite], x[finite])
    assert_same(dequantize_blocks(q, **path), values, x)
    if path["compiled"]:
        assert blockwise._kernel.cache_info().currsize == 3


@pytest.mark.parametrize("tensor_scale", [None, 2.0**-9, 0.1])
@pytest.mark.parametrize("how", ["whole", "pieces", "compiled"])
def test_nvfp4_equals_the_reference(tensor_scale, how, monkeypatch):
    path = take(how, monkeypatch)
    x = hard_rows(16, 4200)
    x = torch.where(x.abs() > 1e6, x * 2.0**-100, x)  # one tensor scale for all
    options = path if tensor_scale is None else path | {"tensor_scale": tensor_scale}
    q = quantize_blocks(x, NVFP4, **options)
    if tensor_scale is None:
        finite = x[x.isfinite()]
        assert q.tensor_scale == finite.abs().max() / (6 * 448)
    values, scales = nvfp4_reference(x.numpy(), q.tensor_scale.item())
    assert_same(round_to_blocks(x, NVFP4, **options), values, x)
    with np.errstate(all="ignore"):
        expected = scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert_same(q.scales.view(torch.float8_e4m3fn).float(), expected[:, None], q.scales)
    assert_same(dequantize_blocks(q, **path), values, x)


@pytest.mark.parametrize("fmt", [MX_E5M2, NVFP4], ids=str)
def test_in_place_and_out(fmt):
    x = hard_rows(fmt.size, 4200)
    options = {"tensor_scale": 0.25} if fmt.has_tensor_scale else {}
    expected = round_to_blocks(x, fmt, **options).double().numpy()
    for compiled in (False, True):
        out = torch.empty_like(x)
        assert round_to_blocks(x, fmt, out=out, compiled=compiled, **options) is out
        assert_same(out, expected, x)
        given = x.clone()
        assert round_to_blocks(given, fmt, out=given, compiled=compiled, **options) is given
        assert_same(given, expected, x)
    q = quantize_blocks(x, fmt, **options)
    assert dequantize_blocks(q, out=out, compiled=True) is out
    assert_same(out, expected, x)


@pytest.mark.parametrize(("fmt", "how"), BY_PATH[:-2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(fmt, how, dtype, monkeypatch):
    path = take(how, monkeypatch)
    x = (torch.randn(2100, 32) * torch.exp2(torch.randint(-9, 9, (2100, 1)))).to(dtype)
    y = round_to_blocks(x, fmt, **path)
    assert y.dtype == dtype
    expected = round_to_blocks(x.float(), fmt).to(dtype)
    assert_same(y, expected.double().numpy(), x)
    assert torch.equal(dequantize_blocks(quantize_blocks(x, fmt), dtype, **path), expected)


@each_format
@pytest.mark.parametrize("shape", [(70,), (3, 40), (5, 32, 6), (4, 1, 33), (0, 32), (2, 0)])
def test_any_dimension_and_length(fmt, shape):
    """The last block of a dimension may be short: as if zeros followed."""
    x = torch.randn(shape)
    for dim in range(-x.dim(), x.dim()):
        y = round_to_blocks(x, fmt, dim)
        moved = x.movedim(dim, -1)
        missing = -moved.shape[-1] % fmt.size
        rows = torch.nn.functional.pad(moved, (0, missing)).reshape(-1, fmt.size)
        if fmt == NVFP4:
            scale = x.abs().max().item() / 2688 if x.numel() else 1.0
            values, _ = nvfp4_reference(rows.numpy(), scale)
        else:
            values, _ = mx_reference(rows.numpy(), fmt)
        whole = torch.from_numpy(values).view(*moved.shape[:-1], moved.shape[-1] + missing)
        expected = whole[..., : moved.shape[-1]].movedim(-1, dim)
        assert y.shape == x.shape
        assert_same(y, expected.double().numpy(), x)
        q = quantize_blocks(x, fmt, dim)
        assert q.codes.shape == x.shape
        assert q.scales.shape[dim] == -(-x.shape[dim] // fmt.size)
        assert_same(dequantize_blocks(q), expected.double().numpy(), x)
        out = torch.empty_like(x)
        assert round_to_blocks(x, fmt, dim, out=out) is out
        assert_same(out, expected.double().numpy(), x)


def test_strides_do_not_matter():
    x = torch.randn(64, 96)
    for fmt in (MX_E4M3FN, NVFP4):
        assert torch.equal(round_to_blocks(x.t(), fmt, 0), round_to_blocks(x, fmt, 1).t())
        out = torch.empty_like(x.t())
        assert torch.equal(round_to_blocks(x.t(), fmt, out=out), round_to_blocks(x, fmt, 0).t())


# What the rules mean.


def test_floor_clips_the_top_of_a_block():
    x = torch.full((32,), 511.0)
    for j in (-20, 0, 20):
        assert set(round_to_blocks(x * 2.0**j, MX_E4M3FN).tolist()) == {448.0 * 2.0**j}


@pytest.mark.parametrize(
    ("fmt", "error", "tolerance"),
    [
        (MX_E4M3FN, 0.0293, 0.0005),
        (MX_E2M3FN, 0.0284, 0.0005),
        (BLOCK_FORMATS["MX_E3M2FN"], 0.0539, 0.001),
        (MX_E2M1FN, 0.1150, 0.003),
        (NVFP4, 0.0951, 0.003),
    ],
    ids=str,
)
def test_error_on_gaussian_data(fmt, error, tolerance):
    """Relative root mean square, as measured with other code; no other format has these."""
    x = torch.randn(2**18)
    got = ((round_to_blocks(x, fmt) - x).norm() / x.norm()).item()
    assert abs(got - error) < tolerance


def test_zeros_stay_and_keep_their_sign():
    for fmt in BLOCK_FORMATS.values():
        x = torch.zeros(2, 32)
        x[1] = -0.0
        y = round_to_blocks(x, fmt)
        assert torch.equal(y, x)
        assert torch.equal(y.signbit(), x.signbit())


def test_a_scale_that_rounds_to_zero_makes_zeros():
    x = torch.full((2, 16), 1.0)
    x[1] = 1e-9
    q = quantize_blocks(x, NVFP4)
    assert q.scales[1].item() == 0
    assert dequantize_blocks(q)[1].tolist() == [0.0] * 16
    assert dequantize_blocks(q)[0].tolist() == [1.0] * 16


def test_a_special_value_spoils_its_block_alone():
    for fmt in BLOCK_FORMATS.values():
        for special in (NAN, INF, -INF):
            x = torch.ones(3, 32)
            x[1, 7] = special
            y = round_to_blocks(x, fmt)
            spoiled = y.isnan().view(-1, fmt.size)
            assert spoiled.all(1).sum() == spoiled.any(1).sum() == 1
            assert torch.equal(y[[0, 2]], round_to_blocks(torch.ones(3, 32), fmt)[[0, 2]])


def test_it_rounds_and_not_to_another_format():
    x = torch.randn(10_000)
    results = [round_to_blocks(x, fmt) for fmt in BLOCK_FORMATS.values()]
    for i, y in enumerate(results):
        assert not torch.equal(x, y)
        assert not any(torch.equal(y, other) for other in results[:i])


# Stochastic elements.


@each_format
def test_stochastic_is_between_neighbours_unbiased_and_the_same_on_each_path(fmt):
    x = torch.randn(2**11, 32)
    x[:, ::16] = 6.0  # so that nothing is clipped: 6, 24, 384 ... are elements, or the amax / max
    options = {"tensor_scale": 2.0**-8} if fmt.has_tensor_scale else {}
    draws = [round_to_blocks(x, fmt, -1, "stochastic", seed=seed, **options) for seed in range(64)]
    stacked = torch.stack(draws).double()
    low, high = stacked.min(0).values, stacked.max(0).values
    assert ((low <= x) & (x <= high) | (low == high)).all()
    assert max(len(set(column.tolist())) for column in stacked.view(64, -1)[:, :500].t()) == 2
    # Each element's error over 64 draws has a standard error of at most spacing / 2 / 8.
    spacing = (high - low).clamp(min=1e-30)
    z = ((stacked.mean(0) - x) / (spacing / 16))[high > low]
    assert abs(z.mean().item()) < 5 / math.sqrt(z.numel())
    q = quantize_blocks(x, fmt, -1, "stochastic", seed=3, compiled=fmt in COMPILED, **options)
    assert torch.equal(dequantize_blocks(q), draws[3])


def test_stochastic_in_pieces(monkeypatch):
    x = torch.randn(100, 32)
    whole = round_to_blocks(x, MX_E5M2, -1, "stochastic", seed=3)
    monkeypatch.setattr(blockwise, "piece_size", lambda: 256)
    assert torch.equal(round_to_blocks(x, MX_E5M2, -1, "stochastic", seed=3), whole)
    torch.manual_seed(0)
    first = round_to_blocks(x, MX_E5M2, -1, "stochastic")
    assert not torch.equal(first, round_to_blocks(x, MX_E5M2, -1, "stochastic"))
    torch.manual_seed(0)
    assert torch.equal(first, round_to_blocks(x, MX_E5M2, -1, "stochastic"))


# In graphs.


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("fmt", [MX_E4M3FN, NVFP4], ids=str)
def test_one_graph_the_same_bits(fmt, backend):
    def function(x):
        q = quantize_blocks(x, fmt)
        return round_to_blocks(x, fmt, 0), dequantize_blocks(q), q.codes, q.scales

    x = hard_rows(40, 100)[:, :40]
    x = torch.where(x.abs() > 1e6, x * 2.0**-100, x)
    expected = function(x)
    for y, wanted in zip(
        torch.compile(function, fullgraph=True, backend=backend)(x), expected, strict=True
    ):
        assert_same(y.float(), wanted.double().numpy(), y)


def test_a_slice_in_the_same_graph_is_written_whole():
    """See `_keep_whole`: of 40 columns, Inductor would write 32."""

    def function(x):
        return round_to_blocks(x, MX_E4M3FN)[:, :40] * 2, dequantize_blocks(q)[:, :40] * 2

    x = torch.randn(100, 64)
    q = quantize_blocks(x, MX_E4M3FN)
    for y in torch.compile(function, fullgraph=True)(x):
        assert torch.equal(y, function(x)[0])


def test_no_gradient_passes():
    x = torch.randn(64, requires_grad=True)
    assert not round_to_blocks(x, MX_E4M3FN).requires_grad


def test_of_one_element_per_scale_the_elements_are_those_of_round_to():
    """A power of two scales exactly: blocks of equal exponents are rounded as `round_to` would."""
    x = torch.rand(64, 32) + 1
    assert torch.equal(round_to_blocks(x, MX_E4M3FN) * 256, round_to(x * 256, E4M3FN))
