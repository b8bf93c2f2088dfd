"""A scale of the tensor's own meets 16 bits in float32: never 0, and no wrong gain.

The reference is the same product of the same 16-bit values in a float32 model. There operands and
scales are the same numbers, so the results differ by their last rounding to 16 bits.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gemm.edges import values_and_gradients
from unitscale.gemm import ProductFormats, conv1d, linear, matmul, round_value
from unitscale.gemm import scaled_dot_product_attention as attention
from unitscale.gemm.rounded import times

# Dynamo instantiates autograd.Function for itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

CURRENT = ProductFormats.of("E4M3FN current", "E5M2 current")
TO_FP16 = ProductFormats.of("E4M3FN current", "FP16")
HALF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # of a value, by a rounding at most
each_half = pytest.mark.parametrize("dtype", HALF, ids=str)

PRODUCTS = {
    "linear": (linear, [(40, 32), (24, 32)]),
    "linear with a bias": (linear, [(2, 20, 32), (24, 32), (24,)]),
    "bmm": (matmul, [(3, 40, 32), (3, 32, 24)]),
    "broadcast matmul": (matmul, [(2, 3, 20, 32), (3, 32, 24)]),
    "convolution": (conv1d, [(4, 16, 30), (24, 16, 3), (24,)]),
}
each_product = pytest.mark.parametrize(("product", "shapes"), PRODUCTS.values(), ids=PRODUCTS)


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Operands of a size that is usual in training."""
    return [(torch.randn(shape) * 0.05).to(dtype) for shape in shapes]


def bias_of(operands: list[Tensor]) -> float:
    """The largest value of a bias, if there is one."""
    return operands[2].abs().max().item() if len(operands) > 2 else 0.0


def assert_close_to(got: Tensor, want: Tensor, roundings: int, bias: float = 0.0) -> None:
    """Each value is off by so many roundings to the dtype of `got`, and the whole by less.

    The errors of n values are independent, so five standard errors of their mean are allowed to
    the gain. A bias up to `bias` is added after a rounding. A rounding to one of float16's
    subnormals is off by half their spacing, and float32's own sums are counted with 1e-6.
    """
    unit = roundings * HALF[got.dtype]
    got, want = got.double(), want.double()
    least = bias * unit + 2.0**-25 + 1e-6 * want.abs().max().item()
    torch.testing.assert_close(got, want, rtol=unit, atol=least)
    size = want.square().mean().sqrt()
    gain = (got * want).mean() / size**2 - 1
    assert abs(gain) < 5 * (unit + least / size) / want.numel() ** 0.5


def test_assert_close_to_sees_a_gain():
    want = torch.randn(1000)
    assert_close_to(want.half(), want, 1)
    assert_close_to(want.bfloat16(), want, 1)
    for wrong in (want * (1 + 2.0**-10), want.where(want.abs() > 0.1, 0.0)):
        with pytest.raises(AssertionError):
            assert_close_to(wrong.half(), want, 1)
    with pytest.raises(AssertionError):  # each value is near enough, but not their mean
        assert_close_to((want * (1 + 2.0**-8)).bfloat16(), want, 2)


@each_product
@each_half
@pytest.mark.parametrize("formats", [CURRENT, TO_FP16], ids=["FP8", "FP16 gradients"])
@pytest.mark.parametrize("grad_scale", [1.0, 1e-5])
def test_products_are_those_of_a_float32_model(product, shapes, dtype, formats, grad_scale):
    operands = drawn(shapes, dtype)
    run = lambda *args: product(*args, formats=formats)
    grad = (torch.randn(run(*operands).shape) * grad_scale).to(dtype)
    got = values_and_gradients(run, operands, grad)
    want = values_and_gradients(run, [x.float() for x in operands], grad.float())
    # Autograd sums the gradient of a bias in the model's dtype.
    for value, expected in zip(got[:3], want[:3], strict=True):
        assert_close_to(value, expected, 1, bias_of(operands))


@each_product
@each_half
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_is_as_a_model_of_that_dtype(product, shapes, dtype, is_compiled):
    operands = drawn(shapes, torch.float32)

    def run(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return product(*args, formats=CURRENT)

    call = torch.compile(run, backend="aot_eager", fullgraph=True) if is_compiled else run
    grad = torch.randn(run(*operands).shape).to(dtype)
    output, *grads = values_and_gradients(call, operands, grad)
    wide = lambda *args: product(*args, formats=CURRENT)
    want, *want_grads = values_and_gradients(wide, operands, grad.float())
    # The bias is cast to 16 bits as well.
    assert_close_to(output, want, 2, bias_of(operands))
    for got, expected in zip(grads[:2], want_grads[:2], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * expected.abs().max())


@each_half
@pytest.mark.parametrize("executor", ["emulated", "scaled_mm"])
def test_zero_weights_give_zeros(dtype, executor):
    formats = CURRENT._replace(executor=executor)
    x, weight = torch.randn(8, 16).to(dtype), torch.zeros(16, 16, dtype=dtype)
    y, grad_x, grad_weight = values_and_gradients(
        lambda x, w: linear(x, w, formats=formats), [x, weight]
    )
    assert (y == 0).all()
    assert (grad_x == 0).all()
    assert grad_weight.isfinite().all()
    assert grad_weight.count_nonzero() > 0


@each_half
def test_executors_use_the_same_numbers(dtype):
    operands = drawn([(64, 32), (48, 32)], dtype)
    grad = (torch.randn(64, 48) * 1e-4).to(dtype)
    found = []
    for executor in ("emulated", "scaled_mm"):
        formats = CURRENT._replace(executor=executor)
        found.append(
            values_and_gradients(lambda x, w, f=formats: linear(x, w, formats=f), operands, grad)
        )
    for emulated, hardware in zip(*found, strict=True):
        assert_close_to(emulated, hardware.float(), 2)


def test_sums_of_large_data_do_not_overflow():
    """448 * 448 * 4,096 is far past float16; the product itself is 4,096."""
    x = torch.ones(2, 4096, dtype=torch.float16)
    assert linear(x, x, formats=CURRENT).tolist() == [[4096.0] * 2] * 2
    with torch.autocast("cpu", torch.float16):
        assert linear(x.float(), x.float(), formats=CURRENT).tolist() == [[4096.0] * 2] * 2


@each_half
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_a_value_is_rounded_to_16_bits_once(dtype, scale):
    x = (torch.randn(4000) * scale).to(dtype)
    want = round_value(x.float(), "E5M2 current")
    assert torch.equal(round_value(x, "E5M2 current"), want.to(dtype))


@each_half
def test_attention_takes_current_scales(dtype):
    operands = drawn([(2, 16, 32)] * 3, dtype)
    run = lambda q, k, v: attention(q, k, v, formats=CURRENT)
    got = values_and_gradients(run, operands)
    want = values_and_gradients(run, [x.float() for x in operands])
    plain = values_and_gradients(F.scaled_dot_product_attention, operands)
    noise = values_and_gradients(F.scaled_dot_product_attention, [x.float() for x in operands])
    for value, expected, by_torch, exact in zip(got, want, plain, noise, strict=True):
        # Rounded twice in E4M3FN or E5M2, a value on the edge may fall to the other side.
        assert (value.float() - expected).norm() < 0.05 * expected.norm()
        assert (by_torch.float() - exact).norm() < 0.05 * exact.norm()


@each_half
def test_a_factor_need_not_fit_in_16_bits(dtype):
    x = torch.tensor([2.0**15, -3.0], dtype=dtype)
    assert times(x, torch.tensor(2.0**-30)).tolist() == [
        2.0**-15,
        -3 * 2.0**-30 * (dtype != torch.float16),
    ]
    assert times(x, torch.tensor([2.0**-30]))[0] == 2.0**-15  # no scalar: cast to x's dtype first


@pytest.mark.parametrize("formats", [CURRENT, CURRENT._replace(executor="scaled_mm")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_an_empty_batch_has_an_empty_product(formats, dtype):
    weight = torch.randn(24, 16).to(dtype)
    y, grad_x, grad_weight = values_and_gradients(
        lambda x, w: linear(x, w, formats=formats), [torch.zeros(0, 16, dtype=dtype), weight]
    )
    assert (y.shape, grad_x.shape) == ((0, 24), (0, 16))
    assert (grad_weight == 0).all()
