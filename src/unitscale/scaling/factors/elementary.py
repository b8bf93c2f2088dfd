"""Factors of adding, multiplying, reducing, copying and pooling.

Source: derived from independence of inputs and output gradients; the reasons are one line each.
"""

from collections.abc import Sequence

from unitscale.scaling.factors.result import Factors, MatmulFactors, count_scale
from unitscale.scaling.maximum import maximum_std

__all__ = [
    "add_factors",
    "avg_pool_factors",
    "cumsum_factors",
    "dropout_factors",
    "fixed_sum_factors",
    "max_pool_factors",
    "mean_factors",
    "mul_factors",
    "reuse_factors",
    "slice_factors",
    "sum_factors",
    "upsample_factors",
    "weighted_sum_weights",
]


def add_factors(*, left_copies: float = 1, right_copies: float = 1) -> MatmulFactors:
    """`left + right` of two varying tensors: output `2**-0.5`.

    Args:
        left_copies: how often broadcasting repeats the left operand; its gradient sums over them.
        right_copies: likewise.
    """
    return MatmulFactors(
        output_scale=count_scale(2),
        grad_left_scale=count_scale(left_copies),
        grad_right_scale=count_scale(right_copies),
    )


def mul_factors(*, left_copies: float = 1, right_copies: float = 1) -> MatmulFactors:
    """`left * right` of two independent tensors; copies as in `add_factors`."""
    return MatmulFactors(
        output_scale=1.0,
        grad_left_scale=count_scale(left_copies),
        grad_right_scale=count_scale(right_copies),
    )


def weighted_sum_weights(*weights: float) -> tuple[float, ...]:
    """`weights` scaled so that their squares sum to 1; each is a forward and a backward factor.

    The sum of unit inputs with these weights is unit, and each input then gets a gradient of its
    weight's size: relative weights stay right, which any other choice would break.

    Raises:
        ValueError: no weights, or all 0.
    """
    norm = sum(weight**2 for weight in weights) ** 0.5
    if norm == 0:
        raise ValueError(f"weighted_sum_weights: weights are {weights}, expected one other than 0.")
    return tuple(weight / norm for weight in weights)


def fixed_sum_factors(weights: Sequence[float]) -> Factors:
    """Sum over entries times fixed weights: output `1 / norm`, gradient `1 / rms` of the weights.

    Raises:
        ValueError: no weights, or all 0.
    """
    square_sum = sum(weight**2 for weight in weights)
    if square_sum == 0:
        raise ValueError(f"fixed_sum_factors: weights are {weights}, expected one other than 0.")
    return Factors(
        output_scale=square_sum**-0.5, grad_input_scale=(len(weights) / square_sum) ** 0.5
    )


def sum_factors(size: int) -> Factors:
    """Sum over `size` entries; each gets the output's gradient as it is."""
    return Factors(output_scale=count_scale(size), grad_input_scale=1.0)


def mean_factors(size: int) -> Factors:
    """Mean over `size` entries: `size**0.5` and `size`."""
    return Factors(output_scale=size**0.5, grad_input_scale=float(size))


def cumsum_factors(size: int) -> Factors:
    """Running sum over `size` entries, pooled over positions; entry i alone has scale `i**0.5`."""
    pooled = count_scale((size + 1) / 2)
    return Factors(output_scale=pooled, grad_input_scale=pooled)


def dropout_factors(p: float) -> Factors:
    """Dropout with torch's `1 / (1 - p)`: both `(1 - p)**0.5`, in evaluation mode too.

    Without dropout the input is unit and the product with `(1 - p)**0.5` is smaller than 1; it must
    stay, since it is the mean of what training computes.

    Raises:
        ValueError: p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, expected a probability between 0 and 1.")
    return Factors(output_scale=(1 - p) ** 0.5, grad_input_scale=(1 - p) ** 0.5)


def slice_factors(fraction: float) -> Factors:
    """Keep a share of the entries: the gradient, pooled over all of them, has zeros elsewhere."""
    return Factors(output_scale=1.0, grad_input_scale=fraction**-0.5)


def reuse_factors(times: int) -> Factors:
    """One tensor with `times` independent consumers, whose gradients add."""
    return Factors(output_scale=1.0, grad_input_scale=count_scale(times))


def upsample_factors(factor: float) -> Factors:
    """Nearest-neighbour upsampling that repeats each entry `factor` times in total."""
    return Factors(output_scale=1.0, grad_input_scale=count_scale(factor))


def avg_pool_factors(kernel_numel: int, stride_numel: float) -> Factors:
    """Average pooling: an input entry receives `1 / kernel` from `kernel / stride` windows.

    Args:
        kernel_numel: product of the kernel's sizes.
        stride_numel: product of the strides, or input positions per output position.
    """
    return Factors(
        output_scale=kernel_numel**0.5,
        grad_input_scale=kernel_numel / (kernel_numel / stride_numel) ** 0.5,
    )


def max_pool_factors(kernel_numel: int, stride_numel: float) -> Factors:
    """Max pooling: the output keeps a mean, as that of a one-sided activation does.

    Each window sends its gradient to one entry, so one input entry in `stride_numel` has one;
    that overlapping windows may choose the same entry is left out. Arguments as for
    `avg_pool_factors`.
    """
    return Factors(output_scale=1 / maximum_std(kernel_numel), grad_input_scale=stride_numel**0.5)
