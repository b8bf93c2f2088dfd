"""Dropout whose survivors have unit scale: multiplied by `(1 - p)**-0.5`, not `(1 - p)**-1`.

The factor `sqrt(1 - p)` over torch's function stays in evaluation. There the output is
`sqrt(1 - p) * x`, the mean over what training showed the next layer, and below unit scale.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from unitscale.functional.arguments import check_floating
from unitscale.scaling import scaled
from unitscale.scaling.factors import dropout_factors


def drop(
    op: str, function: Callable[..., Tensor], input: Tensor, p: float, training: bool
) -> Tensor:
    """`sqrt(1 - p)` times torch's dropout, in both passes."""
    check_floating(op, input=input)
    factors = dropout_factors(p)
    return scaled(function(input, p, training), factors.output_scale, factors.grad_input_scale)


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`sqrt(1 - p) * F.dropout(x)`, and `sqrt(1 - p) * x` in evaluation."""
    return drop("dropout", F.dropout, input, p, training)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of whole channels of [N, C, L]."""
    return drop("dropout1d", F.dropout1d, input, p, training)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of whole channels of [N, C, H, W]."""
    return drop("dropout2d", F.dropout2d, input, p, training)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of whole channels of [N, C, D, H, W]."""
    return drop("dropout3d", F.dropout3d, input, p, training)
