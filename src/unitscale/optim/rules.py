"""The u-muP learning-rate rules: kind, width and depth of a parameter to one factor.

Every parameter starts at unit variance and its gradient is of unit size, so the learning rate is
what is left of muP's per-width corrections. Source: u-muP (Blake et al. 2024), table 2; for the
factor of an input table, where muP has 1, the authors give an empirical reason only. Their models
have no biases and gains: for those, muP's rate does not depend on the width, and its size is ours.
"""

from typing import Literal

from unitscale.scaling.kind import KINDS, Kind

__all__ = ["KINDS", "MATRIX_KINDS", "Kind", "OptimizerName", "ReadoutConstraint", "lr_factor"]

OptimizerName = Literal["adam", "adamw", "sgd"]
ReadoutConstraint = Literal["to_output_scale"]

MATRIX_KINDS: tuple[Kind, ...] = ("hidden", "input", "output")

BIAS_AND_GAIN = 2.0**-7
"""At a higher rate gains leave unit scale, and E5M2 gradients get costly: docs/results.md."""


def lr_factor(
    kind: Kind,
    width: int,
    depth: int = 1,
    *,
    optimizer: OptimizerName = "adamw",
    readout_constraint: ReadoutConstraint | None = None,
) -> float:
    """What to multiply the base learning rate by.

    | kind | width is | Adam, AdamW; SGD | SGD, read-out constrained to_output_scale |
    |---|---|---|---|
    | hidden | fan_in | width^-1/2 | width^1/2 |
    | input | fan_out | width^-1/2 | width^1/2 |
    | output | fan_in | 1 | 1 |
    | bias, norm | size | 2^-7 | 2^-7 width |

    and every factor is divided by sqrt(depth), the number L of residual branches of the stream that
    the parameter's branch adds to. L branches of size 1/sqrt(L) each, changed by eta/sqrt(L) each,
    change the sum `sum_i f_i / sqrt(L)` by `L * eta / L = eta` at most, whatever L is. u-muP's own
    code counts layers of two branches each: its rates are sqrt(2) times these for one base rate.
    The last column undoes the 1/width that such a read-out leaves on every gradient before it;
    Adam, which divides gradients by their own size, never sees it.
    """
    by_depth = depth**-0.5
    undo_readout = width if optimizer == "sgd" and readout_constraint is not None else 1
    match kind:
        case "hidden" | "input":
            return by_depth * width**-0.5 * undo_readout
        case "bias" | "norm":
            return by_depth * BIAS_AND_GAIN * undo_readout
        case "output":
            return by_depth
