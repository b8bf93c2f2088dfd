"""`rounded(x, fwd, bwd)`: round a tensor on its way forward and its gradient on its way back.

The counterpart of `scaling.scaled`. Placed on the operands and the result of any multilinear op it
turns that op into a low-precision one: autograd then sees rounded operands in all three products.
`gemm.product` computes the same function and holds the operands in eight bits.
"""

from typing import Any

import torch
from torch import Tensor

from unitscale.formats import FORMATS, FP32, round_to
from unitscale.gemm.derivative import first_order
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.operand import Given, Use, amax_of, on_grid, saturates, take, wide

__all__ = [
    "edge_scales",
    "finish",
    "owned",
    "result_of",
    "round_sum",
    "round_value",
    "rounded",
    "times",
]

SUM_OVER_ROWS = 2.0**-6
"""Stands for rows^-1/2 of 4,096 rows; without it FP16 overflows where gradients are correlated."""

SUM_OVER_FEATURES = 2.0**-4
"""Stands for features^-1/2 of 256; without it FP16 overflows where gradients grow between steps
that measure: a Llama of width 128 did at step 112, at values of 3,000."""


def times(x: Tensor, factor: Tensor) -> Tensor:
    """`x * factor` in the dtype of x, with a factor that this dtype need not hold."""
    return (x.to(wide(x.dtype)) * factor).to(x.dtype)


def round_value(x: Tensor, text: str | None, given: Given | None = None) -> Tensor:
    """`x` rounded as an operand's text says (a format's name casts it), in the dtype of `x`.

    Formats of eight bits and fewer saturate at their maximum; FP16 and BF16 overflow to infinity as
    the hardware does. NaN stays NaN. Inf becomes NaN as an operand, see `gemm.operand`, and
    saturates where the text is a format's name: so are activations rounded, and a mask is one of
    them, whose -Inf is no overflow.
    """
    if text is None:
        return x
    if text in FORMATS:
        return round_to(x, FORMATS[text], saturate=saturates(FORMATS[text]))
    use = Use(text)
    return take(on_grid(x, use, given), use, x.dtype)


def round_sum(
    product: Tensor, formats: ProductFormats, factor: float = SUM_OVER_FEATURES
) -> Tensor:
    """A product on the grid of `formats.result`; at unit scale, rounded smaller by `factor`."""
    name = formats.result
    if name is None or not formats.at_units or FORMATS[name].exponent_bits >= FP32.exponent_bits:
        return round_value(product, name)
    return round_value(product * factor, name) / factor


def finish(
    product: Tensor, bias: Tensor | None, formats: ProductFormats, dtype: torch.dtype
) -> Tensor:
    """A product on the grid of the recipe's results, with the bias, in `dtype`."""
    product = product.to(dtype)
    return product if bias is None else round_sum(product + bias.to(dtype), formats)


def result_of(
    product: Tensor,
    formats: ProductFormats,
    dtype: torch.dtype,
    factor: float = SUM_OVER_FEATURES,
) -> Tensor:
    """A product on the grid of the recipe's results, in `dtype`."""
    return round_sum(product, formats, factor).to(dtype)


def owned(result: Tensor) -> Tensor:
    """The result of an `autograd.Function`, no longer a view to autograd.

    Some of torch's products are views of what their kernel wrote, and a model could not write into
    a view that comes from a Function. For tensors that nothing else refers to.
    """
    fresh: Tensor = torch.ops.aten._unsafe_view(result, result.shape)
    return fresh


class Rounded(torch.autograd.Function):
    """Forward rounds as one operand, backward rounds the gradient as another.

    `scales` holds what earlier steps gave to the two: their gradient is the two amaxes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fwd: str | None, bwd: str | None, scales: Tensor | None
    ) -> Tensor:
        ctx.bwd = bwd
        given = None if scales is None else Given(amax_of(x), scales.detach()[0])
        ctx.save_for_backward(*(() if given is None else (given.amax, scales)))
        # A copy and no view: a model may write into what a product returns (see `owned`).
        return x.clone() if fwd is None else round_value(x, fwd, given)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return round_value(grad, ctx.bwd), None, None, None
        amax, scales = ctx.saved_tensors
        given = Given(amax_of(grad), scales.detach()[1])
        return round_value(grad, ctx.bwd, given), None, None, torch.stack([amax, given.amax])


def rounded(
    x: Tensor,
    fwd: str | None = None,
    bwd: str | None = None,
    *,
    current: tuple[bool, bool] = (False, False),
    scales: Tensor | None = None,
) -> Tensor:
    """Round `x` as the operand of text `fwd`, and its gradient as that of `bwd`.

    The name of a format is a text: it casts. None leaves that direction as it is. The gradient
    passes values that saturated as well (straight-through).

    Args:
        current: per direction, whether a format's scale is the tensor's own amax: the same as the
            text "E4M3FN current".
        scales: float32 [2], for texts with delayed scales: those of the two directions, 0 where
            there is none yet. The gradient that it gets is the two amaxes.
    """
    if fwd is None and bwd is None:
        return x
    fwd, bwd = (
        f"{text} current" if text and is_current else text
        for text, is_current in zip((fwd, bwd), current, strict=True)
    )
    return Rounded.apply(x, fwd, bwd, scales)


def edge_scales(scales: Tensor | None, operands: int) -> list[Tensor | None]:
    """The scales of a product's operands and then its gradient, as `rounded` takes each of them."""
    if scales is None:
        return [None] * (operands + 1)
    zero = torch.zeros_like(scales[:1])
    values = [torch.cat([scales[i : i + 1], zero]) for i in range(operands)]
    return [*values, torch.cat([zero, scales[operands:]])]
