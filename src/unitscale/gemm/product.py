"""Low-precision matrix products: operands rounded, multiplied in the model's dtype.

    output      = Q(x) @ Q(w)^T + bias      Q: `formats.forward`
    grad_input  = G(g) @ Q(w)               G: `formats.backward`
    grad_weight = G(g)^T @ Q(x)             and each result rounded to `formats.result`

The operands saved for backward are the rounded ones, in the format's own dtype (one byte a value
for FP8). This is the emulated executor: on a CPU it is bit-equal to `torch._scaled_mm` with
float32 output, because operands are multiplied by their scales before the product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.gemm.rounded import (
    ProductFormats,
    Quantized,
    round_data,
    round_grad_weight,
    round_value,
    rounded,
)

__all__ = ["addmm", "linear", "matmul"]


def save(ctx: Any, formats: ProductFormats, *operands: Tensor) -> list[Tensor]:
    """Round the operands, and keep them for backward in the format's own dtype."""
    ctx.formats, ctx.dtypes = formats, [x.dtype for x in operands]
    if formats.forward is None:
        ctx.save_for_backward(*(tensor for x in operands for tensor in (x, None)))
        return list(operands)
    rounded = [
        Quantized(*round_data(x, formats.forward, current=formats.current)) for x in operands
    ]
    ctx.save_for_backward(*(tensor for q in rounded for tensor in q.narrow(formats.forward)))
    # The values themselves, not those read back from eight bits: the same, and faster.
    return [q.dequantize(x.dtype) for q, x in zip(rounded, operands, strict=True)]


def restore(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The rounded output gradient and the saved operands, in the gradient's dtype."""
    saved, formats = ctx.saved_tensors, ctx.formats
    pairs = zip(saved[::2], saved[1::2], strict=True)
    grad = round_value(grad, formats.backward, current=formats.current)
    return grad, [Quantized(*pair).dequantize(grad.dtype) for pair in pairs]


class LinearProduct(torch.autograd.Function):
    """x [..., k], weight [n, k], bias [n] -> [..., n]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, formats: ProductFormats
    ) -> Tensor:
        x, weight = save(ctx, formats, x, weight)
        output = F.linear(x, weight, bias)
        return round_value(output, formats.result)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, (x, weight) = restore(ctx, grad)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = round_value(g @ weight, ctx.formats.result).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            product = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            grad_weight = round_grad_weight(product, ctx.formats).to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            # The bias is added, not multiplied: its gradient is the sum of the gradient as it came.
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_weight, grad_bias, None


class MatmulProduct(torch.autograd.Function):
    """a [..., m, k], b [..., k, n] -> [..., m, n], leading axes broadcast."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, formats: ProductFormats) -> Tensor:
        ctx.shapes = a.shape, b.shape
        a, b = save(ctx, formats, a, b)
        output = torch.matmul(a, b)
        return round_value(output, formats.result)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, (a, b) = restore(ctx, grad)
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            product = (g @ b.mT).sum_to_size(ctx.shapes[0])
            grad_a = round_value(product, ctx.formats.result).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            product = (a.mT @ g).sum_to_size(ctx.shapes[1])
            grad_b = round_grad_weight(product, ctx.formats).to(ctx.dtypes[1])
        return grad_a, grad_b, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, formats: ProductFormats
) -> Tensor:
    """`F.linear` in low precision: x [..., k], weight [n, k], bias [n] -> [..., n].

    The bias is added in the model's dtype, as FP8 hardware does.
    """
    return LinearProduct.apply(x, weight, bias, formats)


def matmul(a: Tensor, b: Tensor, *, formats: ProductFormats) -> Tensor:
    """`torch.matmul` in low precision, vectors included: a [..., m, k], b [..., k, n]."""
    if a.dim() < 2 or b.dim() < 2:
        operand = (formats.current, False)
        a = rounded(a, formats.forward, formats.result, current=operand)
        b = rounded(b, formats.forward, formats.result, current=operand)
        output = torch.matmul(a, b)
        return rounded(output, formats.result, formats.backward, current=(False, formats.current))
    # A matrix shared by a batch has one gradient product, not one a sample and then a sum of them.
    if b.dim() == 2:
        return linear(a, b.mT, formats=formats)
    if a.dim() == 2:
        return linear(b.mT, a, formats=formats).mT
    return MatmulProduct.apply(a, b, formats)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, formats: ProductFormats) -> Tensor:
    """`torch.addmm` in low precision: bias [n] or [m, n], a [m, k], b [k, n] -> [m, n]."""
    return bias + matmul(a, b, formats=formats)
