"""Pooling: what an average or a maximum over a window leaves of unit scale.

For a window of K elements and stride s, the average has `output_scale = sqrt(K)` and the maximum
1 over the standard deviation of the largest of K normals; its mean stays (1.47 at K=4, after the
factor). Zero padding lowers the average at the border, and a window longer than its stride leaves
neighbouring outputs correlated, which no factor sees.
"""

import math
from collections.abc import Callable
from operator import index
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating
from unitscale.scaling import scaled
from unitscale.scaling.constraints import apply_constraint
from unitscale.scaling.factors import Factors, avg_pool_factors, max_pool_factors

Sizes = int | tuple[int, ...]


def pool(
    op: str,
    function: Callable[..., Tensor],
    rule: Callable[[int, int], Factors],
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    options: tuple[object, ...],
    constraint: str | None,
) -> Tensor:
    """A pooling of any dimension, with the factors of its window and stride."""
    check_floating(op, input=input)
    axes = int(op[-2])
    step = kernel_size if stride is None else stride
    factors = rule(window_numel(kernel_size, axes), window_numel(step, axes))
    output = function(input, kernel_size, stride, *options)
    return scaled(
        output, *apply_constraint(constraint, factors.output_scale, factors.grad_input_scale)
    )


def window_numel(size: Sizes, axes: int) -> int:
    """Elements of a window given by one length or by one per axis."""
    return size**axes if isinstance(size, int) else math.prod(size)


def adaptive_pool(
    op: str,
    function: Callable[..., Tensor],
    input: Tensor,
    output_size: int | tuple[int | None, ...] | None,
    constraint: str | None,
) -> Tensor:
    """Average pooling to a given size: the stride is the ratio of sizes, the window about it."""
    check_floating(op, input=input)
    output = function(input, output_size)
    axes = int(op[-2])
    # Constants of a graph: there is no symbolic gcd.
    sizes = [
        tuple(map(index, pair))
        for pair in zip(input.shape[-axes:], output.shape[-axes:], strict=True)
    ]
    ratio = math.prod([size / out for size, out in sizes])
    # Torch rounds both ends of a window outwards: on average it is that much longer than the ratio.
    window = math.prod([size / out + 1 - math.gcd(size, out) / out for size, out in sizes])
    factors = avg_pool_factors(cast("int", window), ratio)  # a mean, where the rule says a size
    return scaled(
        output, *apply_constraint(constraint, factors.output_scale, factors.grad_input_scale)
    )


def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.avg_pool1d` at unit scale."""
    options = (padding, ceil_mode, count_include_pad)
    return pool(
        "avg_pool1d", F.avg_pool1d, avg_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.avg_pool2d` at unit scale."""
    options = (padding, ceil_mode, count_include_pad)
    return pool(
        "avg_pool2d", F.avg_pool2d, avg_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.avg_pool3d` at unit scale."""
    options = (padding, ceil_mode, count_include_pad)
    return pool(
        "avg_pool3d", F.avg_pool3d, avg_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.max_pool1d` at unit standard deviation; the mean of a maximum stays."""
    options = (padding, dilation, ceil_mode)
    return pool(
        "max_pool1d", F.max_pool1d, max_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.max_pool2d` at unit standard deviation; the mean of a maximum stays."""
    options = (padding, dilation, ceil_mode)
    return pool(
        "max_pool2d", F.max_pool2d, max_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.max_pool3d` at unit standard deviation; the mean of a maximum stays."""
    options = (padding, dilation, ceil_mode)
    return pool(
        "max_pool3d", F.max_pool3d, max_pool_factors,
        input, kernel_size, stride, options, constraint,
    )  # fmt: skip


def adaptive_avg_pool1d(
    input: Tensor,
    output_size: int,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.adaptive_avg_pool1d` at unit scale; the factor follows the size of the input."""
    return adaptive_pool(
        "adaptive_avg_pool1d", F.adaptive_avg_pool1d, input, output_size, constraint
    )


def adaptive_avg_pool2d(
    input: Tensor,
    output_size: int | tuple[int | None, ...] | None,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.adaptive_avg_pool2d` at unit scale; the factor follows the size of the input."""
    return adaptive_pool(
        "adaptive_avg_pool2d", F.adaptive_avg_pool2d, input, output_size, constraint
    )


def adaptive_avg_pool3d(
    input: Tensor,
    output_size: int | tuple[int | None, ...] | None,
    *,
    constraint: str | None = "to_output_scale",
) -> Tensor:
    """`F.adaptive_avg_pool3d` at unit scale; the factor follows the size of the input."""
    return adaptive_pool(
        "adaptive_avg_pool3d", F.adaptive_avg_pool3d, input, output_size, constraint
    )
