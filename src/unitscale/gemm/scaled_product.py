"""`ScaledProduct`: a linear layer's three products by the FP8 products of hardware.

Each operand is encoded once, with one scale for its tensor; the factors of the results are folded
into the scales that the kernel takes anyway.
"""

from typing import Any

import torch
from torch import Tensor

from unitscale.formats import FORMATS, Encoded, torch_dtype
from unitscale.formats.rounding import is_traced
from unitscale.gemm import passes
from unitscale.gemm.derivative import first_order
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.kernel import scaled_mm
from unitscale.gemm.operand import Use, encode, given_scales, pack, result_dtype
from unitscale.gemm.rounded import finish, owned

__all__ = ["NO_FACTORS", "Factors"]

Factors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What the results of the three products are multiplied by: scalar tensors; None is 1."""

NO_FACTORS: Factors = (None, None, None)


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
        scales: Tensor | None,
    ) -> Tensor:
        given = given_scales(scales, (x, weight))
        uses = Use(formats.x_output), Use(formats.w_output)
        left, right = (
            in_rows(pack(encode(operand, use, own), use))
            for operand, use, own in zip((x, weight), uses, given or (None, None), strict=True)
        )
        ctx.formats, ctx.dtypes = formats, (x.dtype, weight.dtype)
        output_factor, *grad_factors = factors
        wants_x, wants_weight, *_ = ctx.needs_input_grad  # each from the other operand
        none = Encoded(None, None)  # type: ignore[arg-type]
        kept = (*(left if wants_weight else none)[:2], *(right if wants_x else none)[:2])
        more = () if given is None else (scales, given[0].amax, given[1].amax)
        ctx.save_for_backward(*kept, *grad_factors, *more)
        dtype = result_dtype(x)
        output = multiply(left, right, output_factor, formats, dtype, fast_accum=True)
        return owned(finish(output, bias, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, x_scale, weight, weight_scale, x_factor, weight_factor, *more = ctx.saved_tensors
        formats = ctx.formats
        given = given_scales(more[0], [grad], 2) if more else None
        use = Use(formats.g_grad_input)
        g = pack(encode(grad, use, given[0] if given else None), use)
        grad_x = grad_weight = grad_bias = grad_scales = None
        if ctx.needs_input_grad[0]:
            right = in_rows(Encoded(weight.t(), weight_scale))
            grad_x = multiply(in_rows(g), right, x_factor, formats, grad.dtype).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            left, right = Encoded(g.data.t(), g.scale), Encoded(x.t(), x_scale)
            product = multiply(in_rows(left), in_rows(right), weight_factor, formats, grad.dtype)
            grad_weight = product.to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        if given:
            grad_scales = torch.stack([*more[1:], given[0].amax])
        return grad_x, grad_weight, grad_bias, None, None, grad_scales


def in_rows(x: Encoded) -> Encoded:
    """The data with its last stride 1: a copy, of one byte a value, only where it is needed."""
    if x.data.is_contiguous():
        return x
    if not is_traced(x.data):
        passes.note("transposes")
    return x._replace(data=x.data.clone(memory_format=torch.contiguous_format))


def multiply(
    left: Encoded,
    right: Encoded,
    factor: Tensor | None,
    formats: ProductFormats,
    dtype: torch.dtype,
    *,
    fast_accum: bool = False,
) -> Tensor:
    """`left @ right^T * factor` on FP8 hardware, in the dtype of the recipe's results."""
    one = torch.ones((), dtype=torch.float32, device=left.data.device)
    scales = [one if x.scale is None else x.scale.reshape(()) for x in (left, right)]
    if factor is not None:
        scales[0] = scales[0] * factor.float()
    result = dtype if formats.result is None else torch_dtype(FORMATS[formats.result])
    assert result is not None
    product: Tensor = scaled_mm(left.data, right.data, *scales, result, fast_accum)
    return product
