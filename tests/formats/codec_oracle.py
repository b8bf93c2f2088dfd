"""What a codec should give, in numpy, by ways that share nothing with the code under test.

Exponents come from `numpy.frexp` and comparisons in float64, never from bits or logarithms.
Elements come from `oracle.table`. Groups are cut out one by one in loops. Products and quotients
that the library defines in float32 are those of numpy's float32.
"""

import itertools

import numpy as np
import pytest
import torch

from formats.oracle import assert_same, table
from unitscale.formats import (
    E4M3FN,
    E5M2,
    E8M0FNU,
    MX_E2M1FN,
    MX_E3M2FN,
    MX_E4M3FN,
    NVFP4,
    BlockFormat,
    Codec,
    FloatFormat,
    PerAxis,
    PerBlock,
    PerTensor,
    PerTile,
)

RULES = ("floor", "rceil", "ceil", "even")

CODECS = [
    Codec(format=E4M3FN),
    Codec(format=E5M2, power_of_two="rceil", margin=3),
    Codec(format=E4M3FN, granularity=PerAxis()),
    Codec(format=E4M3FN, granularity=PerAxis(0), power_of_two="ceil"),
    Codec(format=E4M3FN, granularity=PerBlock(128), power_of_two="rceil"),
    Codec(format=E4M3FN, granularity=PerTile(128, 128)),
    Codec(format=MX_E4M3FN, power_of_two="rceil"),
    Codec(format=MX_E2M1FN, power_of_two="even"),
    Codec(format=MX_E2M1FN, granularity=PerBlock(32, 0)),
    Codec(format=MX_E3M2FN, granularity=PerTile(32, 32)),
    Codec(format=NVFP4),
    Codec(format=NVFP4, granularity=PerTile(16, 16)),
]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)


def equal(a, b):
    """The same elements, NaN apart from which, in the same dtype and shape."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def bits(x):
    return x if not x.dtype.is_floating_point or x.element_size() > 1 else x.view(torch.uint8)


def power_of_two(amax: np.ndarray, fmt: FloatFormat, rule: str, margin: int = 0) -> np.ndarray:
    """The exponent of the scale of each positive finite amax, float64, as an integer."""
    if rule == "floor":
        exponent = np.frexp(amax)[1] - 1 - fmt.max_exponent
    elif rule == "ceil":
        fraction, exponent = np.frexp(amax)
        exponent = exponent - (fraction == 0.5) - fmt.max_exponent
    elif rule == "even":
        fraction, exponent = np.frexp(amax)  # in [0.5, 1): mantissa bits and one before the point
        steps = np.rint(fraction * 2.0 ** (fmt.mantissa_bits + 1))  # to nearest, ties to even
        exponent = np.frexp(np.ldexp(steps, exponent - fmt.mantissa_bits - 1))[1] - 1
        exponent = exponent - fmt.max_exponent
    else:  # the smallest power of two at which the largest value of the format reaches amax
        exponent = np.frexp(amax)[1] - np.frexp(fmt.max)[1] - 1
        while (is_short := fmt.max < np.ldexp(amax, -exponent)).any():
            exponent = exponent + is_short
    return exponent + margin


def rows_of_mx(rows: np.ndarray, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """Data and scale of rows of one group each, float64; a row with NaN or Inf is NaN."""
    rows = rows.astype(np.float64)
    amax = np.abs(rows).max(1, keepdims=True)
    is_number = np.isfinite(amax) & (amax > 0)
    exponent = power_of_two(np.where(is_number, amax, 1.0), codec.element, codec.rule, codec.margin)
    scale = np.ldexp(1.0, np.where(is_number, np.clip(exponent, -127, 127), codec.margin - 127))
    scale[amax == 0] = np.ldexp(1.0, max(-127, codec.margin - 127 - codec.element.max_exponent))
    scale[~np.isfinite(amax)] = np.nan
    with np.errstate(all="ignore"):
        return table(rows / scale, codec.element, rounding="nearest", saturate=True), scale[:, 0]


def rows_of_nvfp4(
    rows: np.ndarray, codec: Codec, tensor_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """As `rows_of_mx`, the scale in units of the tensor scale."""
    rows, outer = rows.astype(np.float32), np.float32(tensor_scale)
    amax = np.abs(rows).max(1, keepdims=True)
    with np.errstate(all="ignore"):
        ratio = amax / (np.float32(6) * outer) * np.float32(2.0**codec.margin)
        stored = table(ratio.astype(np.float64), E4M3FN, rounding="nearest", saturate=True)
        stored[~np.isfinite(amax)] = np.nan
        scale = stored.astype(np.float32) * outer
        steps = rows / np.where(scale == 0, np.float32(np.inf), scale)
        data = table(steps.astype(np.float64), codec.element, rounding="nearest", saturate=True)
    return data, stored[:, 0]


def rows_of_floats(rows: np.ndarray, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """As `rows_of_mx` for a FloatFormat, whose amax counts as 1e-12 at least."""
    rows = rows.astype(np.float32)
    amax = np.maximum(np.abs(rows).max(1, keepdims=True), np.float32(1e-12))
    is_number = np.isfinite(amax)
    with np.errstate(all="ignore"):
        if codec.rule is None:
            scale = amax / np.float32(codec.element.max) * np.float32(2.0**codec.margin)
        else:
            finite = np.where(is_number, amax, 1).astype(np.float64)
            exponent = power_of_two(finite, codec.element, codec.rule, codec.margin)
            scale = np.where(is_number, np.ldexp(1.0, exponent), amax).astype(np.float32)
        steps = (rows / scale).astype(np.float64)
        data = table(steps, codec.element, rounding="nearest", saturate=True)
    return data, scale[:, 0]


def reference(
    x: np.ndarray, codec: Codec, tensor_scale: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Data and scale of an array, group by group."""
    groups = [*groups_of(x.shape, codec)]
    data, scales = np.empty(x.shape), np.empty(codec.groups.scale_shape(x.shape))
    for where, position in groups:
        row = x[where].reshape(1, -1)
        if not isinstance(codec.format, BlockFormat):
            values, scale = rows_of_floats(row, codec)
        elif codec.format.scale == E8M0FNU:
            values, scale = rows_of_mx(row, codec)
        else:
            values, scale = rows_of_nvfp4(row, codec, tensor_scale)
        data[where] = values.reshape(x[where].shape)
        scales[position] = scale[0]
    return data, scales


def groups_of(shape, codec):
    """Where each group lies in the tensor, and its scale among the scales."""
    groups = codec.groups
    if isinstance(groups, PerTensor):
        yield (...,), ()
        return
    if isinstance(groups, PerAxis | PerBlock):
        axis = groups.axis % len(shape)
        size = shape[axis] if isinstance(groups, PerAxis) else groups.size
        steps = [size if i == axis else 1 for i in range(len(shape))]
    else:
        steps = [1] * (len(shape) - 2) + [groups.rows, groups.columns]
    counts = [-(-length // step) for length, step in zip(shape, steps, strict=True)]
    for position in itertools.product(*map(range, counts)):
        yield (
            tuple(slice(i * step, (i + 1) * step) for i, step in zip(position, steps, strict=True)),
            position,
        )


def hard_rows(size: int, count: int, fmt: FloatFormat, seed: int = 0) -> torch.Tensor:
    """Groups of every magnitude, wide and narrow; ties; amaxes where the rules change; specials."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator)
    x *= torch.exp2(torch.randint(-140, 125, (count, 1), generator=generator).float())
    half = count // 2
    x[:half] *= torch.exp2(torch.randint(-12, 3, (half, size), generator=generator).float())
    x[::5] = torch.round(x[::5].sign() * torch.arange(1, size + 1) * 8) / 16  # ties, to 4.5 bits
    # One amax at, just below and just above each value where some rule takes another exponent.
    edges = torch.tensor([1.0, fmt.max * 2.0**-fmt.max_exponent, 2 - 0.5 * fmt.epsilon, 1.5])
    edges = torch.cat([edges.nextafter(torch.tensor(0.0)), edges, edges.nextafter(edges * 2)])
    at = torch.arange(1, count, 5)
    binade = torch.exp2((at % 200 - 100).float())
    x[at] = x[at] / x[at].abs().amax(1, keepdim=True).clamp(min=1e-38) * 0.9 * binade[:, None]
    x[at, at % size] = edges[at % len(edges)] * binade
    for row, value in enumerate((0.0, -0.0, 2.0**-149, 2.0**-127, torch.finfo(x.dtype).max)):
        x[row] = value
    x[5] = 511.0 * 2.0 ** torch.arange(size).remainder(3)
    x[6] = torch.arange(size) * 2.0**-149
    for row, special in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[7 + row, row + 2] = special
    return x


def assert_encodes(codec: Codec, x: torch.Tensor, data: np.ndarray, scale: np.ndarray, **given):
    """Grid, packed form and decoded values are those of the reference."""
    e = codec.grid(x, **given)
    assert_same(e.data, data, x)
    assert_same(e.scale.reshape(scale.shape), scale, e.scale)
    with np.errstate(all="ignore"):
        outer = np.float32(1.0 if e.tensor_scale is None else e.tensor_scale.item())
        factors = scale.astype(np.float32) * outer
        spread = np.empty(data.shape, dtype=np.float32)
        for where, position in groups_of(data.shape, codec):
            spread[where] = factors[position]
        values = data.astype(np.float32) * spread
    for encoded in (e, codec.pack(e)):
        assert_same(codec.decode(encoded), values.astype(np.float64), x)
    assert_same(codec.round(x, **given), values.astype(np.float64), x)
