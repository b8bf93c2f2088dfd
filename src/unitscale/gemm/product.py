"""Low-precision matrix products: operands rounded and multiplied by the executor of the formats.

    output      = Q(x) @ Q(w)^T + bias      Q: `formats.forward`
    grad_input  = G(g) @ Q(w)               G: `formats.backward`
    grad_weight = G(g)^T @ Q(x)             and each result rounded to `formats.result`

The operands saved for backward are the rounded ones, in the format's own dtype (one byte a value
for FP8). Emulated, a product is that of the CPU's `torch._scaled_mm` with float32 output, up to the
order of sums and to where a kernel multiplies by the scales. See `gemm.executor`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.formats import FORMATS, torch_dtype
from unitscale.gemm.derivative import first_order
from unitscale.gemm.executor import choose, without_fp8
from unitscale.gemm.kernel import scaled_mm
from unitscale.gemm.operand import is_apart, recover, restore, result_dtype, save, uncast
from unitscale.gemm.rounded import (
    SUM_OVER_ROWS,
    ProductFormats,
    Quantized,
    owned,
    quantize,
    round_sum,
    rounded,
)

__all__ = ["Factors", "addmm", "linear", "matmul"]

Factors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What the results of the three products are multiplied by: scalar tensors; None is 1."""

NO_FACTORS: Factors = (None, None, None)


def settled(formats: ProductFormats, x: Tensor, *, has_kernel: bool = True) -> ProductFormats:
    """`formats` with the executor that a product with `x` gets.

    Without a kernel of its own in `torch._scaled_mm` an op gets the next best.
    """
    if formats.executor == "emulated":
        return formats
    return formats._replace(executor=chosen(formats, result_dtype(x), x.device, has_kernel))


@torch.compiler.assume_constant_result
def chosen(
    formats: ProductFormats, dtype: torch.dtype, device: torch.device, has_kernel: bool
) -> str:
    """The executor; what a machine can do does not change, and no compiler could trace it."""
    executor = choose(formats, dtype, device).executor
    if executor == "scaled_mm" and not has_kernel:
        return without_fp8(formats, dtype, device)
    return executor


def finish(
    product: Tensor, bias: Tensor | None, formats: ProductFormats, dtype: torch.dtype
) -> Tensor:
    """A product on the grid of the recipe's results, with the bias, in `dtype`."""
    product = product.to(dtype)
    return product if bias is None else round_sum(product + bias.to(dtype), formats)


class LinearProduct(torch.autograd.Function):
    """x [..., k], weight [n, k], bias [n] -> [..., n]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, formats: ProductFormats
    ) -> Tensor:
        dtype, wanted = result_dtype(x), ctx.needs_input_grad[1::-1]
        operands = save(ctx, formats, x, weight, dtype=dtype, wanted=wanted)
        if formats.executor == "bf16":
            return owned(finish(F.linear(*operands.values), bias, formats, dtype))
        if is_apart(formats, dtype):
            with uncast(operands, x):
                output = F.linear(*operands.values)
            output = recover(output, operands.scales, formats, dtype)
            return owned(finish(output, bias, formats, dtype))
        left, right = operands.values
        return owned(round_sum(F.linear(left, right, bias), formats))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, formats = restore(ctx, grad), ctx.formats
        (g, x, weight), (g_scale, x_scale, weight_scale), _ = operands
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            with uncast(operands, grad):
                product = g @ weight
            grad_x = recover(product, (g_scale, weight_scale), formats, ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            with uncast(operands, grad):
                product = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            scales, dtype = (g_scale, x_scale), ctx.dtypes[1]
            grad_weight = recover(product, scales, formats, dtype, SUM_OVER_ROWS)
        if ctx.needs_input_grad[2]:
            # The bias is added, not multiplied: its gradient is the sum of the gradient as it came.
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_weight, grad_bias, None


class ScaledProduct(torch.autograd.Function):
    """`LinearProduct` by `torch._scaled_mm`, with the factors of its results as scales."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: Factors,
        formats: ProductFormats,
    ) -> Tensor:
        operands = [
            quantize(operand, formats.forward, current=formats.current) for operand in (x, weight)
        ]
        ctx.formats, ctx.shape, ctx.dtypes = formats, x.shape, (x.dtype, weight.dtype)
        output_factor, *grad_factors = factors
        left, right = (in_rows(matrix(q)) for q in operands)
        wants_x, wants_weight, *_ = ctx.needs_input_grad  # each from the other operand
        none = (None, None)
        kept = (*(left if wants_weight else none), *(right if wants_x else none))
        ctx.save_for_backward(*kept, *grad_factors)
        dtype = result_dtype(x)
        output = multiply(left, right, output_factor, formats, dtype, fast_accum=True)
        output = finish(output, bias, formats, dtype)
        return owned(output.view(*x.shape[:-1], weight.shape[0]))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, x_scale, weight, weight_scale, x_factor, weight_factor = ctx.saved_tensors
        formats = ctx.formats
        g = matrix(quantize(grad, formats.backward, current=formats.current))
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            right = in_rows(Quantized(weight.t(), weight_scale))
            grad_x = multiply(in_rows(g), right, x_factor, formats, grad.dtype)
            grad_x = grad_x.to(ctx.dtypes[0]).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            left, right = Quantized(g.data.t(), g.scale), Quantized(x.t(), x_scale)
            product = multiply(in_rows(left), in_rows(right), weight_factor, formats, grad.dtype)
            grad_weight = product.to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_weight, grad_bias, None, None


def matrix(x: Quantized) -> Quantized:
    """The data with its leading axes as one."""
    return Quantized(x.data.reshape(-1, x.data.shape[-1]), x.scale)


def in_rows(x: Quantized) -> Quantized:
    """The data with its last stride 1: a copy, of one byte a value, only where it is needed."""
    if x.data.is_contiguous():
        return x
    return Quantized(x.data.clone(memory_format=torch.contiguous_format), x.scale)


def multiply(
    left: Quantized,
    right: Quantized,
    factor: Tensor | None,
    formats: ProductFormats,
    dtype: torch.dtype,
    *,
    fast_accum: bool = False,
) -> Tensor:
    """`left @ right^T * factor` on FP8 hardware, in the dtype of the recipe's results."""
    one = torch.ones((), dtype=torch.float32, device=left.data.device)
    scales = [one if x.scale is None else x.scale for x in (left, right)]
    if factor is not None:
        scales[0] = scales[0] * factor.float()
    result = dtype if formats.result is None else torch_dtype(FORMATS[formats.result])
    assert result is not None
    product: Tensor = scaled_mm(left.data, right.data, *scales, result, fast_accum)
    return product


class MatmulProduct(torch.autograd.Function):
    """a [..., m, k], b [..., k, n] -> [..., m, n], leading axes broadcast."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, formats: ProductFormats) -> Tensor:
        ctx.shapes, dtype = (a.shape, b.shape), result_dtype(a)
        operands = save(ctx, formats, a, b, dtype=dtype, wanted=ctx.needs_input_grad[1::-1])
        with uncast(operands, a):
            output = torch.matmul(*operands.values)
        return owned(recover(output, operands.scales, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, formats = restore(ctx, grad), ctx.formats
        (g, a, b), (g_scale, a_scale, b_scale), _ = operands
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            with uncast(operands, grad):
                product = (g @ b.mT).sum_to_size(ctx.shapes[0])
            grad_a = recover(product, (g_scale, b_scale), formats, ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            with uncast(operands, grad):
                product = (a.mT @ g).sum_to_size(ctx.shapes[1])
            scales, dtype = (g_scale, a_scale), ctx.dtypes[1]
            grad_b = recover(product, scales, formats, dtype, SUM_OVER_ROWS)
        return grad_a, grad_b, None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    formats: ProductFormats,
    factors: Factors | None = None,
) -> Tensor:
    """`F.linear` in low precision: x [..., k], weight [n, k], bias [n] -> [..., n].

    The bias is added in the model's dtype, as FP8 hardware does. `factors`, with the executor
    "scaled_mm" alone, are the scale arguments of the three products: what the output without its
    bias, the gradient of x and that of the weight are multiplied by, each on its own.

    Raises:
        ValueError: the executor cannot run here; factors with another executor.
    """
    formats = settled(formats, x)
    if formats.executor == "scaled_mm":
        return ScaledProduct.apply(x, weight, bias, factors or NO_FACTORS, formats)
    if factors is not None:
        raise ValueError(f"linear: factors are for 'scaled_mm', not {formats.executor!r}")
    return LinearProduct.apply(x, weight, bias, formats)


def matmul(
    a: Tensor, b: Tensor, *, formats: ProductFormats, factors: Factors | None = None
) -> Tensor:
    """`torch.matmul` in low precision, vectors included: a [..., m, k], b [..., k, n].

    A product with a matrix is a `linear`, with its `factors`; `torch._scaled_mm` has no others.

    Raises:
        ValueError: as `linear`; factors where neither operand is a matrix.
    """
    # A matrix shared by a batch has one gradient product, not one a sample and then a sum of them.
    if a.dim() >= 2 and b.dim() == 2:
        return linear(a, b.mT, formats=formats, factors=factors)
    if a.dim() == 2 and b.dim() >= 2:
        swapped = None if factors is None else (factors[0], factors[2], factors[1])
        return linear(b.mT, a, formats=formats, factors=swapped).mT
    if factors is not None:
        raise ValueError(
            "matmul: factors are for products with a matrix; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.dim() < 2 or b.dim() < 2:
        operand = (formats.current, False)
        a = rounded(a, formats.forward, formats.result, current=operand)
        b = rounded(b, formats.forward, formats.result, current=operand)
        output = torch.matmul(a, b)
        return rounded(output, formats.result, formats.backward, current=(False, formats.current))
    formats = settled(formats, a, has_kernel=False)
    if a.shape[:-2] != b.shape[:-2]:
        # The gradient of what is repeated is a sum, and is to be rounded as a sum.
        formats = formats._replace(executor="emulated")
    return MatmulProduct.apply(a, b, formats)


def addmm(
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    formats: ProductFormats,
    factors: Factors | None = None,
) -> Tensor:
    """`torch.addmm` in low precision: bias [n] or [m, n], a [m, k], b [k, n] -> [m, n]."""
    return bias + matmul(a, b, formats=formats, factors=factors)
