"""Low-precision linear and matmul: the function, its error, and what it keeps for backward."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gemm.edges import (
    PRODUCT_FORMATS,
    assert_on_grid,
    assert_same_bits,
    held,
    product_at_edges,
    saved_bytes,
    values_and_gradients,
)
from unitscale import gemm
from unitscale.gemm import ProductFormats, round_value

LINEAR_SHAPES = [((5, 16), (8, 16)), ((3, 5, 16), (8, 16)), ((16,), (8, 16))]
MATMUL_SHAPES = [
    ((5, 16), (16, 8)),
    ((3, 5, 16), (16, 8)),
    ((5, 16), (3, 16, 8)),
    ((3, 5, 16), (3, 16, 8)),
    ((2, 1, 5, 16), (3, 16, 8)),
    ((5, 16), (16,)),
    ((16,), (3, 16, 8)),
    ((16,), (16,)),
]


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def draw_exact(shape: torch.Size | tuple[int, ...], bits: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 2^-(bits - 1) in [-1.75, 1.75], 1.75 among them.

    Sums of a few products of these are exact, so the order in which a machine sums them cannot
    show. The largest FP8 values are 1.75 times powers of two, so current scales are powers of two.
    """
    step = 2.0 ** (1 - bits)
    x = ((torch.randn(shape) / step).round() * step).clamp(-1.75, 1.75)
    x.view(-1)[0] = 1.75
    assert torch.equal(x.to(dtype).float(), x)
    return x.to(dtype)


def assert_rounds_at_edges(product, op, formats, shapes, dtype) -> None:
    """For operands with more bits than FP8, and one of the three in turn with more than FP16."""
    for wide in range(3) if dtype is torch.float32 else [None]:
        bits = [12 if i == wide else 8 for i in range(3)]
        operands = [draw_exact(shape, n, dtype) for shape, n in zip(shapes, bits, strict=False)]
        grad = draw_exact(op(*operands).shape, bits[2], dtype)
        got = values_and_gradients(lambda *x: product(*x, formats=formats), operands, grad)
        # With scales of their own, sums over copies are in float32 as well.
        work = torch.float32 if formats.is_scaled else dtype
        operands, grad = [x.to(work) for x in operands], grad.to(work)
        want = values_and_gradients(lambda *x: product_at_edges(op, formats, *x), operands, grad)
        assert_same_bits(got, [x.to(dtype) for x in want])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formats", PRODUCT_FORMATS.values(), ids=PRODUCT_FORMATS)
@pytest.mark.parametrize("shapes", LINEAR_SHAPES, ids=str)
def test_linear_is_rounding_at_the_edges(shapes, formats, dtype):
    assert_rounds_at_edges(gemm.linear, F.linear, formats, shapes, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formats", PRODUCT_FORMATS.values(), ids=PRODUCT_FORMATS)
@pytest.mark.parametrize("shapes", MATMUL_SHAPES, ids=str)
def test_matmul_is_rounding_at_the_edges(shapes, formats, dtype):
    assert_rounds_at_edges(gemm.matmul, torch.matmul, formats, shapes, dtype)


@pytest.mark.parametrize("name", ["fp8", "fp16"])
def test_bias_is_added_unrounded_and_its_gradient_is_the_sum_of_the_true_one(name):
    x, weight, bias = draw((3, 5, 16), (8, 16), (8,))
    formats = PRODUCT_FORMATS[name]
    bias.requires_grad_()
    output = gemm.linear(x, weight, bias, formats=formats)
    want = F.linear(round_value(x, formats.x_output), round_value(weight, formats.w_output), bias)
    assert torch.equal(output, round_value(want, formats.result))
    grad = torch.randn_like(output)
    output.backward(grad)
    assert torch.equal(bias.grad, grad.reshape(-1, 8).sum(0))


@pytest.mark.parametrize("bias_shape", [(8,), (5, 8), (1, 8)])
def test_addmm_is_matmul_and_a_bias(bias_shape):
    bias, a, b = draw(bias_shape, (5, 16), (16, 8))
    formats = PRODUCT_FORMATS["fp8"]
    got = values_and_gradients(lambda *x: gemm.addmm(*x, formats=formats), [bias, a, b])
    want = values_and_gradients(
        lambda bias, a, b: bias + product_at_edges(torch.matmul, formats, a, b), [bias, a, b]
    )
    assert_same_bits(got, want)


def assert_same_product(got, want, left, right):
    """Equal but for rounding: of float32 sums in any order, and of a scale before or after them."""
    magnitude = left.abs() @ right.abs().T
    bound = (left.shape[-1] + 4) * 2.0**-24 * magnitude
    assert ((got - want).abs() <= bound).all()


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0**-6, 4.0), (0.013, 3.7)])
@pytest.mark.parametrize(("left", "right"), [("E4M3FN", "E4M3FN"), ("E5M2", "E4M3FN")])
def test_product_is_that_of_scaled_mm(left, right, scales):
    """Kernels multiply by the scales before the sum or after it: CPUs differ (torch 2.13)."""
    a, b = draw((64, 512), (64, 512))
    a_data, b_data = held(a, left).data, held(b, right).data
    a_scale, b_scale = (torch.tensor(scale) for scale in scales)
    kernel = torch._scaled_mm(a_data, b_data.T, a_scale, b_scale, out_dtype=torch.float32)
    formats = ProductFormats()  # the operands are on their grids already
    a, b = a_data.float() * a_scale, b_data.float() * b_scale
    assert_same_product(gemm.linear(a, b, formats=formats), kernel, a, b)


@pytest.mark.parametrize("product", ["linear", "matmul"])
@pytest.mark.parametrize("source", ["", " current"])
def test_output_is_that_of_scaled_mm(product, source):
    x, weight = draw((64, 512), (32, 512))
    (x_q, x_scale, _), (w_q, w_scale, _) = (held(t, f"E4M3FN{source}") for t in (x, weight))
    scales = [torch.tensor(1.0) if scale is None else scale for scale in (x_scale, w_scale)]
    kernel = torch._scaled_mm(x_q, w_q.T, *scales, out_dtype=torch.float32)
    formats = ProductFormats.of(f"E4M3FN{source}", f"E5M2{source}")
    other = weight if product == "linear" else weight.T
    operands = (q.float() * scale for q, scale in zip((x_q, w_q), scales, strict=True))
    assert_same_product(getattr(gemm, product)(x, other, formats=formats), kernel, *operands)


def test_assert_same_product_tells_another_format():
    a, b = draw((64, 512), (64, 512))
    operands = [[held(t, name).data.float() for t in (a, b)] for name in ("E4M3FN", "E5M2")]
    products = [left @ right.T for left, right in operands]
    with pytest.raises(AssertionError):
        assert_same_product(products[0], products[1], *operands[0])


# Relative Frobenius error on Gaussian data against float64: 0.0374 for a product of two E4M3FN
# operands, 0.0589 for E5M2 times E4M3FN. Over 128 x 256 x 128 terms the spread is below 1 %.
E4_E4, E5_E4 = (0.0365, 0.0385), (0.0575, 0.0605)
ERRORS = {"fp8": (E4_E4, E5_E4), "fp8-current": (E4_E4, E5_E4), "fp8-e4m3": (E4_E4, E4_E4)}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("product", ["linear", "matmul", "conv1d"])
def test_errors_are_those_of_the_formats(product, name):
    x, weight = draw((256, 256), (256, 256))
    plain, shapes = {
        "linear": (F.linear, ((256, 256), (256, 256))),
        "matmul": (torch.matmul, ((256, 256), (256, 256))),
        "conv1d": (F.conv1d, ((1, 256, 256), (256, 256, 1))),
    }[product]
    operands = [x.view(shapes[0]), weight.view(shapes[1])]
    formats = PRODUCT_FORMATS[name]
    ours = getattr(gemm, product)
    got = values_and_gradients(lambda *x: ours(*x, formats=formats), operands)
    true = values_and_gradients(plain, [x.double() for x in operands])
    errors = [(a - b).norm() / b.norm() for a, b in zip(got, true, strict=True)]
    output, gradient = ERRORS[name]
    assert output[0] < errors[0] < output[1]
    assert gradient[0] < errors[1] < gradient[1]
    assert gradient[0] < errors[2] < gradient[1]


def size_of(formats: ProductFormats) -> int:
    """Bytes of a value of an operand."""
    name = (formats.x_output or "as is").split()[0]
    return {"E4M3FN": 1, "FP16": 2, "BF16": 2, "as": 4}[name]


@pytest.mark.parametrize("formats", PRODUCT_FORMATS.values(), ids=PRODUCT_FORMATS)
@pytest.mark.parametrize("product", ["linear", "matmul"])
def test_saved_for_backward_is_in_the_formats_own_bytes(product, formats):
    """8-bit operands: one byte a value, and four for each current scale."""
    x, other = draw((32, 64), (64, 64))
    x.requires_grad_()
    other.requires_grad_()
    saved = saved_bytes(lambda: getattr(gemm, product)(x, other, formats=formats))
    assert saved == size_of(formats) * (32 * 64 + 64 * 64) + 8 * formats.is_scaled


@pytest.mark.parametrize("name", PRODUCT_FORMATS)
@pytest.mark.parametrize("which", [0, 1])
def test_an_operand_is_kept_for_the_gradient_of_the_other_alone(name, which):
    formats = PRODUCT_FORMATS[name]
    for product, shapes in (("linear", ((5, 16), (8, 16))), ("matmul", ((2, 5, 16), (2, 16, 8)))):
        operands = draw(*shapes)
        operands[which].requires_grad_()
        saved = saved_bytes(partial(getattr(gemm, product), *operands, formats=formats))
        assert saved == size_of(formats) * operands[1 - which].numel() + 4 * formats.is_scaled


@pytest.mark.parametrize("name", ["fp8", "fp16"])
def test_only_wanted_gradients_are_computed(name):
    x, weight = draw((5, 16), (8, 16))
    weight.requires_grad_()
    gemm.linear(x, weight, formats=PRODUCT_FORMATS[name]).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_result_is_rounded_three_times():
    operands = draw((5, 16), (8, 16))
    formats = PRODUCT_FORMATS["fp16"]
    for value in values_and_gradients(lambda *x: gemm.linear(*x, formats=formats), operands):
        assert_on_grid(value, "FP16")


def test_fp16_overflows_and_fp8_saturates():
    big, one = torch.full((1, 4), 7e4), torch.ones(1, 4)
    assert gemm.linear(big, one, formats=PRODUCT_FORMATS["fp16"]).item() == float("inf")
    assert gemm.linear(big, one, formats=PRODUCT_FORMATS["fp8"]).item() == 4 * 448
    within = torch.full((1, 4), 3e4)  # its operands fit; the sum of four does not
    assert gemm.linear(within, one, formats=PRODUCT_FORMATS["fp16"]).item() == float("inf")


@pytest.mark.parametrize("name", ["fp8", "fp8-current"])
def test_zeros_give_zeros_and_nan_gives_nan(name):
    formats = PRODUCT_FORMATS[name]
    zeros, weight = torch.zeros(2, 4), torch.randn(3, 4)
    got = values_and_gradients(lambda *x: gemm.linear(*x, formats=formats), [zeros, weight])
    assert got[0].count_nonzero() == 0
    assert got[2].count_nonzero() == 0
    assert got[1].isfinite().all()
    zeros[0, 0] = float("nan")
    assert gemm.linear(zeros, weight, formats=formats)[0].isnan().all()


@pytest.mark.parametrize("product", ["linear", "matmul"])
def test_non_contiguous_operands_are_as_contiguous_ones(product):
    wide, weight = draw((16, 10), (16, 16))
    operands = [wide.T[::2], weight.T]
    plain = [x.contiguous() for x in operands]
    formats = PRODUCT_FORMATS["fp8-current"]
    runs = [
        values_and_gradients(lambda *x: getattr(gemm, product)(*x, formats=formats), taken)
        for taken in (operands, plain)
    ]
    # The library sums in another order for other strides: float32 over 16 terms.
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_autocast_region_saves_eight_bits_and_returns_bf16():
    x, weight = (t.requires_grad_() for t in draw((32, 64), (64, 64)))
    formats = PRODUCT_FORMATS["fp8"]
    with torch.autocast("cpu", torch.bfloat16):
        output = gemm.linear(x, weight, formats=formats)
        saved = saved_bytes(lambda: gemm.linear(x, weight, formats=formats))
    assert output.dtype == torch.bfloat16
    assert saved == 32 * 64 + 64 * 64
    output.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
