"""Convolutions and their transposes in one, two and three dimensions.

The factors count every position as if its whole kernel lay inside the input. Zero padding takes
terms away at the border, so a small padded image comes out below 1 (0.91 for 8x8, kernel 3): the
factor does not follow the size of the input, because the function should not either.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating, shape
from unitscale.scaling import scale_bwd, scale_fwd
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import LinearFactors, conv_factors, conv_transpose_factors

Sizes = int | tuple[int, ...]


def convolve(
    op: str,
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    constraint: str | None,
) -> Tensor:
    """A convolution of any dimension between its factored edges."""
    check_convolution(op, input, weight, bias, groups * weight.shape[1], weight.shape[0])
    size, kernel = input.shape[2 - weight.dim() :], weight.shape[2:]
    strides, dilations = (per_axis(value, len(kernel)) for value in (stride, dilation))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if padding == "same":
        out_size = list(size)
    else:
        pads = per_axis(0 if isinstance(padding, str) else padding, len(kernel))
        out_size = [
            (length + 2 * pad - span) // step + 1
            for length, pad, span, step in zip(size, pads, spans, strides, strict=True)
        ]
    factors = conv_factors(
        groups * weight.shape[1],
        weight.shape[0],
        math.prod(kernel),
        stride_numel=math.prod(strides),
        groups=groups,
        rows=batch_size(input, weight) * math.prod(out_size),
    )
    return apply_convolution(
        lambda x, w: function(x, w, None, stride, padding, dilation, groups),
        input, weight, bias, factors, constraint,
    )  # fmt: skip


def convolve_transposed(
    op: str,
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
    constraint: str | None,
) -> Tensor:
    """A transposed convolution of any dimension between its factored edges."""
    check_convolution(op, input, weight, bias, weight.shape[0], groups * weight.shape[1])
    size, kernel = input.shape[2 - weight.dim() :], weight.shape[2:]
    strides, pads, extras, dilations = (
        per_axis(value, len(kernel)) for value in (stride, padding, output_padding, dilation)
    )
    out_size = [
        (length - 1) * step - 2 * pad + d * (k - 1) + extra + 1
        for length, step, pad, d, k, extra in zip(
            size, strides, pads, dilations, kernel, extras, strict=True
        )
    ]
    batch = batch_size(input, weight)
    factors = conv_transpose_factors(
        weight.shape[0],
        groups * weight.shape[1],
        math.prod(kernel),
        stride_numel=math.prod(strides),
        groups=groups,
        input_rows=batch * math.prod(size),
        output_rows=batch * math.prod(out_size),
    )
    return apply_convolution(
        lambda x, w: function(x, w, None, stride, padding, output_padding, groups, dilation),
        input, weight, bias, factors, constraint,
    )  # fmt: skip


def apply_convolution(
    function: Callable[[Tensor, Tensor], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: LinearFactors,
    constraint: str | None,
) -> Tensor:
    """Factors on the operands, on the result, and the bias per channel behind them."""
    output_scale, grad_input_scale = apply_constraint(
        constraint, factors.output_scale, factors.grad_input_scale
    )
    weight = scale_bwd(weight, factors.grad_weight_scale)
    output = scale_fwd(function(scale_bwd(input, grad_input_scale), weight), output_scale)
    if bias is None:
        return output
    return output + scale_bwd(bias, factors.grad_bias_scale).view(-1, *(1,) * (weight.dim() - 2))


def per_axis(value: Sizes, axes: int) -> tuple[int, ...]:
    """One value per spatial axis, from one for all of them or already one each."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) if len(value) == axes else tuple(value) * axes


def batch_size(input: Tensor, weight: Tensor) -> int:
    """N of [N, C, ...], and 1 without a batch axis."""
    return input.shape[0] if input.dim() == weight.dim() else 1


def check_convolution(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_channels: int,
    out_channels: int,
) -> None:
    """Axes and channels as torch wants them, with an answer that names them."""
    check_floating(op, input=input, weight=weight, bias=bias)
    dim = int(op[-2])
    if weight.dim() != dim + 2:
        raise ValueError(
            f"{op}: weight has shape {shape(weight)}, expected {dim + 2} axes "
            f"(two of channels, then {dim} of the kernel)."
        )
    if input.dim() not in (dim + 1, dim + 2) or input.shape[-dim - 1] != in_channels:
        raise ValueError(
            f"{op}: input has shape {shape(input)}, expected [N, {in_channels}, ...] or "
            f"[{in_channels}, ...] with {dim} spatial axes, for a weight of shape "
            f"{shape(weight)}; channels come before space, and times groups."
        )
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"{op}: bias has shape {shape(bias)}, expected [{out_channels}].")


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv1d / sqrt(in_channels / groups * kernel size) + bias`; weight N(0, 1), bias 0.

    Unconstrained, the gradient of the input is at unit scale too; those of weight and bias always
    are, divided by the root of the number of output positions in the batch.
    """
    return convolve(
        "conv1d", F.conv1d, input, weight, bias, stride, padding, dilation, groups, constraint
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv2d / sqrt(in_channels / groups * kernel size) + bias`; weight N(0, 1), bias 0.

    Unconstrained, the gradient of the input is at unit scale too; those of weight and bias always
    are, divided by the root of the number of output positions in the batch.
    """
    return convolve(
        "conv2d", F.conv2d, input, weight, bias, stride, padding, dilation, groups, constraint
    )


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv3d / sqrt(in_channels / groups * kernel size) + bias`; weight N(0, 1), bias 0.

    Unconstrained, the gradient of the input is at unit scale too; those of weight and bias always
    are, divided by the root of the number of output positions in the batch.
    """
    return convolve(
        "conv3d", F.conv3d, input, weight, bias, stride, padding, dilation, groups, constraint
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv_transpose1d` at unit scale: `conv1d` with output and input gradient exchanged."""
    return convolve_transposed(
        "conv_transpose1d", F.conv_transpose1d, input, weight, bias,
        stride, padding, output_padding, groups, dilation, constraint,
    )  # fmt: skip


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv_transpose2d` at unit scale: `conv2d` with output and input gradient exchanged."""
    return convolve_transposed(
        "conv_transpose2d", F.conv_transpose2d, input, weight, bias,
        stride, padding, output_padding, groups, dilation, constraint,
    )  # fmt: skip


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.conv_transpose3d` at unit scale: `conv3d` with output and input gradient exchanged."""
    return convolve_transposed(
        "conv_transpose3d", F.conv_transpose3d, input, weight, bias,
        stride, padding, output_padding, groups, dilation, constraint,
    )  # fmt: skip
