"""The maximum of several independent standard normal numbers."""

import math
import operator

import numpy as np

from unitscale.scaling.constant import evaluated_once
from unitscale.scaling.quadrature import nodes

__all__ = ["maximum_mean", "maximum_std"]


def maximum_mean(count: int) -> float:
    """Its mean: .564 for two."""
    return maximum_moments(operator.index(count))[0]


def maximum_std(count: int) -> float:
    """Its standard deviation: .826 for two."""
    return maximum_moments(operator.index(count))[1]


@evaluated_once
def maximum_moments(count: int) -> tuple[float, float]:
    """Mean and standard deviation under the density `count * Phi**(count - 1) * phi`.

    Raises:
        ValueError: count is not positive.
    """
    if count < 1:
        raise ValueError(f"the maximum of {count} numbers does not exist, expected 1 or more.")
    points, weights = nodes()
    below = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in points])
    density = weights * count * below ** (count - 1)
    mean = float((density * points).sum())
    return mean, math.sqrt(float((density * (points - mean) ** 2).sum()))
