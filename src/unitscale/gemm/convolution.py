"""Low-precision convolutions, with operands held in eight bits for backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.gemm.derivative import first_order
from unitscale.gemm.formats import ProductFormats
from unitscale.gemm.operand import (
    Use,
    encode,
    given_scales,
    restore,
    result_dtype,
    save,
    take,
    uncast,
    working_dtype,
)
from unitscale.gemm.product import settled
from unitscale.gemm.rounded import SUM_OVER_ROWS, finish, owned, result_of, round_sum

__all__ = ["conv1d", "conv2d", "conv3d"]

Size = int | Sequence[int]


class ConvolutionProduct(torch.autograd.Function):
    """x [N, C, ...], weight [O, C / groups, ...], bias [O] -> [N, O, ...]."""

    @staticmethod
    def forward(
        ctx: Any,
        convolution: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[list[int], list[int], list[int], int],
        formats: ProductFormats,
        scales: Tensor | None,
    ) -> Tensor:
        dtype = result_dtype(x)
        given = given_scales(scales, (x, weight))
        more = () if given is None else (scales, given[0].amax, given[1].amax)
        uses = [(Use(text), Use(text)) for text in (formats.x_output, formats.w_output)]
        values = save(ctx, formats, (x, weight), uses, dtype=dtype, given=given, more=more)
        ctx.geometry = geometry
        if formats.executor != "bf16" and not formats.is_scaled:
            return owned(round_sum(convolution(*values, bias, *geometry), formats))
        with uncast(formats, x):
            output = convolution(*values, None, *geometry)
        if formats.executor != "bf16":
            output = result_of(output, formats, dtype)
        along = None if bias is None else bias.view(-1, *[1] * len(geometry[0]))
        return owned(finish(output, along, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        formats, dtypes = ctx.kept.formats, ctx.kept.dtypes
        dtype = working_dtype(formats, grad.dtype)
        (x, weight), more = restore(ctx, dtype, grad)
        given = given_scales(more[0] if more else None, [grad], 2)
        use = Use(formats.g_grad_input)
        g = take(encode(grad, use, given[0] if given else None), use, dtype)
        stride, padding, dilation, groups = ctx.geometry
        dims = len(stride)
        wanted = [ctx.needs_input_grad[1], ctx.needs_input_grad[2], False]
        with uncast(formats, grad):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                *(g, x, weight, None, stride, padding, dilation, False, [0] * dims, groups, wanted)
            )
        if grad_x is not None:
            grad_x = result_of(grad_x, formats, dtypes[0])
        if grad_weight is not None:
            grad_weight = result_of(grad_weight, formats, dtypes[1], SUM_OVER_ROWS)
        # The bias is added, not multiplied: its gradient is the sum of the gradient as it came.
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        grad_bias = grad.sum(axes) if ctx.needs_input_grad[3] else None
        grad_scales = torch.stack([*more[1:], given[0].amax]) if given else None
        return None, grad_x, grad_weight, grad_bias, None, None, grad_scales


def convolve(
    convolution: Callable[..., Tensor],
    dims: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Size, Size | str, Size, int],
    formats: ProductFormats,
    scales: Tensor | None,
) -> Tensor:
    """Convolve with one size per axis, with a batch axis added if there is none."""
    stride, padding, dilation, groups = geometry
    steps, gaps = as_list(stride, dims), as_list(dilation, dims)
    if padding == "valid":
        padding = 0
    if padding == "same":
        reach = [gap * (size - 1) for gap, size in zip(gaps, weight.shape[2:], strict=True)]
        # F.pad takes the last axis first.
        sides = [side for total in reversed(reach) for side in (total // 2, total - total // 2)]
        x, padding = F.pad(x, sides), 0
    assert not isinstance(padding, str)
    sizes = (steps, as_list(padding, dims), gaps, groups)
    batched = x.dim() == dims + 2
    batch = x if batched else x.unsqueeze(0)
    formats = settled(formats, x, has_kernel=False)
    output = ConvolutionProduct.apply(convolution, batch, weight, bias, sizes, formats, scales)
    return output if batched else output.squeeze(0)


def as_list(size: Size, dims: int) -> list[int]:
    """One number per axis."""
    numbers = [size] if isinstance(size, int) else list(size)
    return numbers * dims if len(numbers) == 1 else numbers


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    formats: ProductFormats,
    scales: Tensor | None = None,
) -> Tensor:
    """`F.conv1d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv1d, 1, x, weight, bias, geometry, formats, scales)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    formats: ProductFormats,
    scales: Tensor | None = None,
) -> Tensor:
    """`F.conv2d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv2d, 2, x, weight, bias, geometry, formats, scales)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    formats: ProductFormats,
    scales: Tensor | None = None,
) -> Tensor:
    """`F.conv3d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv3d, 3, x, weight, bias, geometry, formats, scales)
