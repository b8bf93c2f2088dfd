"""The scales of a model's gradients over a run: one for each parameter, the same on all ranks.

What changes them (an amax, a count of saturated elements) is exchanged and so the same everywhere.
Numbers that an exchange found come into force before the next backward pass, so that a device need
not be waited for in the middle of one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unitscale.distributed.scale import AutomaticScale, GradientScale, RootScale, UnitScale
from unitscale.formats import FloatFormat
from unitscale.formats.scale_rule import power_of_two_scale
from unitscale.units.schedule import is_due, never_measures

__all__ = ["Found", "ScaleState"]

NOTHING_FOUND = -(2**20)
"""Stands for the logarithm of a scale that could not be measured."""

EXTREME = 126
"""Inverse scales stay within 2**-126 and 2**126, where float32 holds both them and the scales."""


@dataclass(frozen=True)
class Found:
    """What the exchange of a bucket found; tensors on the device of the bucket.

    log2: int32, of the inverse scales that were measured, `NOTHING_FOUND` where none was.
    trailers: int32, one row for each rank: whether it asks for a measurement, then for each
        parameter how many of its elements saturated, then how many have the largest magnitude.
    """

    names: Sequence[str]
    numels: Sequence[int]
    log2: Tensor | None
    trailers: Tensor


@dataclass
class ScaleState:
    """Which scale is in force for each parameter, and which parameters are to be measured.

    passes: backward passes that exchanged gradients, so far.
    log2: of the inverse scale in force; a parameter that has none yet is not in it.
    due: parameters that are measured in the next pass, whatever the schedule says.
    requested: whether this rank asks for a measurement; all get to know in the next pass.
    """

    rule: GradientScale
    format: FloatFormat
    ranks: int
    passes: int = 0
    log2: dict[str, float] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    requested: bool = False
    scheduled: bool = False
    pending: list[Found] = field(default_factory=list)

    def begin(self) -> dict[str, int]:
        """Open a backward pass; what saturated in the passes that were not settled yet."""
        saturated = self.settle()
        if isinstance(self.rule, UnitScale):
            self.scheduled = is_due(self.passes, self.rule.remeasure)
        self.passes += 1
        return saturated

    def wants(self, names: Iterable[str]) -> list[bool]:
        """For each parameter, whether its scale follows from an amax that ranks exchange now."""
        rule = self.rule
        if isinstance(rule, UnitScale):
            if never_measures(rule.remeasure):
                return [False for _ in names]
            return [self.scheduled or name in self.due or name not in self.log2 for name in names]
        if isinstance(rule, AutomaticScale):
            return [name not in self.log2 for name in names]
        return [True for _ in names]

    def inv_scales(
        self, names: Sequence[str], wants: Sequence[bool], amax: Tensor | None, device: torch.device
    ) -> Tensor:
        """The inverse scale of each parameter; float32, positive, on `device`.

        Args:
            amax: the largest finite magnitude on any rank, float32; None where no scale wants it.
        """
        start = self.rule.target_log2 if isinstance(self.rule, UnitScale) else 0
        logs = [self.log2.get(name, start) for name in names]
        powers = [2.0 ** max(-EXTREME, min(EXTREME, log2)) for log2 in logs]
        given = torch.tensor(powers, dtype=torch.float32, device=device)
        if amax is None:
            return given
        margin = getattr(self.rule, "margin", 0)
        _, inverse = power_of_two_scale(amax, self.format, "rceil", margin)
        inverse = inverse.clamp(2.0**-EXTREME, 2.0**EXTREME)
        if isinstance(self.rule, RootScale):
            inverse = inverse / self.ranks**0.5
        return torch.where(torch.tensor(wants, device=device), inverse, given)

    def measure(
        self, mean: Tensor, numels: Sequence[int], wants: Sequence[bool], amax: Tensor
    ) -> Tensor:
        """The logarithm of the inverse scale that each parameter gets next; int32.

        Args:
            mean: the averaged gradients of a bucket, 1-dim.
            amax: as in `inv_scales`.
        """
        rule = self.rule
        nothing = torch.full_like(amax, NOTHING_FOUND, dtype=torch.int32)
        is_wanted = torch.tensor(wants, device=amax.device) & (amax > 0)
        if isinstance(rule, AutomaticScale):
            _, inverse = power_of_two_scale(amax, self.format, "rceil", 0)
            return torch.where(is_wanted, exponent(inverse), nothing)
        if not isinstance(rule, UnitScale):
            return nothing
        _, inverse = power_of_two_scale(amax, self.format, "rceil", 1)  # a binade above the amax
        rms = [
            # In float64, which holds the squares of all gradients.
            torch.linalg.vector_norm(part, dtype=torch.float64) / max(1, numel) ** 0.5
            for part, numel in zip(torch.split(mean, list(numels)), numels, strict=True)
        ]
        size = torch.stack(rms)
        is_wanted = is_wanted & size.isfinite() & (size > 0)
        aimed = rule.target_log2 - size.log2().round()
        log2 = torch.minimum(torch.where(is_wanted, aimed, 0.0).int(), exponent(inverse))
        return torch.where(is_wanted, log2.clamp(-EXTREME, EXTREME), nothing)

    def settle(self) -> dict[str, int]:
        """Put what was found into force; how many elements of each parameter saturated."""
        saturated: dict[str, int] = {}
        pending, self.pending = self.pending, []
        if pending:
            self.due.clear()
        for found in pending:
            count = len(found.names)
            totals = found.trailers.sum(0, dtype=torch.int64).tolist()
            log2 = [NOTHING_FOUND] * count if found.log2 is None else found.log2.tolist()
            for position, name in enumerate(found.names):
                if lost := totals[1 + position]:
                    saturated[name] = saturated.get(name, 0) + lost
                if log2[position] != NOTHING_FOUND:
                    self.log2[name] = log2[position]
                elif isinstance(self.rule, AutomaticScale) and name in self.log2:
                    largest = totals[1 + count + position]
                    self.log2[name] += self._step(largest, found.numels[position])
            if isinstance(self.rule, UnitScale):
                asked = found.names if totals[0] else ()
                self.due.update(asked, (name for name in found.names if name in saturated))
        return saturated

    def _step(self, largest: int, numel: int) -> float:
        """How far FP8-LM's mu goes, in binades."""
        assert isinstance(self.rule, AutomaticScale)
        if largest > self.rule.share * numel * self.ranks:
            return -1.0
        return 1.0 / self.rule.doubling


def exponent(power: Tensor) -> Tensor:
    """The logarithm of powers of two; int32."""
    return torch.frexp(power).exponent.int() - 1
