"""Low-precision convolutions."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from gemm.edges import (
    PRODUCT_FORMATS,
    assert_same_bits,
    product_at_edges,
    saved_bytes,
    values_and_gradients,
)
from unitscale import gemm
from unitscale.gemm import ProductFormats

GEOMETRIES = [
    ("conv1d", (2, 4, 9), (6, 4, 3), {}),
    ("conv1d", (4, 9), (6, 4, 3), {"padding": 1}),
    ("conv1d", (2, 4, 9), (6, 4, 4), {"padding": "same"}),
    ("conv1d", (2, 4, 9), (6, 4, 3), {"padding": "valid", "stride": (2,)}),
    ("conv2d", (2, 4, 9, 7), (6, 4, 3, 3), {}),
    ("conv2d", (2, 4, 9, 7), (6, 2, 3, 3), {"stride": 2, "padding": (1, 0), "groups": 2}),
    ("conv2d", (2, 4, 9, 7), (6, 4, 4, 3), {"padding": "same", "dilation": (2, 1)}),
    ("conv2d", (4, 9, 7), (4, 1, 3, 3), {"groups": 4}),
    ("conv3d", (2, 4, 5, 5, 5), (6, 4, 3, 3, 3), {"padding": 1}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ["fp8", "fp8-current", "fp16"])
@pytest.mark.parametrize(("op", "x_shape", "weight_shape", "geometry"), GEOMETRIES)
def test_convolution_is_rounding_at_the_edges(op, x_shape, weight_shape, geometry, name):
    ours, plain = getattr(gemm, op), getattr(F, op)
    operands = [torch.randn(x_shape), torch.randn(weight_shape)]
    formats = PRODUCT_FORMATS[name]
    got = values_and_gradients(lambda x, w: ours(x, w, **geometry, formats=formats), operands)
    want = values_and_gradients(
        lambda *x: product_at_edges(lambda x, w: plain(x, w, **geometry), formats, *x), operands
    )
    assert_same_bits(got, want)


def test_both_backward_products_take_the_same_draw_of_a_gradient():
    operands = [torch.randn(2, 4, 9), torch.randn(6, 4, 3)]
    formats = ProductFormats.of("E4M3FN current", "E5M2 current stochastic")
    ours = partial(gemm.conv1d, formats=formats)
    torch.manual_seed(3)
    got = values_and_gradients(ours, operands)
    torch.manual_seed(3)
    assert_same_bits(
        got, values_and_gradients(partial(product_at_edges, F.conv1d, formats), operands)
    )
    output, *gradients = values_and_gradients(ours, operands)  # another draw
    assert torch.equal(output, got[0])
    assert not torch.equal(gradients[0], got[1])


def test_bf16_convolution_is_rounding_at_the_edges():
    operands = [torch.randn(2, 4, 9).bfloat16(), torch.randn(6, 4, 3).bfloat16()]
    formats = PRODUCT_FORMATS["fp8"]
    got = values_and_gradients(lambda *x: gemm.conv1d(*x, formats=formats), operands)
    want = values_and_gradients(lambda *x: product_at_edges(F.conv1d, formats, *x), operands)
    assert_same_bits(got, want)


@pytest.mark.parametrize("batched", [True, False])
def test_bias_is_added_unrounded_and_its_gradient_is_the_sum_of_the_true_one(batched):
    x, weight, bias = torch.randn(2, 4, 9), torch.randn(6, 4, 3), torch.randn(6)
    x = x if batched else x[0]
    bias.requires_grad_()
    formats = PRODUCT_FORMATS["fp8"]
    output = gemm.conv1d(x, weight, bias, formats=formats)
    without = gemm.conv1d(x, weight, formats=formats)
    # oneDNN adds the bias within the product: float32 over 12 terms.
    torch.testing.assert_close(output, without + bias[:, None], rtol=1e-6, atol=1e-6)
    grad = torch.randn_like(output)
    output.backward(grad)
    summed = grad.sum((0, 2)) if batched else grad.sum(1)
    torch.testing.assert_close(bias.grad, summed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("fp8", 1), ("fp16", 2), ("backward only", 4)])
def test_saved_for_backward_is_in_the_formats_own_bytes(name, size):
    x, weight = torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(4, 8, 3, 3)
    weight.requires_grad_()
    saved = saved_bytes(lambda: gemm.conv2d(x, weight, formats=PRODUCT_FORMATS[name]))
    assert saved == size * (x.numel() + weight.numel())


def test_only_wanted_gradients_are_computed():
    x, weight = torch.randn(2, 4, 9), torch.randn(6, 4, 3, requires_grad=True)
    gemm.conv1d(x, weight, formats=PRODUCT_FORMATS["fp8"]).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
