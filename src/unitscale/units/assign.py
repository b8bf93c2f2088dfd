"""From measured RMS to units, in plain Python: the theory of the design page in one file.

A unit is a pair of powers of two (s, phi), kept as base-2 exponents. A tensor t is held as t / s
and its gradient as phi * g, so that both have RMS between 2**-0.5 and 2**0.5.

Every factor that the rewritten graph needs is a product of powers of units, a `Monomial`. For an op
y = f(x_1 .. x_n) that sees x_i times c_i and whose output is multiplied by o / s(y),

    backward factor of the edge x_i -> y  =  phi(x_i) / phi(y) * o * c_i / s(x_i)

which makes the gradient that accumulates at x_i equal phi(x_i) * g(x_i), whatever the units are.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

MAX_EXPONENT = 40
"""Units stay within 2**+-40, so that a product of three of them is inside float32's range."""


def limit_for(least_normal: int) -> int:
    """The largest exponent of a unit for tensors whose smallest normal number is 2**least_normal.

    A unit is itself a normal number of the dtype, and so is one over it: 14 for float16 (-14), and
    `MAX_EXPONENT` for bfloat16 and float32 (-126).
    """
    return min(MAX_EXPONENT, -least_normal)


ZERO_RMS = 2.0**-100
"""Below this an RMS is that of a tensor (or gradient) that is zero but for rounding: no unit."""

ROUNDING = 2.0**-24
"""Half of float32's epsilon: a parameter's gradient so much smaller than the largest parameter's
is no more than the rounding error of a sum that should be zero."""

FILL = 2.0**64
"""From this magnitude on a value is a fill value, such as a mask's `finfo.min`."""


@dataclass(frozen=True)
class Unit:
    """log2 of the pair (s, phi) of one tensor."""

    s: int = 0
    phi: int = 0


ONE = Unit()


def exponent(rms: float | None, limit: int = MAX_EXPONENT) -> int:
    """round(log2 rms), clamped to +-limit; 0 where the RMS gives no scale.

    None, zero, NaN and infinity give no scale: 0, so the tensor is held as it is.
    """
    if rms is None or not ZERO_RMS <= rms < math.inf:  # false for NaN too
        return 0
    return max(-limit, min(limit, round(math.log2(rms))))


def assign(
    rms: float | None,
    grad_rms: float | None,
    amax: float | None = None,
    *,
    limit: int = MAX_EXPONENT,
    grad_amax: float | None = None,
    ceiling: float | None = None,
    grad_ceiling: float | None = None,
) -> Unit:
    """The unit of a tensor: s = 2**round(log2 rms), phi = 2**-round(log2 grad_rms).

    Both stay within 2**+-limit, see `limit_for`.

    None (never measured, or no gradient) leaves that half at 1. A tensor with fill values (`amax`)
    gets no s below 1, which would make infinities of them. With a ceiling, s is at least so
    large that `amax / s <= ceiling`, and phi so small that `grad_amax * phi <= grad_ceiling`: an
    outlier then has room to grow. For a float format that costs nothing: the binades lost at the
    low end are those that the format has to spare.
    """
    s, phi = exponent(rms, limit), -exponent(grad_rms, limit)
    if amax is not None and amax >= FILL:
        s = max(s, 0)
    elif is_scale(amax) and ceiling is not None:
        s = min(max(s, math.ceil(math.log2(amax / ceiling))), limit)
    if is_scale(grad_amax) and grad_amax < FILL and grad_ceiling is not None:
        phi = max(min(phi, math.floor(math.log2(grad_ceiling / grad_amax))), -limit)
    return Unit(s, phi)


def is_scale(magnitude: float | None) -> TypeGuard[float]:
    """Whether a magnitude was measured and is neither zero, NaN nor infinite."""
    return magnitude is not None and ZERO_RMS <= magnitude < math.inf


def gives_scale(rms: float | None, amax: float | None = None) -> bool:
    """Whether an RMS, or the fill values of a tensor, say what its unit should be."""
    return is_scale(rms) or (amax is not None and amax >= FILL)


def is_rounding_error(grad_rms: float | None, largest: float) -> bool:
    """Whether a parameter's gradient is zero but for rounding: a key bias under softmax has one.

    `largest` is the largest RMS among the gradients of all parameters.
    """
    return grad_rms is not None and grad_rms < ROUNDING * largest


def reason(
    rms: float | None,
    grad_rms: float | None,
    amax: float | None = None,
    *,
    limit: int = MAX_EXPONENT,
) -> str | None:
    """Why a tensor with these measurements is not held at RMS 1; None if it is."""
    for name, value in (("value", rms), ("gradient", grad_rms)):
        if value is not None and not math.isfinite(value):
            return f"{name} is not finite"
        if value is not None and value < ZERO_RMS:
            return f"{name} is zero"
        if value is not None and abs(round(math.log2(value))) > limit:
            return f"{name} of {value:.1e} is beyond the range of units"
    if amax is not None and amax >= FILL and exponent(rms) < 0:
        return f"holds fill values of {amax:.1e}"
    return None


Symbol = tuple[str, str]
"""("s" or "phi", tensor)."""


@dataclass(frozen=True)
class Monomial:
    """A product of powers of units, e.g. s(x) s(w) / s(y); the empty product is exactly 1."""

    powers: Mapping[Symbol, int] = field(default_factory=dict)

    def __mul__(self, other: "Monomial") -> "Monomial":
        powers = dict(self.powers)
        for symbol, power in other.powers.items():
            powers[symbol] = powers.get(symbol, 0) + power
        return Monomial({symbol: power for symbol, power in powers.items() if power})

    def __truediv__(self, other: "Monomial") -> "Monomial":
        return self * Monomial({symbol: -power for symbol, power in other.powers.items()})

    def __hash__(self) -> int:
        return hash(frozenset(self.powers.items()))

    @property
    def is_one(self) -> bool:
        """Whether the factor is 1 for every assignment of units."""
        return not self.powers

    def log2(self, units: Mapping[str, Unit]) -> int:
        """The exponent of this factor under an assignment; tensors without a unit count as 1."""
        return sum(
            power * getattr(units.get(tensor, ONE), half)
            for (half, tensor), power in self.powers.items()
        )


def product(monomials: Iterable[Monomial]) -> Monomial:
    """The product of some factors."""
    result = Monomial()
    for monomial in monomials:
        result = result * monomial
    return result
