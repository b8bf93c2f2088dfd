"""Factors of layer, RMS, batch, group and instance normalization."""

from unitscale.scaling.factors.result import NormFactors, count_scale

__all__ = ["norm_factors"]


def norm_factors(rows: int) -> NormFactors:
    """A normalization makes its output unit by itself; gain and bias `rows**-0.5`.

    The gradient of the input is that of the output divided by the scale of the input, so it is unit
    for a unit input only. Batch normalization in evaluation mode is affine: both factors 1 too.

    Args:
        rows: number of entries that one gain entry multiplies: all entries divided by those of the
            normalized shape, or batch size times positions for batch and group normalization.
    Source: derived from independence of the rows.
    """
    return NormFactors(
        output_scale=1.0,
        grad_input_scale=1.0,
        grad_weight_scale=count_scale(rows),
        grad_bias_scale=count_scale(rows),
    )
