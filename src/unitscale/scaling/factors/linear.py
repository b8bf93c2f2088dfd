"""Factors of multilinear operations: linear layers, matrix products, convolutions, embeddings.

One rule gives them all: an entry that is a sum of `n` independent unit terms has scale `sqrt(n)`.
For the output n is the number of products summed into it; for the gradient of an operand it is the
number of output entries that the operand's entry reaches.

Source: the rule is derived from independence. Blake et al. 2023 use it for linear and convolution;
the `1 / fan_in` read-out is the one of muP (Yang et al. 2021) and u-muP (Blake et al. 2024).
"""

from unitscale.scaling.factors.result import (
    BilinearFactors,
    EmbeddingFactors,
    LinearFactors,
    MatmulFactors,
    count_scale,
)

__all__ = [
    "bilinear_factors",
    "conv_factors",
    "conv_transpose_factors",
    "embedding_factors",
    "in_bounds_fraction",
    "linear_factors",
    "linear_readout_factors",
    "matmul_factors",
    "parameter_grad_scale",
]


def parameter_grad_scale(rows: float) -> float:
    """Gradient factor of a bias, gain or weight entry that `rows` rows contribute to: `rows**-0.5`.

    The gradients of the rows are taken as independent; where they agree, the sum grows like `rows`.
    Count the rows of the whole step: accumulation and data parallelism multiply them.
    """
    return count_scale(rows)


def linear_factors(fan_in: int, fan_out: int, rows: int) -> LinearFactors:
    """`input[rows, fan_in] @ weight[fan_out, fan_in].T + bias[fan_out]`.

    Guarantees output `fan_in**-0.5`, input `fan_out**-0.5`, weight and bias `rows**-0.5`.
    """
    return LinearFactors(
        output_scale=count_scale(fan_in),
        grad_input_scale=count_scale(fan_out),
        grad_weight_scale=count_scale(rows),
        grad_bias_scale=count_scale(rows),
    )


def linear_readout_factors(fan_in: int, fan_out: int, rows: int) -> LinearFactors:
    """The last linear layer under muP: output `1 / fan_in`, backward as `linear_factors`.

    The output has scale `fan_in**-0.5` at initialization by design: it must not grow with width.
    Forward and backward factors differ, so it belongs after the last residual add only.
    """
    return LinearFactors(
        output_scale=1 / max(fan_in, 1),
        grad_input_scale=count_scale(fan_out),
        grad_weight_scale=count_scale(rows),
        grad_bias_scale=count_scale(rows),
    )


def matmul_factors(left_size: int, inner_size: int, right_size: int) -> MatmulFactors:
    """`left[left_size, inner_size] @ right[inner_size, right_size]`, batched or not."""
    return MatmulFactors(
        output_scale=count_scale(inner_size),
        grad_left_scale=count_scale(right_size),
        grad_right_scale=count_scale(left_size),
    )


def bilinear_factors(
    left_features: int, right_features: int, out_features: int, rows: int
) -> BilinearFactors:
    """`output[r, o] = sum_ij left[r, i] * weight[o, i, j] * right[r, j] + bias[o]`."""
    return BilinearFactors(
        output_scale=count_scale(left_features * right_features),
        grad_left_scale=count_scale(right_features * out_features),
        grad_right_scale=count_scale(left_features * out_features),
        grad_weight_scale=count_scale(rows),
        grad_bias_scale=count_scale(rows),
    )


def conv_factors(
    in_channels: int,
    out_channels: int,
    kernel_numel: int,
    *,
    rows: int,
    stride_numel: float = 1,
    groups: int = 1,
    in_bounds: float = 1.0,
) -> LinearFactors:
    """Convolution in any number of dimensions.

    Output `(in_channels / groups * kernel_numel)**-0.5`; input
    `(stride_numel * groups / (out_channels * kernel_numel))**0.5`; weight and bias `rows**-0.5`.

    Args:
        in_channels: of the whole layer, all groups.
        out_channels: likewise.
        kernel_numel: product of the kernel's sizes; dilation does not matter.
        rows: batch size times the number of output positions.
        stride_numel: product of the strides; or the number of input positions per output position,
            which also accounts for a border that fewer windows reach.
        groups: number of groups.
        in_bounds: share of kernel taps that fall on the input rather than on zero padding, the
            product of `in_bounds_fraction` over dimensions. 1 ignores padding, as the paper does:
            a 3x3 kernel with padding 1 then has output scale .975 on 32x32 and .91 on 8x8.
    """
    taps = kernel_numel * in_bounds
    return LinearFactors(
        output_scale=count_scale(in_channels / groups * taps),
        grad_input_scale=(stride_numel * groups / (out_channels * taps)) ** 0.5,
        grad_weight_scale=count_scale(rows * in_bounds),
        grad_bias_scale=count_scale(rows),
    )


def conv_transpose_factors(
    in_channels: int,
    out_channels: int,
    kernel_numel: int,
    *,
    input_rows: int,
    output_rows: int,
    stride_numel: float = 1,
    groups: int = 1,
) -> LinearFactors:
    """Transposed convolution, the gradient of a convolution with the channels swapped.

    Args:
        in_channels: of the whole layer, all groups.
        out_channels: likewise.
        kernel_numel: product of the kernel's sizes.
        input_rows: batch size times input positions, the terms of each weight's gradient.
        output_rows: batch size times output positions, the terms of each bias's gradient.
        stride_numel: product of the strides; or the number of output positions per input position,
            which also accounts for a border that fewer inputs reach.
        groups: number of groups.
    """
    return LinearFactors(
        output_scale=(stride_numel * groups / (in_channels * kernel_numel)) ** 0.5,
        grad_input_scale=count_scale(out_channels / groups * kernel_numel),
        grad_weight_scale=count_scale(input_rows),
        grad_bias_scale=count_scale(output_rows),
    )


def in_bounds_fraction(
    size: int, kernel_size: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> float:
    """Share of a kernel's taps that fall on the input, over all output positions of a dimension.

    Raises:
        ValueError: the kernel does not fit, so that there is no output.
    """
    span = size + 2 * padding - dilation * (kernel_size - 1) - 1
    if span < 0:
        raise ValueError(
            f"kernel_size {kernel_size} with dilation {dilation} does not fit an input of {size} "
            f"padded by {padding} on both sides."
        )
    starts = range(-padding, span + 1 - padding, stride)
    taps = [start + dilation * tap for start in starts for tap in range(kernel_size)]
    return sum(0 <= tap < size for tap in taps) / len(taps)


def embedding_factors(num_lookups: int, num_embeddings: int) -> EmbeddingFactors:
    """A lookup copies, so the output is unit; weight `(num_embeddings / num_lookups)**0.5`.

    Pooled over the table: a row that is looked up often has a larger gradient, one that is not
    looked up has none.
    """
    return EmbeddingFactors(
        output_scale=1.0, grad_weight_scale=(num_embeddings / max(num_lookups, 1)) ** 0.5
    )
