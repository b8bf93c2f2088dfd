"""One operand of a product as a recipe would round it: its values, and what they have lost.

The very functions that run a recipe round here too. An operand at a unit is divided by it first:

    x with an RMS of 1/8 and an amax of 4, E4M3FN at its unit: s = 2**-3, x / s has the RMS 1 and
    the amax 32 <= 448 / 2, so it is x / s that is rounded, and the values are `rounded * 2**-3`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unitscale.formats import BlockFormat, FloatFormat
from unitscale.gemm.hadamard import turned
from unitscale.gemm.operand import Given, Use, encode, take, wide
from unitscale.numerics.digest import look
from unitscale.numerics.rounding_error import lost_by
from unitscale.recipes import Delayed, Operand, Unit
from unitscale.units.assign import assign
from unitscale.units.program import ceiling

__all__ = ["Rounded", "Subject", "subject_of"]


class Rounded(NamedTuple):
    """An operand as a product takes it.

    Args:
        values: over `2**log2`, in the axes of the tensor.
        lost: the four numbers of `numerics.lost_by`; None of one that is taken as it is.
        log2: the exponent of its unit.
    """

    values: Tensor
    lost: Tensor | None
    log2: int = 0


@dataclass(kw_only=True)
class Subject:
    """A tensor of one step, with true values in float32 or float64.

    Args:
        limit: the largest exponent of a unit in the model's dtype, see `assign.limit_for`.
        earlier_amax: that of the step recorded before; None if there was none.
        is_gradient: of an output.
    """

    x: Tensor
    rms: float
    amax: float
    limit: int
    earlier_amax: float | None = None
    is_gradient: bool = False

    def log2_of(self, operand: Operand) -> int:
        """The exponent of the unit at which an operand is rounded; 0 of one with other scales."""
        if not isinstance(operand.scale, Unit):
            return 0
        if self.is_gradient:
            unit = assign(
                None,
                self.rms,
                limit=self.limit,
                grad_amax=self.amax,
                grad_ceiling=ceiling(operand),
            )
            return -unit.phi
        return assign(self.rms, None, self.amax, limit=self.limit, ceiling=ceiling(operand)).s

    def rounded(self, use: Use, loss_log2: int = 0) -> Rounded:
        """The values that a product takes, and what they have lost.

        Args:
            loss_log2: the exponent of what the loss is multiplied by, and its gradients with it.
        """
        operand = use.operand
        if operand.format is None:
            return Rounded(self.x, None)
        log2 = self.log2_of(operand) - (loss_log2 if self.is_gradient else 0)
        held = self.x if log2 == 0 else self.x * 2.0**-log2
        encoded = encode(held, use, self.given(operand, log2))
        values = take(encoded, use, held.dtype)
        # In the axes of the tensor, as `values` is: what is turned has its contraction last.
        swapped = use.is_turned
        if operand.transform is not None:
            held = turned(held.mT if swapped else held, operand.transform.size)
            held = held.mT if swapped else held
        fmt = operand.format
        top = fmt.element.max if isinstance(fmt, BlockFormat) else fmt.max
        is_largest = encoded.data.abs() >= top
        lost = lost_by(held, values, is_largest.mT if swapped else is_largest)
        return Rounded(values, lost, log2)

    def given(self, operand: Operand, log2: int) -> Given | None:
        """The scale that the step recorded before gives to an operand with delayed scaling."""
        if not isinstance(operand.scale, Delayed):
            return None
        amax = torch.tensor(self.amax * 2.0**-log2, dtype=torch.float32, device=self.x.device)
        earlier = 0.0
        if self.earlier_amax is not None and isinstance(operand.format, FloatFormat):
            top = operand.format.max
            earlier = self.earlier_amax * 2.0**-log2 / top * 2.0**operand.scale.margin
        return Given(amax, torch.full_like(amax, earlier))


def subject_of(held: Tensor, log2: int, limit: int, *, is_gradient: bool = False) -> Subject:
    """A tensor that is `held * 2**log2`, with its RMS and amax: those of a measuring step."""
    x = held.detach().to_dense().to(wide(held.dtype))
    x = (x if log2 == 0 else x * 2.0**log2).contiguous()
    rms, amax, _ = look(x).tolist()
    return Subject(x=x, rms=rms, amax=amax, limit=limit, is_gradient=is_gradient)
