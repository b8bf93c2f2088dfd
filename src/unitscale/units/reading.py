"""What a measuring step saw of each tensor, as numbers; of several processes, as one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from unitscale.units.assign import MAX_EXPONENT

__all__ = ["Reading", "first_nan", "is_nan", "larger", "merged"]

SATURATED_WORTH_A_WARNING = 0.01
FLUSHED_WORTH_A_WARNING = 0.25
"""Shares of a tensor's elements that a run must not lose in silence; small ones matter less."""


@dataclass
class Reading:
    """What one measuring step saw of a tensor, on the true values.

    RMS and largest finite magnitude of the value (without infinities and fill values, such as a
    mask's `finfo.min`) and of its gradient (None: no gradient came). The shares are of the
    elements that the recipe's format loses at the unit in force during the step: `saturated`
    above its maximum, `flushed` below its smallest value; None for a tensor that no product
    rounds. `ceiling` and `grad_ceiling` are half the largest value of that format: the largest
    magnitude that the tensor, and its gradient, may be held at. None: any. `limit` is that of the
    exponents of a unit in the tensor's dtype, see `assign.limit_for`.
    """

    rms: float | None = None
    amax: float | None = None
    grad_rms: float | None = None
    grad_amax: float | None = None
    saturated: float | None = None
    flushed: float | None = None
    grad_saturated: float | None = None
    grad_flushed: float | None = None
    ceiling: float | None = None
    grad_ceiling: float | None = None
    limit: int = MAX_EXPONENT

    @property
    def losses(self) -> dict[str, str]:
        """What is lost of the value, and of the gradient, in words; neither if it is little."""
        shares = {
            "value (forward pass)": (self.saturated or 0.0, self.flushed or 0.0),
            "gradient (backward pass)": (self.grad_saturated or 0.0, self.grad_flushed or 0.0),
        }
        return {
            half: f"{saturated:.1%} saturated and {flushed:.1%} went to zero"
            for half, (saturated, flushed) in shares.items()
            if saturated > SATURATED_WORTH_A_WARNING or flushed > FLUSHED_WORTH_A_WARNING
        }


def larger(x: float | None, y: float | None) -> float | None:
    """The larger of two numbers; NaN if one is NaN, and the other where one is None."""
    if x is None or y is None:
        return y if x is None else x
    return y if math.isnan(y) or y > x else x


def is_nan(number: float | None) -> bool:
    """Whether a measured number is NaN."""
    return number is not None and math.isnan(number)


def first_nan(readings: dict[str, Reading]) -> str | None:
    """Where a NaN came up: the first value that holds one, or the last gradient, or None."""
    values = [
        f"the value of {name!r}" for name, reading in readings.items() if is_nan(reading.amax)
    ]
    gradients = [f"the gradient of {name!r}" for name, r in readings.items() if is_nan(r.grad_amax)]
    return next(iter(values + gradients[::-1]), None)


def merged(found: Sequence[dict[str, dict[str, float | None]]]) -> dict[str, Reading]:
    """The readings of several processes, by name and field, as one.

    An RMS is that of all shares together, which are of one size; of other numbers the largest.
    Processes may have measured different tensors, in graphs of their own.
    """
    names = dict.fromkeys(name for readings in found for name in readings)
    return {name: merge([r[name] for r in found if name in r]) for name in names}


def merge(readings: Sequence[dict[str, float | None]]) -> Reading:
    """One reading of the shares of a tensor."""
    result: dict[str, Any] = {}
    for field in (entry.name for entry in fields(Reading)):
        values = [value for r in readings if (value := r[field]) is not None]
        if field.endswith("rms"):
            result[field] = math.hypot(*values) / math.sqrt(len(values)) if values else None
        elif field == "limit":
            result[field] = min(values)
        else:
            result[field] = max(values, default=None)
    return Reading(**result)


def readings_of(numbers: Any) -> dict[str, Reading]:
    """Readings from what `as_numbers` made of them.

    Raises:
        ValueError: it is nothing of the kind.
    """
    known = {field.name for field in fields(Reading)}
    fits = isinstance(numbers, Mapping) and all(
        isinstance(reading, Mapping)
        and reading.keys() == known
        and all(x is None or isinstance(x, int | float) for x in reading.values())
        for reading in numbers.values()
    )
    if not fits:
        raise ValueError(
            f"units: 'unshared' is {str(numbers)[:60]}; expected an object with what was read of "
            "each tensor"
        )
    return {name: Reading(**reading) for name, reading in numbers.items()}


def as_numbers(readings: dict[str, Reading]) -> dict[str, dict[str, float | None]]:
    """Readings in a form that another process reads."""
    return {name: asdict(reading) for name, reading in readings.items()}
