"""`rounded(x, fwd, bwd)`: round a tensor on its way forward and its gradient on its way back.

The counterpart of `scaling.scaled`. Placed on the operands and the result of any multilinear op it
turns that op into a low-precision one: autograd then sees rounded operands in all three products.
`gemm.product` computes the same function and holds the operands in eight bits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unitscale.formats import FORMATS, FP32, FloatFormat, round_to, torch_dtype, widen
from unitscale.gemm.derivative import first_order

__all__ = ["ProductFormats", "Quantized", "quantize", "round_value", "rounded"]

SMALLEST_AMAX = 1e-12
"""An all-zero tensor has no scale of its own; this keeps `amax / max` away from zero."""


SUM_OVER_ROWS = 2.0**-6
"""Stands for rows^-1/2 of 4,096 rows; without it FP16 overflows where gradients are correlated."""

SUM_OVER_FEATURES = 2.0**-4
"""Stands for features^-1/2 of 256; without it FP16 overflows where gradients grow between steps
that measure: a Llama of width 128 did at step 112, at values of 3,000."""


class ProductFormats(NamedTuple):
    """Formats of one low-precision product, by name; None leaves a tensor as it is.

    `forward` rounds both operands of the output product, `backward` the output gradient, `result`
    each of output, grad_input and grad_weight. With `current`, an operand's scale is its amax now.
    With `unit`, operands are at unit scale and results, which are sums, are rounded smaller:
    grad_weight by `SUM_OVER_ROWS`, the others by `SUM_OVER_FEATURES`. These stand for the factors
    terms^-1/2 that a fused product applies before it rounds.
    `executor` says how the product runs, see `gemm.executor`.
    Names and not `FloatFormat`s, so that a printed graph can be read (and re-executed).
    """

    forward: str | None = None
    backward: str | None = None
    result: str | None = None
    current: bool = False
    unit: bool = False
    executor: str = "emulated"


class Quantized(NamedTuple):
    """`x ~ data * scale`; data is in the format's own dtype where torch has one."""

    data: Tensor
    scale: Tensor | None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The rounded values in `dtype`, shape of the data.

        A scale is applied in float32 at least: in float16 most scales are 0.
        """
        if self.scale is None:
            return widen(self.data, dtype)
        values = widen(self.data, wide(dtype)) * self.scale
        return values if values.dtype == dtype else values.to(dtype)

    def narrow(self, format_name: str) -> "Quantized":
        """The same with the data in the format's own dtype, an exact cast, if torch has one."""
        dtype = torch_dtype(FORMATS[format_name])
        return self if dtype is None else Quantized(self.data.to(dtype), self.scale)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a scale meets a tensor of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def times(x: Tensor, factor: Tensor) -> Tensor:
    """`x * factor` in the dtype of x, with a factor that this dtype need not hold."""
    return (x.to(wide(x.dtype)) * factor).to(x.dtype)


def quantize(x: Tensor, format_name: str | None, *, current: bool = False) -> Quantized:
    """Round `x` to a format and hold it in as few bits as torch can.

    Formats of eight bits and fewer saturate at their maximum; FP16 and BF16 overflow to infinity as
    the hardware does. NaN stays NaN. With `current` the scale is `amax / max` of this tensor.
    """
    if format_name is None:
        return Quantized(x, None)
    return Quantized(*round_data(x, format_name, current=current)).narrow(format_name)


def round_data(x: Tensor, format_name: str, *, current: bool) -> tuple[Tensor, Tensor | None]:
    """The data of a quantized `x`, and its scale in float32.

    The data has the dtype of `x`, with a current scale float32 at least.
    """
    fmt, scale = FORMATS[format_name], None
    if current:
        amax = x.detach().abs().amax() if x.numel() else x.new_zeros(())
        scale = amax.float().clamp(min=SMALLEST_AMAX) / fmt.max
        x = x.to(wide(x.dtype)) / scale
    return round_to(x, fmt, saturate=saturates(fmt)), scale


def saturates(fmt: FloatFormat) -> bool:
    """Whether a cast to this format clamps: yes up to eight bits, no for FP16, BF16 and wider."""
    return fmt.bits <= 8


def round_value(x: Tensor, format_name: str | None, *, current: bool = False) -> Tensor:
    """`x` rounded to a format, in the dtype of `x`."""
    if format_name is None:
        return x
    data, scale = round_data(x, format_name, current=current)
    return data if scale is None else Quantized(data, scale).dequantize(x.dtype)


def round_sum(
    product: Tensor, formats: ProductFormats, factor: float = SUM_OVER_FEATURES
) -> Tensor:
    """A product on the grid of `formats.result`; at unit scale, rounded smaller by `factor`."""
    name = formats.result
    if name is None or not formats.unit or FORMATS[name].exponent_bits >= FP32.exponent_bits:
        return round_value(product, name)
    return round_value(product * factor, name) / factor


def owned(result: Tensor) -> Tensor:
    """The result of an `autograd.Function`, no longer a view to autograd.

    Some of torch's products are views of what their kernel wrote, and a model could not write into
    a view that comes from a Function. For tensors that nothing else refers to.
    """
    fresh: Tensor = torch.ops.aten._unsafe_view(result, result.shape)
    return fresh


class Rounded(torch.autograd.Function):
    """Forward rounds to one format, backward rounds the gradient to another."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fwd: str | None, bwd: str | None, current: tuple[bool, bool]
    ) -> Tensor:
        ctx.bwd, ctx.current = bwd, current[1]
        # A copy and no view: a model may write into what a product returns (see `owned`).
        return x.clone() if fwd is None else round_value(x, fwd, current=current[0])

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return round_value(grad, ctx.bwd, current=ctx.current), None, None, None


def rounded(
    x: Tensor,
    fwd: str | None = None,
    bwd: str | None = None,
    *,
    current: tuple[bool, bool] = (False, False),
) -> Tensor:
    """Round `x` to the format named `fwd`, and its gradient to the one named `bwd`.

    None leaves that direction as it is. The gradient passes values that saturated as well
    (straight-through). `current` says per direction whether the scale is the tensor's own amax.
    """
    if fwd is None and bwd is None:
        return x
    return Rounded.apply(x, fwd, bwd, current)
