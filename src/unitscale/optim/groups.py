"""Parameters, sorted into optimizer groups by the u-muP rules."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from .rules import KINDS, MATRIX_KINDS, Kind, OptimizerName, ReadoutConstraint, lr_factor
from .uses import Use, uses_of_model, uses_of_parameters

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
DERIVED = ("params", "param_names", "lr", "weight_decay", "kind", "lr_factor")
"""Keys of a group that are made here; others are kept as they are given."""


def param_groups(
    model: nn.Module | Parameters,
    lr: float,
    *,
    within: nn.Module | None = None,
    weight_decay: float = 0.0,
    independent_weight_decay: bool = True,
    optimizer: OptimizerName = "adamw",
    kinds: Mapping[str, Kind] | None = None,
    rates: Mapping[Kind, float] | None = None,
    readout_constraint: ReadoutConstraint | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as torch parameter groups, one per kind and rate.

    Instead of a model it takes parameters, named ones or groups of them (a split of one's own,
    say): each group is divided by kind, keeps its other options, and its own `lr` and
    `weight_decay` stand for the arguments. Groups that this function made keep their factors.

    A group has `lr = lr_factor * lr`, the factor being that of `rules.lr_factor` times its rate in
    `rates`. So a schedule that multiplies each group's learning rate works unchanged, and one
    written by hand sets `group["lr"] = lr_now * group["lr_factor"]`. One that is given a rate, as
    `OneCycleLR` its `max_lr`, takes a list: `[x * g["lr_factor"] for g in groups]`.
    Only matrices are decayed, not biases and gains.

    With independent decay, a step at the peak rate removes the share `weight_decay` of a matrix,
    whatever `lr` and the width are, and the share follows the schedule: `lr` is the peak rate, and
    with a decay it is not 0. It has no meaning for Adam, whose decay is part of the gradient that
    it normalizes.

    Args:
        model: its modules state `parameter_kinds` (own parameter name to kind) and, where they
            hold a stack of residual layers, `residual_branches`, the number of branches in it;
            those of stacks inside of branches multiply. Or parameters: each says its kind, as
            `us.Parameter` does, or is one of the model `within`.
        within: the model whose parameters they are, which says their kinds and depths.
        lr: the base learning rate, finite and >= 0; near 1 is usual for a unit-scaled model.
        kinds: the kind of parameters whose module does not state it, by full name or pattern
            (`{"head.*": "output"}`); the first match wins, also over the module's own statement.
        rates: a kind's rate over the one that follows from its rule; 1 for kinds not named. They
            hold at every width, as `lr` does.
        readout_constraint: for SGD, the constraint of the model's read-out, if it has one.
    Raises:
        TypeError: neither a model nor parameters.
        ValueError: a parameter of unknown kind; a tied parameter with two kinds or depths; a
            pattern that matches nothing; a bad value; an independent decay with `lr=0`.
    Warns:
        UserWarning: a `unn.Stack` holds layers whose residual branches it cannot count.
    """
    kinds, rates = kinds or {}, rates or {}
    _check_values(lr, weight_decay, optimizer)
    _check_rates(rates)

    def factor_of(use: Use) -> float:
        rule = lr_factor(
            use.kind,
            use.width,
            use.depth,
            optimizer=optimizer,
            readout_constraint=readout_constraint,
        )
        return rule * rates.get(use.kind, 1.0)

    made: list[dict[str, Any]] = []
    for given, sorted_ in _sorted(model, kinds, within, factor_of):
        base, own_decay = given.get("lr", lr), given.get("weight_decay")
        _check_values(base, 0.0 if own_decay is None else own_decay, optimizer)
        for (kind, factor), members in sorted_.items():
            group_lr = base * factor
            decay = own_decay
            if decay is None:
                decay = weight_decay if kind in MATRIX_KINDS else 0.0
            if independent_weight_decay and optimizer != "adam":
                decay = _independent(decay, base, factor)
            made.append(
                {
                    **{key: value for key, value in given.items() if key not in DERIVED},
                    "params": [parameter for _, parameter in members],
                    "param_names": [name for name, _ in members],
                    "lr": group_lr,
                    "weight_decay": decay,
                    "kind": kind,
                    "lr_factor": factor,
                }
            )
    return made


def _independent(decay: float, lr: float, factor: float) -> float:
    """What torch multiplies by a group's rate, so that `decay` is removed at the rate `lr`.

    Raises:
        ValueError: there is none: a later rate would have nothing to be a share of.
    """
    if not (decay and factor):  # a kind whose rate is 0 never moves
        return 0.0
    found = decay / (lr * factor) if lr * factor else math.inf
    if math.isfinite(found):
        return found
    raise ValueError(
        f"param_groups: lr is {lr!r} with weight_decay={decay!r}; expected the peak rate, at which "
        "a step removes that share. For a rate that starts at 0 pass the peak rate and let a "
        "scheduler (LambdaLR) or group['lr'] = lr_now * group['lr_factor'] set it; for parameters "
        "that stay as they are pass weight_decay=0."
    )


Members = dict[tuple[Kind, float], list[tuple[str, Tensor]]]


def _sorted(
    model: nn.Module | Parameters,
    kinds: Mapping[str, Kind],
    within: nn.Module | None,
    factor_of: Callable[[Use], float],
) -> Iterator[tuple[dict[str, Any], Members]]:
    """Each given group's options, and its parameters by kind and factor."""
    if isinstance(model, nn.Module):
        if within is not None:
            raise TypeError("param_groups: within= is for parameters, and a model was passed.")
        yield {}, _by_factor(uses_of_model(model, kinds), factor_of)
        return
    groups = _as_groups(model)
    new = [pair for group in groups if "lr_factor" not in group for pair in group["named"]]
    uses: dict[int, Use] = {}
    for use in uses_of_parameters(new, kinds, within):
        uses.setdefault(id(use.parameter), use)
    for group in groups:
        options = {key: value for key, value in group.items() if key != "named"}
        if "lr_factor" in group:  # of this function: the factor stands, the rates are new
            options.pop("lr", None)
            options.pop("weight_decay", None)
            yield options, {(group["kind"], group["lr_factor"]): list(group["named"])}
        else:
            # A tied parameter may be listed twice; it is one.
            distinct = {id(parameter): None for _, parameter in group["named"]}
            members = [uses[key] for key in distinct if key in uses]
            yield options, _by_factor(members, factor_of)


def _by_factor(uses: Iterable[Use], factor_of: Callable[[Use], float]) -> Members:
    members: Members = {}
    for use in uses:
        members.setdefault((use.kind, factor_of(use)), []).append((use.name, use.parameter))
    return members


def _as_groups(given: Parameters) -> list[dict[str, Any]]:
    """Groups as dicts of their options, with `named` for their parameters."""
    items: Sequence[Any] = list(given)
    if not items:
        raise ValueError("param_groups: got no parameters; pass a model, or its parameters.")
    if not all(isinstance(item, dict) for item in items):
        return [{"named": _named(items, 0)}]
    groups, count = [], 0
    for group in items:
        members = group.get("params", ())
        members = [members] if isinstance(members, Tensor) else list(members)
        names = group.get("param_names")
        if names is not None and not any(isinstance(member, tuple) for member in members):
            members = list(zip(names, members, strict=True))
        options = {key: value for key, value in group.items() if key != "params"}
        groups.append(options | {"named": _named(members, count)})
        count += len(members)
    return groups


def _named(members: Sequence[Any], start: int) -> list[tuple[str, Tensor]]:
    """Parameters with their names; those without have their number."""
    named = []
    for number, member in enumerate(members, start):
        name, parameter = member if isinstance(member, tuple) else (f"parameter {number}", member)
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"param_groups: {name!r} is a {type(parameter).__name__}; expected a model, "
                "parameters, pairs of name and parameter, or groups of them."
            )
        named.append((name, parameter))
    return named


def _check_values(lr: float, weight_decay: float, optimizer: str) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"param_groups: {name} is {value!r}; expected a finite number >= 0.")
    if optimizer not in get_args(OptimizerName):
        raise ValueError(
            f"param_groups: optimizer is {optimizer!r}; expected one of "
            f"{', '.join(get_args(OptimizerName))}."
        )


def _check_rates(rates: Mapping[Kind, float]) -> None:
    for kind, rate in rates.items():
        if kind not in KINDS:
            raise ValueError(
                f"param_groups: rates names the kind {kind!r}; the kinds are {', '.join(KINDS)}."
            )
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"param_groups: rates[{kind!r}] is {rate!r}; expected a finite number >= 0."
            )
