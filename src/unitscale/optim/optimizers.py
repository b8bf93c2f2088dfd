"""torch's optimizers, built from a whole model so that each parameter gets its own rate."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .groups import param_groups
from .proportion import Watch
from .rules import Kind, OptimizerName, ReadoutConstraint

ModelOrGroups = nn.Module | Iterable[dict[str, Any]]


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with u-muP learning rates and independent weight decay.

    Given a model, the groups are those of `param_groups(model, lr, ...)`; given groups, they are
    used as they are. The step is torch's own, bit for bit, and so are `state_dict` and `options`.
    A step warns once if a scheduler has erased the groups' factors (`optim.proportion`).
    """

    def __init__(
        self,
        model: ModelOrGroups,
        lr: float,
        *,
        weight_decay: float = 0.0,
        independent_weight_decay: bool = True,
        kinds: Mapping[str, Kind] | None = None,
        rates: Mapping[Kind, float] | None = None,
        **options: Any,
    ) -> None:
        groups = _groups(
            model,
            lr,
            "adamw",
            weight_decay=weight_decay,
            independent_weight_decay=independent_weight_decay,
            kinds=kinds,
            rates=rates,
        )
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        self.register_step_pre_hook(Watch())


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` with u-muP learning rates; `weight_decay` is torch's, on the gradient."""

    def __init__(
        self,
        model: ModelOrGroups,
        lr: float,
        *,
        weight_decay: float = 0.0,
        kinds: Mapping[str, Kind] | None = None,
        rates: Mapping[Kind, float] | None = None,
        **options: Any,
    ) -> None:
        groups = _groups(model, lr, "adam", weight_decay=weight_decay, kinds=kinds, rates=rates)
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        self.register_step_pre_hook(Watch())


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` with u-muP learning rates and independent weight decay.

    Unlike Adam, SGD sees the size of the gradients, so it must know if the read-out is constrained.
    torch adds the decay to the gradient: with momentum it is 1 / (1 - momentum) times as strong.
    """

    def __init__(
        self,
        model: ModelOrGroups,
        lr: float,
        *,
        weight_decay: float = 0.0,
        independent_weight_decay: bool = True,
        kinds: Mapping[str, Kind] | None = None,
        rates: Mapping[Kind, float] | None = None,
        readout_constraint: ReadoutConstraint | None = None,
        **options: Any,
    ) -> None:
        groups = _groups(
            model,
            lr,
            "sgd",
            weight_decay=weight_decay,
            independent_weight_decay=independent_weight_decay,
            kinds=kinds,
            rates=rates,
            readout_constraint=readout_constraint,
        )
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        self.register_step_pre_hook(Watch())


def _groups(
    model: ModelOrGroups, lr: float, optimizer: OptimizerName, **rules: Any
) -> list[dict[str, Any]]:
    if isinstance(model, nn.Module):
        return param_groups(model, lr, optimizer=optimizer, **rules)
    groups = list(model)
    if not all(isinstance(group, dict) for group in groups):
        raise TypeError(
            "unitscale.optim: got bare parameters, which do not say their kind; pass the model, or "
            "the groups of param_groups(model, lr), or use torch.optim for no rules at all."
        )
    return groups
