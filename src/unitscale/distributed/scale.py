"""Where the scale of a gradient on the wire comes from: data, one frozen choice for a whole model.

All ranks cast a parameter's gradient at the same scale, so that payloads can be added as they are.
A scale recovers, as everywhere here: `gradient ~ payload * scale`.
"""

import math
from dataclasses import dataclass

from unitscale.recipes.operand import LARGEST_MARGIN, check_count
from unitscale.units.schedule import Remeasure, check_schedule

__all__ = ["AutomaticScale", "CurrentScale", "GradientScale", "RootScale", "UnitScale"]


@dataclass(frozen=True, kw_only=True)
class UnitScale:
    """A power of two for each parameter, constant between measurements: no scales are exchanged.

    It puts the RMS of the mean gradient at `2**target_log2`, and leaves the largest element of any
    rank at least one binade. At 2 (4 in E4M3FN, whose largest value is 448) there are 6.8 binades
    above the RMS and 11 below it.

    An exchange that measures costs one amax and one whole number for each parameter on the wire. It
    is cast at the scale of `CurrentScale`. A parameter is measured out of turn in three cases: its
    mean gradient was zero or not finite in every measurement so far, some rank's payload saturated
    in the exchange before, or some rank asked with `GradientWire.remeasure`.

    Args:
        target_log2: where the RMS is put, -24 to 15.
        remeasure: a schedule of `us.unit_scale`, or exchanges counted from 0. "never" takes the
            gradients to be of RMS 1, as those of a model from `unitscale.nn`, and measures none,
            whatever saturates.
    Raises:
        ValueError: another target or schedule.
    """

    target_log2: int = 2
    remeasure: Remeasure = "geometric"

    def __post_init__(self) -> None:
        if type(self.target_log2) is not int or not -24 <= self.target_log2 <= 15:
            raise ValueError(
                f"UnitScale: target_log2 is {self.target_log2!r}; expected an int from -24 to 15"
            )
        check_schedule(self.remeasure)

    def __str__(self) -> str:
        steps = self.remeasure if isinstance(self.remeasure, str) else sorted(set(self.remeasure))
        return f"UnitScale(target_log2={self.target_log2}, remeasure={steps!r})"


@dataclass(frozen=True, kw_only=True)
class CurrentScale:
    """The smallest power of two at which no element of any rank saturates, times `2**margin`.

    Costs a pass over the gradient, and one MAX of 4 bytes for each parameter in every exchange.

    Raises:
        ValueError: a margin that is negative or above 64.
    """

    margin: int = 0

    def __post_init__(self) -> None:
        check_count("CurrentScale", "margin", self.margin, 0, LARGEST_MARGIN)


@dataclass(frozen=True, kw_only=True)
class AutomaticScale:
    """FP8-LM's automatic scaling: the payload is `mu * gradient / base`, and mu follows saturation.

    `base` is the scale of `CurrentScale` in a parameter's first exchange. In later ones no scale is
    exchanged: where more than `share` of the payload, over all ranks, has the largest magnitude of
    the format, the parameter's mu is halved; else it grows by `2**(1 / doubling)`.

    Raises:
        ValueError: a share outside of [0, 1), or a doubling below 1.
    Source: arXiv 2310.18313, equation 3. One mu for each parameter is our reading.
    """

    share: float = 1e-5
    doubling: int = 1000

    def __post_init__(self) -> None:
        is_number = isinstance(self.share, float | int) and not isinstance(self.share, bool)
        if not (is_number and math.isfinite(self.share) and 0 <= self.share < 1):
            raise ValueError(
                f"AutomaticScale: share is {self.share!r}; expected a share of the elements, from "
                "0 to below 1"
            )
        check_count("AutomaticScale", "doubling", self.doubling, 1)


@dataclass(frozen=True, kw_only=True)
class RootScale:
    """The scale of `CurrentScale` times the root of the number of ranks, as MS-AMP releases it.

    There sums are taken in 8 bits, which this leaves room for. Here they are not: for comparison.

    Source: MS-AMP 0.4.0, `FP8DistributedDataParallel`.
    """


GradientScale = UnitScale | CurrentScale | AutomaticScale | RootScale
