"""Which tensors lie in the middle of a format: the share with an RMS in [1/2, 2]."""

from collections.abc import Iterable

from unitscale.units.row import UnitRow

LOW, HIGH = 0.5, 2.0
OUTSIDE = ("parameter", "input")
"""The ops of rows that no op of the model computed."""


def share_in_range(values: Iterable[float | None]) -> float | None:
    """Share of the RMS values in [1/2, 2]; None and exact zeros have no scale and do not count."""
    scales = [value for value in values if value is not None and value != 0]
    return sum(LOW <= value <= HIGH for value in scales) / len(scales) if scales else None


def held(row: UnitRow) -> float | None:
    """RMS of a tensor as it is held."""
    return None if row.rms is None else row.rms / row.s


def held_grad(row: UnitRow) -> float | None:
    """RMS of a tensor's gradient as it is carried."""
    return None if row.grad_rms is None else row.grad_rms * row.phi
