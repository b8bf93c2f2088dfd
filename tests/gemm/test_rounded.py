"""Rounding on the way forward and on the way back."""

import pytest
import torch

from gemm.edges import assert_on_grid, assert_same_bits, held
from unitscale.formats import E4M3FN, E5M2, round_to
from unitscale.gemm import ProductFormats, round_value, rounded
from unitscale.gemm.operand import Use, take


def test_rounded_rounds_the_value_and_the_gradient_to_formats_of_their_own():
    x = torch.randn(1000, requires_grad=True)
    grad = torch.randn(1000)
    y = rounded(x, "E4M3FN", "E5M2")
    y.backward(grad)
    assert torch.equal(y, round_to(x, E4M3FN))
    assert torch.equal(x.grad, round_to(grad, E5M2))
    assert not torch.equal(x.grad, round_to(grad, E4M3FN))


def test_one_direction_alone_leaves_the_other_as_it_is():
    x = torch.randn(100, requires_grad=True)
    grad = torch.randn(100)
    for fwd, bwd in (("E4M3FN", None), (None, "E5M2")):
        y = rounded(x, fwd, bwd)
        (got,) = torch.autograd.grad(y, x, grad)
        assert torch.equal(y, x) == (fwd is None)
        assert torch.equal(got, grad) == (bwd is None)


def test_without_formats_it_returns_the_tensor_itself():
    x = torch.randn(3)
    assert rounded(x) is x


def test_gradient_passes_values_that_saturated():
    x = torch.tensor([1e4, -1e4, 1.0], requires_grad=True)
    y = rounded(x, "E4M3FN")
    y.sum().backward()
    assert y.tolist() == [448.0, -448.0, 1.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "largest", "past"),
    [("E4M3FN", 448.0, 448.0), ("E5M2", 57344.0, 57344.0), ("FP16", 65504.0, float("inf"))],
)
def test_eight_bits_saturate_and_sixteen_overflow(name, largest, past):
    x = torch.tensor([largest, 2 * largest, float("inf"), -2 * largest])
    assert round_value(x, name).tolist() == [largest, past, past, -past]


def test_bf16_overflows_to_infinity():
    largest = torch.finfo(torch.bfloat16).max
    x = torch.tensor([largest, torch.finfo(torch.float32).max])
    assert round_value(x, "BF16").tolist() == [largest, float("inf")]


@pytest.mark.parametrize("text", ["E4M3FN", "E4M3FN current", "E4M3FN delayed", "NVFP4 current"])
def test_zeros_stay_zeros(text):
    x = torch.zeros(4, 4)
    assert torch.equal(round_value(x, text), x)


@pytest.mark.parametrize("name", ["E4M3FN", "E5M2", "FP16"])
def test_nan_stays_nan_and_only_there(name):
    x = torch.tensor([1.0, float("nan"), -2.0])
    assert_same_bits([round_value(x, name)], [x])


def test_nan_leaves_no_current_scale():
    """No amax, no scale: the whole tensor is NaN, so that the run sees it at once."""
    x = torch.tensor([1.0, float("nan"), -2.0])
    assert round_value(x, "E4M3FN current").isnan().all()


@pytest.mark.parametrize("name", ["E4M3FN", "E5M2"])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_current_scale_takes_amax_to_the_maximum(name, magnitude):
    x = torch.randn(1000) * magnitude
    data, scale, _ = held(x, f"{name} current")
    largest = {"E4M3FN": 448.0, "E5M2": 57344.0}[name]
    assert data.float().abs().max() == largest
    torch.testing.assert_close(scale, x.abs().max() / largest, rtol=1e-6, atol=0)
    error = (data.float() * scale - x).norm() / x.norm()
    # Relative error of storing Gaussian data: 0.0265 in E4M3FN, 0.0526 in E5M2, at any scale.
    assert {"E4M3FN": 0.024, "E5M2": 0.049}[name] < error < {"E4M3FN": 0.029, "E5M2": 0.056}[name]


def test_without_a_scale_small_values_are_lost_that_a_current_scale_keeps():
    x = torch.randn(1000) * 1e-4
    assert round_value(x, "E4M3FN").count_nonzero() == 0
    assert round_value(x, "E4M3FN current").count_nonzero() > 990


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("E4M3FN", torch.float8_e4m3fn, 1),
        ("E5M2", torch.float8_e5m2, 1),
        ("FP16", torch.float16, 2),
        ("BF16", torch.bfloat16, 2),
        ("TF32", torch.float32, 4),
    ],
)
def test_held_data_is_in_the_formats_own_dtype(name, dtype, size):
    x = torch.randn(8)
    kept = held(x, name)
    assert kept.data.dtype == dtype
    assert kept.data.element_size() == size
    assert kept.scale is None
    assert_same_bits([take(kept, Use(name), torch.float32)], [round_value(x, name)])


def test_no_format_keeps_the_tensor():
    x = torch.randn(8)
    assert held(x, None).data is x


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_keep_theirs(dtype, current):
    x = torch.randn(64, dtype=dtype, requires_grad=True)
    y = rounded(x, "E4M3FN", "E5M2", current=(current, current))
    y.backward(torch.randn(64, dtype=dtype))
    assert y.dtype == x.grad.dtype == dtype
    if not current:
        assert_on_grid(y.detach(), "E4M3FN")
        assert_on_grid(x.grad, "E5M2")


def test_rounding_from_float64_rounds_once():
    """A hair above the midpoint of 1 and 1.125; by way of float32 it would be the midpoint."""
    x = torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64)
    assert round_value(x, "E4M3FN").item() == 1.125
    assert held(x, "E4M3FN").data.double().item() == 1.125


def test_non_contiguous_is_as_contiguous():
    x = torch.randn(6, 8)
    for view in (x.T, x[:, ::2], x[:, :1].expand(6, 4)):
        assert torch.equal(round_value(view, "E4M3FN"), round_value(view.contiguous(), "E4M3FN"))


def test_rounding_twice_is_rounding_once():
    x = torch.randn(100)
    once = round_value(x, "E5M2")
    assert torch.equal(round_value(once, "E5M2"), once)


def test_product_formats_are_six_operands_a_result_and_an_executor():
    assert ProductFormats.of("E4M3FN", "E5M2 current", "BF16") == (
        *("E4M3FN", "E4M3FN", "E5M2 current", "E4M3FN", "E5M2 current", "E4M3FN"),
        *("BF16", "emulated"),
    )
