"""Tolerances: a scale measured over n independent rows has a relative error of `(2 n)**-0.5`; the
smallest n here is a bias or a weight with 128 to 256 entries, 5 standard errors are .2 to .3 there
and below .05 for everything else."""

import pytest
import torch
import torch.nn.functional as F

from scaling.measure import assert_unit
from unitscale.scaling.factors import (
    bilinear_factors,
    conv_factors,
    conv_transpose_factors,
    einsum_factors,
    embedding_factors,
    in_bounds_fraction,
    linear_factors,
    linear_readout_factors,
    matmul_factors,
    parameter_grad_scale,
)


def test_linear_is_unit():
    rows, fan_in, fan_out = 512, 128, 1024
    got = linear_factors(fan_in, fan_out, rows)
    assert got.output_scale == fan_in**-0.5
    assert_unit(
        F.linear,
        (torch.randn(rows, fan_in), torch.randn(fan_out, fan_in)),
        got.output_scale,
        (got.grad_input_scale, got.grad_weight_scale),
        rel=0.05,
    )
    bias = lambda b: b + torch.zeros(rows, fan_out)
    assert_unit(bias, (torch.randn(fan_out),), 1.0, (got.grad_bias_scale,), rel=0.15)


def test_assert_unit_fails_for_swapped_factors():
    got = linear_factors(128, 1024, 512)
    with pytest.raises(AssertionError, match="gradient 0"):
        assert_unit(
            F.linear,
            (torch.randn(512, 128), torch.randn(1024, 128)),
            got.output_scale,
            (got.output_scale, got.grad_weight_scale),
            rel=0.05,
        )


def test_readout_is_linear_with_a_smaller_output():
    got, plain = linear_readout_factors(768, 50, 64), linear_factors(768, 50, 64)
    assert got.output_scale == 1 / 768
    assert got.grad_input_scale == plain.grad_input_scale
    assert got.grad_weight_scale == plain.grad_weight_scale == parameter_grad_scale(64) == 1 / 8


def test_matmul_is_unit():
    got = matmul_factors(64, 256, 128)
    assert_unit(
        torch.bmm,
        (torch.randn(8, 64, 256), torch.randn(8, 256, 128)),
        got.output_scale,
        (got.grad_left_scale, got.grad_right_scale),
        rel=0.05,
    )


def test_bilinear_is_unit():
    got = bilinear_factors(16, 32, 64, 1024)
    assert_unit(
        F.bilinear,
        (torch.randn(1024, 16), torch.randn(1024, 32), torch.randn(64, 16, 32)),
        got.output_scale,
        (got.grad_left_scale, got.grad_right_scale, got.grad_weight_scale),
        rel=0.08,
    )


CONVOLUTIONS = [
    (1, {"in_channels": 32, "out_channels": 64, "kernel": 5}, {}),
    (1, {"in_channels": 32, "out_channels": 64, "kernel": 4}, {"stride": 2}),
    (2, {"in_channels": 16, "out_channels": 32, "kernel": 3}, {"padding": 1}),
    (2, {"in_channels": 16, "out_channels": 32, "kernel": 3}, {"stride": 2, "padding": 1}),
    (2, {"in_channels": 64, "out_channels": 64, "kernel": 3}, {"groups": 64}),
    (2, {"in_channels": 16, "out_channels": 32, "kernel": 3}, {"dilation": 2, "groups": 4}),
    (3, {"in_channels": 16, "out_channels": 16, "kernel": 3}, {"padding": 1}),
]


@pytest.mark.parametrize(("dims", "sizes", "options"), CONVOLUTIONS)
def test_convolution_is_unit(dims, sizes, options):
    """The exact count of taps and windows is given: within 5 %, a depthwise kernel 10 %."""
    length = {1: 512, 2: 24, 3: 8}[dims]
    in_channels, out_channels, kernel = sizes.values()
    groups, stride = options.get("groups", 1), options.get("stride", 1)
    x = torch.randn(16, in_channels, *[length] * dims)
    weight = torch.randn(out_channels, in_channels // groups, *[kernel] * dims)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    call = lambda x, weight: conv(x, weight, **options)
    fraction = in_bounds_fraction(
        length,
        kernel,
        stride=stride,
        padding=options.get("padding", 0),
        dilation=options.get("dilation", 1),
    )
    got = conv_factors(
        in_channels,
        out_channels,
        kernel**dims,
        rows=call(x, weight)[:, 0].numel(),
        stride_numel=x[0, 0].numel() / call(x, weight)[0, 0].numel(),
        groups=groups,
        in_bounds=fraction**dims,
    )
    assert_unit(
        call,
        (x, weight),
        got.output_scale,
        (got.grad_input_scale, got.grad_weight_scale),
        rel=0.1 if groups == in_channels else 0.05,
    )


def test_padding_shrinks_the_output_by_its_share():
    for size, expected in ((32, 0.979), (8, 0.917)):
        fraction = in_bounds_fraction(size, 3, padding=1)
        assert fraction == pytest.approx((3 * size - 2) / (3 * size))
        assert fraction**0.5**1 == pytest.approx(((3 * size - 2) / (3 * size)) ** 0.5)
        assert fraction == pytest.approx(expected, abs=1e-3)
    assert in_bounds_fraction(10, 3) == 1
    assert in_bounds_fraction(4, 3, dilation=2, padding=2) == pytest.approx(8 / 12)
    with pytest.raises(
        ValueError, match="kernel_size 5 with dilation 1 does not fit an input of 3"
    ):
        in_bounds_fraction(3, 5)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "options"),
    [(64, 32, {"stride": 2}), (32, 64, {"stride": 1}), (32, 32, {"stride": 2, "groups": 4})],
)
def test_transposed_convolution_is_unit(in_channels, out_channels, options):
    groups = options.get("groups", 1)
    x = torch.randn(8, in_channels, 16, 16)
    weight = torch.randn(in_channels, out_channels // groups, 4, 4)
    call = lambda x, weight: F.conv_transpose2d(x, weight, **options)
    y = call(x, weight)
    got = conv_transpose_factors(
        in_channels,
        out_channels,
        16,
        input_rows=x[:, 0].numel(),
        output_rows=y[:, 0].numel(),
        stride_numel=y[0, 0].numel() / x[0, 0].numel(),
        groups=groups,
    )
    scales = (got.grad_input_scale, got.grad_weight_scale)
    assert_unit(call, (x, weight), got.output_scale, scales, rel=0.05)


def test_strides_stand_for_positions_where_the_border_is_small():
    by_stride = conv_factors(16, 32, 9, rows=1, stride_numel=4)
    by_positions = conv_factors(16, 32, 9, rows=1, stride_numel=257**2 / 128**2)
    assert by_positions.grad_input_scale == pytest.approx(by_stride.grad_input_scale, rel=0.01)


def test_embedding_is_unit():
    table = torch.randn(1000, 64)
    got = embedding_factors(512, 1000)
    lookup = lambda table: F.embedding(torch.randint(1000, (512,)), table)
    assert_unit(lookup, (table,), got.output_scale, (got.grad_weight_scale,), rel=0.05)


def test_empty_batches_have_a_factor():
    assert linear_factors(4, 4, 0).grad_weight_scale == 1
    assert embedding_factors(0, 9).grad_weight_scale == 3


EINSUMS = [
    ("bij,bjk->bik", (4, 32, 64), (4, 64, 48)),
    ("bhqd,bhkd->bhqk", (2, 4, 32, 64), (2, 4, 48, 64)),
    ("i,j->ij", (512,), (256,)),
    ("...i,io", (4, 32, 64), (64, 128)),
    ("...ij,...jk", (4, 1, 32, 64), (3, 64, 48)),
    ("ijk->ij", (32, 16, 64)),
    ("ij,jk,kl->il", (64, 32), (32, 128), (128, 64)),
    (" b i , b i -> b ", (512, 64), (512, 64)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EINSUMS])
def test_einsum_is_unit(equation, shapes):
    got = einsum_factors(equation, *shapes)
    operands = tuple(torch.randn(shape) for shape in shapes)
    call = lambda *operands: torch.einsum(equation, *operands)
    assert_unit(call, operands, got.output_scale, got.grad_input_scales, rel=0.15)


def test_einsum_of_a_product_is_matmul():
    got, matmul = einsum_factors("ij,jk->ik", (3, 5), (5, 7)), matmul_factors(3, 5, 7)
    assert got.output_scale == matmul.output_scale
    assert got.grad_input_scales == (matmul.grad_left_scale, matmul.grad_right_scale)


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk", [(2, 3)], r"has 2 operand\(s\), got 1 shape"),
        ("ij,jk->ik", [(2, 3), (4, 5)], r"index 'j' has sizes 3 and 4"),
        ("ij->i", [(2, 3, 4)], r"'ij' names 2 dimension\(s\), its shape has 3"),
        ("i1->i", [(2, 3)], r"cannot read 'i1->i'"),
    ],
)
def test_einsum_that_does_not_fit_is_refused(equation, shapes, message):
    with pytest.raises(ValueError, match=message):
        einsum_factors(equation, *shapes)
