"""Rows that say which unit each tensor has, and why some have none."""

from dataclasses import dataclass

from unitscale.units.assign import Unit
from unitscale.units.products import Multiplied
from unitscale.units.reading import Reading


@dataclass(frozen=True)
class UnitRow:
    """The unit of one tensor, and what the last measuring step saw of it.

    Args:
        name: module path, op and occurrence; a parameter's qualified name.
        op: name of the op, "parameter" or "input".
        s: the tensor is held as t / s. A parameter, or an input, has its true value outside of the
            products that take it; its s is the one that these take it at.
        phi: its gradient is carried as phi * g.
        rms, grad_rms: measured on the true values; None if not measured, or no gradient.
        reason: why it stayed at (1, 1), wholly or in one half; None if it has a unit.
        amax, grad_amax: largest absolute values.
        saturated, flushed, grad_saturated, grad_flushed: share of elements that the recipe's format
            lost at the unit in force; None for a tensor that no product rounds, and of a recipe
            that computes a scale from each tensor.
        product: what multiplies its operands, if it is the result of a product.
    """

    name: str
    op: str
    s: float
    phi: float
    rms: float | None
    grad_rms: float | None
    reason: str | None
    amax: float | None = None
    grad_amax: float | None = None
    saturated: float | None = None
    flushed: float | None = None
    grad_saturated: float | None = None
    grad_flushed: float | None = None
    product: Multiplied | None = None

    @classmethod
    def of(
        cls,
        name: str,
        op: str,
        unit: Unit,
        reading: Reading,
        why: str | None,
        product: Multiplied | None = None,
    ) -> "UnitRow":
        """A row from a unit and a reading."""
        return cls(
            name,
            op,
            2.0**unit.s,
            2.0**unit.phi,
            reading.rms,
            reading.grad_rms,
            why,
            reading.amax,
            reading.grad_amax,
            reading.saturated,
            reading.flushed,
            reading.grad_saturated,
            reading.grad_flushed,
            product,
        )
