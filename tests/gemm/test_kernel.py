"""The FP8 product of hardware: values on the CPU, CUDA's rules on tensors without data."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gemm.edges import PRODUCT_FORMATS, assert_same_bits, saved_bytes, values_and_gradients
from unitscale import gemm
from unitscale.gemm.kernel import scaled_mm
from unitscale.gemm.operand import NOT_SHARED
from unitscale.gemm.scaled_product import NO_FACTORS, ScaledProduct

E4M3FN, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = PRODUCT_FORMATS["fp8 by scaled_mm"]
ONE = torch.tensor(1.0)


def draw(*shape: int, dtype: torch.dtype = E4M3FN) -> torch.Tensor:
    """Small integers, whose sums are exact in any order."""
    return torch.randint(-8, 9, shape).float().to(dtype)


@pytest.mark.parametrize("dtype", [E4M3FN, E5M2])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 48), (3, 5, 7), (1, 16, 17), (17, 1, 16)])
def test_any_size_is_multiplied(m, n, k, dtype):
    left, right = draw(m, k, dtype=dtype), draw(n, k)
    product = scaled_mm(left, right, torch.tensor(0.5), torch.tensor(4.0), torch.float32, False)
    assert product.is_contiguous()
    assert torch.equal(product, 2 * (left.float() @ right.float().T))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_nothing_gives_zeros(m, n, k):
    product = scaled_mm(draw(m, k), draw(n, k), ONE, ONE, torch.bfloat16, False)
    assert product.shape == (m, n)
    assert product.count_nonzero() == 0


@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 48), (3, 5, 7)])
def test_operator_is_registered_as_torch_wants_it(m, n, k):
    # Not `test_schema`: it compares the inputs before and after, which torch cannot in FP8.
    checks = (
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_static",
        "test_aot_dispatch_dynamic",
    )
    arguments = (draw(m, k), draw(n, k), ONE, ONE, torch.bfloat16, True)
    torch.library.opcheck(scaled_mm, arguments, test_utils=checks)


def on_cuda(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A CUDA tensor without data; the mode must be on."""
    return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize(("m", "n", "k"), [(31, 40, 60), (32, 48, 64), (1, 16, 16)])
@pytest.mark.parametrize("name", ["fp8 by scaled_mm", "fp8-current by scaled_mm"])
@pytest.mark.parametrize("weight_in_columns", [False, True])
def test_three_products_keep_the_rules_of_cuda(m, n, k, name, weight_in_columns):
    """Called by hand: without a GPU no autograd engine takes a CUDA tensor."""
    kept = SimpleNamespace(needs_input_grad=[True] * 3)
    kept.save_for_backward = lambda *tensors: setattr(kept, "saved_tensors", tensors)
    with FakeTensorMode():
        weight = on_cuda(k, n).t() if weight_in_columns else on_cuda(n, k)
        x, bias = on_cuda(m, k), on_cuda(n)
        formats = PRODUCT_FORMATS[name]
        output = ScaledProduct.forward(kept, x, weight, bias, NO_FACTORS, formats, None, NOT_SHARED)
        saved = [x.dtype for x in kept.saved_tensors if x is not None and x.dim() == 2]
        grads = ScaledProduct.backward(kept, on_cuda(m, n))
    assert (output.shape, output.dtype) == ((m, n), torch.bfloat16)
    assert saved == [E4M3FN, E4M3FN]
    assert [(tuple(g.shape), g.dtype) for g in grads[:3]] == [
        ((m, k), torch.bfloat16),
        ((n, k), torch.bfloat16),
        ((n,), torch.bfloat16),
    ]


def test_rules_of_cuda_are_checked_where_they_are_broken():
    """The same check, on an operand that is in columns: the test above can fail."""
    with FakeTensorMode():
        one = on_cuda(dtype=torch.float32)
        right = on_cuda(32, 16, dtype=E4M3FN)
        arguments = (one, one, torch.bfloat16, False)
        with pytest.raises((RuntimeError, ValueError), match=r"row_major|row-major|stride"):
            scaled_mm(on_cuda(16, 16, dtype=E4M3FN).t(), right, *arguments)
        with pytest.raises((RuntimeError, ValueError), match=r"col_major|column|stride"):
            scaled_mm(on_cuda(16, 16, dtype=E4M3FN), on_cuda(16, 32, dtype=E4M3FN).t(), *arguments)


def test_factors_are_the_scales_of_the_three_products():
    """Each multiplies one result alone; the bias is left as it is."""
    operands = [draw(6, 16).float(), draw(8, 16).float(), draw(8).float()]
    grad = draw(6, 8).float()
    plain = values_and_gradients(lambda *x: gemm.linear(*x, formats=FP8), operands, grad)
    factors = tuple(torch.tensor(2.0**power) for power in (3, -2, 5))
    product = lambda *x: gemm.linear(*x, formats=FP8, factors=factors)
    got = values_and_gradients(product, operands, grad)
    bias = operands[2]
    want = [(plain[0] - bias) * 8 + bias, plain[1] / 4, plain[2] * 32, plain[3]]
    assert_same_bits(got, want)


def test_factors_follow_the_operands_of_a_matmul():
    """Also where it is turned around."""
    factors = tuple(torch.tensor(2.0**power) for power in (3, -2, 5))
    for shapes in (((6, 16), (16, 8)), ((6, 16), (3, 16, 8)), ((3, 6, 16), (16, 8))):
        operands = [draw(*shape).float() for shape in shapes]
        grad = draw(*torch.matmul(*operands).shape).float()
        plain = values_and_gradients(lambda *x: gemm.matmul(*x, formats=FP8), operands, grad)
        product = lambda *x: gemm.matmul(*x, formats=FP8, factors=factors)
        got = values_and_gradients(product, operands, grad)
        assert_same_bits(got, [plain[0] * 8, plain[1] / 4, plain[2] * 32])


def test_factors_without_a_kernel_are_refused():
    factors = (ONE, None, None)
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="not 'emulated'"):
        gemm.linear(x, x[0], formats=PRODUCT_FORMATS["fp8"], factors=factors)
    with pytest.raises(ValueError, match=r"with a matrix; got \(2, 3, 4\) and \(2, 4, 3\)"):
        gemm.matmul(x, x.mT, formats=FP8, factors=factors)


def test_bias_is_added_to_a_result_that_is_rounded():
    """1 + 2^-9 in BF16 is 1; with the bias 2^-9 added first it would be 1 + 2^-7."""
    x = torch.tensor([[1.0, 2.0**-9]])
    weight, bias = torch.ones(1, 2), torch.tensor([2.0**-8 - 2.0**-9])
    for name, expected in (("fp8 by bf16", 1.0), ("fp8-bf16 by scaled_mm", 1.0)):
        assert gemm.linear(x, weight, bias, formats=PRODUCT_FORMATS[name]).item() == expected
    emulated = PRODUCT_FORMATS["fp8 by bf16"]._replace(executor="emulated")
    bias = torch.tensor([2.0**-8 - 2.0**-9 + 2.0**-16])
    assert gemm.linear(x, weight, bias, formats=emulated).item() == 1 + 2.0**-7


def test_saved_scales_and_factors_are_scalars():
    x, weight = draw(32, 64).float(), draw(64, 64).float()
    x.requires_grad_()
    weight.requires_grad_()
    factors = tuple(torch.tensor(2.0) for _ in range(3))
    run = lambda: gemm.linear(x, weight, formats=FP8, factors=factors)
    assert saved_bytes(run) == 32 * 64 + 64 * 64 + 2 * 4
