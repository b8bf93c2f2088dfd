"""Whether the learning rates of the groups are still in proportion to their u-muP factors.

A scheduler that multiplies each group's rate keeps the proportion. One that writes one number into
all groups (`OneCycleLR(max_lr=x)`) or bounds them by one (`ReduceLROnPlateau(min_lr=x)`,
`CosineAnnealingLR(eta_min=x)`) erases the factors, and the run goes on at rates that no rule gave.
"""

import warnings
from typing import Any

import torch
from torch.optim import Optimizer

TOLERANCE = 1e-4
"""Relative; schedulers that multiply step by step are off by rounding in float64 only."""


class Watch:
    """A hook before each step: warns once, when the proportion is lost."""

    def __init__(self) -> None:
        self.has_warned = False

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Compare the groups; costs no more than a loop over them."""
        if self.has_warned or torch.compiler.is_compiling():
            return
        lost = out_of_proportion(optimizer.param_groups)
        if lost is not None:
            self.has_warned = True
            warnings.warn(lost, UserWarning, stacklevel=4)


def out_of_proportion(groups: list[dict[str, Any]]) -> str | None:
    """What to tell the user; None if all is well or not known.

    It is not known where a group has no `lr_factor`, or its rate is a tensor, which reading would
    wait for.
    """
    rates = []
    for group in groups:
        lr, factor = group["lr"], group.get("lr_factor")
        if factor is None or isinstance(lr, torch.Tensor):
            return None
        if factor:
            rates.append((lr / factor, group))
    if not rates:
        return None
    (low, slow), (high, fast) = (pick(rates, key=lambda rate: rate[0]) for pick in (min, max))
    if high - low <= TOLERANCE * high:
        return None
    described = " and ".join(
        f"{group.get('kind', 'a group')} {group['lr']:.3g} (lr_factor {group['lr_factor']:.3g})"
        for group in (slow, fast)
    )
    return (
        f"optim: the learning rates are not in proportion to the groups' lr_factor any more: "
        f"{described}; a scheduler that sets one number for all groups erases the u-muP rules. "
        "Give it one for each, as max_lr=[x * g['lr_factor'] for g in optimizer.param_groups], or "
        "set g['lr_factor'] where the rates are meant."
    )
