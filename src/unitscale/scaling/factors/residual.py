"""Weights of residual adds.

A residual layer is `y = skip * x + branch * f(x)` with `skip**2 + branch**2 == 1`. The gradient
inside the branch is to be unit, so its factor is applied late: `branch` multiplies the value where
the branch joins the stream, and the gradient only where it left it. `skip` multiplies both on its
side. Along the branch the factors cancel, so every gradient stays true up to one constant.
"""

import math

from unitscale.scaling.factors.result import Residual

__all__ = [
    "fixed_residual",
    "ratio_from_fixed",
    "ratio_residual",
    "running_mean_residual",
    "umup_residual",
]


def fixed_residual(tau: float) -> Residual:
    """The branch has share `tau` of the variance: `sqrt(1 - tau)`, `sqrt(tau)`.

    Raises:
        ValueError: tau is not in [0, 1].
    Source: Blake et al. 2023, fixed(tau).
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"fixed residual: tau is {tau}, expected a share between 0 and 1.")
    return Residual(skip=(1 - tau) ** 0.5, branch=tau**0.5)


def running_mean_residual(index: int) -> Residual:
    """Branch number `index`, from 1: the input and all branches so far have equal shares.

    Raises:
        ValueError: index is below 1; 0 would drop the input of the stack.
    Source: Blake et al. 2023, running-mean.
    """
    if index < 1:
        raise ValueError(
            f"running-mean residual: index is {index}, expected 1 for the first branch."
        )
    return Residual(skip=(index / (index + 1)) ** 0.5, branch=(1 / (index + 1)) ** 0.5)


def ratio_residual(tau: float) -> Residual:
    """The branch has `tau` times the scale of the skip: `1 / sqrt(1 + tau**2)` and tau times that.

    Raises:
        ValueError: tau is negative.
    Source: Blake et al. 2024, u-muP; `unit_scaling.functional.residual_add` since 0.3.
    """
    if tau < 0:
        raise ValueError(f"ratio residual: tau is {tau}, expected 0 or more.")
    skip = (1 + tau**2) ** -0.5
    return Residual(skip=skip, branch=tau * skip)


def ratio_from_fixed(tau: float) -> float:
    """The tau of `ratio_residual` that equals `fixed_residual(tau)`: `sqrt(tau / (1 - tau))`."""
    if not 0 <= tau < 1:
        raise ValueError(f"fixed residual: tau is {tau}, expected a share from 0 to below 1.")
    return math.sqrt(tau / (1 - tau))


def umup_residual(
    index: int, num_branches: int, *, alpha_res: float = 1.0, alpha_res_attn_ratio: float = 1.0
) -> Residual:
    """Branch `index`, from 0, of a transformer: attention at even indices, MLP at odd ones.

    Guarantees over the whole stack: all attention branches have equal shares of the variance, all
    MLP branches too; attention has `alpha_res_attn_ratio` times the scale of MLP, and their root
    mean square is `alpha_res` times the scale of the embedding.

    Args:
        index: 0 to num_branches - 1.
        num_branches: even, twice the number of transformer layers.
        alpha_res: positive.
        alpha_res_attn_ratio: positive.
    Raises:
        ValueError: index or num_branches out of range.
    Source: Blake et al. 2024, u-muP, residual scheme.
    """
    if num_branches < 2 or num_branches % 2:
        raise ValueError(
            f"u-muP residual: num_branches is {num_branches}, expected an even number."
        )
    if not 0 <= index < num_branches:
        raise ValueError(f"u-muP residual: index is {index}, expected 0 to {num_branches - 1}.")
    mlp = alpha_res * (2 / (1 + alpha_res_attn_ratio**2)) ** 0.5
    attention = alpha_res_attn_ratio * mlp
    before = (index + 1) // 2 * attention**2 + index // 2 * mlp**2
    this = mlp if index % 2 else attention
    return ratio_residual(this / (num_branches / 2 + before) ** 0.5)
