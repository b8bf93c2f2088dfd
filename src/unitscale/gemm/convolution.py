"""Low-precision convolutions, with operands held in eight bits for backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.gemm.derivative import first_order
from unitscale.gemm.operand import is_apart, recover, restore, result_dtype, save, uncast
from unitscale.gemm.product import finish, settled
from unitscale.gemm.rounded import SUM_OVER_ROWS, ProductFormats, owned, round_sum

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
    ) -> Tensor:
        dtype = result_dtype(x)
        operands = save(ctx, formats, x, weight, dtype=dtype)
        ctx.geometry = geometry
        if formats.executor != "bf16" and not is_apart(formats, dtype):
            return owned(round_sum(convolution(*operands.values, bias, *geometry), formats))
        with uncast(operands, x):
            output = convolution(*operands.values, None, *geometry)
        output = recover(output, operands.scales, formats, dtype)
        along = None if bias is None else bias.view(-1, *[1] * len(geometry[0]))
        return owned(finish(output, along, formats, dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, formats = restore(ctx, grad), ctx.formats
        (g, x, weight), (g_scale, x_scale, weight_scale), _ = operands
        stride, padding, dilation, groups = ctx.geometry
        dims = len(stride)
        wanted = [ctx.needs_input_grad[1], ctx.needs_input_grad[2], False]
        with uncast(operands, grad):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                *(g, x, weight, None, stride, padding, dilation, False, [0] * dims, groups, wanted)
            )
        if grad_x is not None:
            grad_x = recover(grad_x, (g_scale, weight_scale), formats, ctx.dtypes[0])
        if grad_weight is not None:
            scales, dtype = (g_scale, x_scale), ctx.dtypes[1]
            grad_weight = recover(grad_weight, scales, formats, dtype, SUM_OVER_ROWS)
        # The bias is added, not multiplied: its gradient is the sum of the gradient as it came.
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        grad_bias = grad.sum(axes) if ctx.needs_input_grad[3] else None
        return None, grad_x, grad_weight, grad_bias, None, None


def convolve(
    convolution: Callable[..., Tensor],
    dims: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Size, Size | str, Size, int],
    formats: ProductFormats,
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
    output = ConvolutionProduct.apply(convolution, batch, weight, bias, sizes, formats)
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
) -> Tensor:
    """`F.conv1d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv1d, 1, x, weight, bias, geometry, formats)


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
) -> Tensor:
    """`F.conv2d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv2d, 2, x, weight, bias, geometry, formats)


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
) -> Tensor:
    """`F.conv3d` in low precision, the bias added in the model's dtype."""
    geometry = (stride, padding, dilation, groups)
    return convolve(F.conv3d, 3, x, weight, bias, geometry, formats)
