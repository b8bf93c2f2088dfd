"""A model's parameters, sorted into optimizer groups by the u-muP rules."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, get_args

from torch import nn

from unitscale.nn.residual import Stack

from .rules import KINDS, MATRIX_KINDS, Kind, OptimizerName, ReadoutConstraint, lr_factor


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    independent_weight_decay: bool = True,
    optimizer: OptimizerName = "adamw",
    kinds: Mapping[str, Kind] | None = None,
    rates: Mapping[Kind, float] | None = None,
    readout_constraint: ReadoutConstraint | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as torch parameter groups, one per kind and rate.

    A group has `lr = lr_factor * lr`, the factor being that of `rules.lr_factor` times its rate in
    `rates`. So a schedule that multiplies each group's learning rate works unchanged, and one
    written by hand sets `group["lr"] = lr_now * group["lr_factor"]`. One that is given a rate, as
    `OneCycleLR` its `max_lr`, takes a list: `[x * g["lr_factor"] for g in groups]`.
    Only matrices are decayed, not biases and gains.

    With independent decay, a step at the peak rate removes the share `weight_decay` of a matrix,
    whatever `lr` and the width are, and the share follows the schedule. At `lr=0` nothing moves.
    It has no meaning for Adam, whose decay is part of the gradient that it normalizes.

    Args:
        model: its modules state `parameter_kinds` (own parameter name to kind) and, where they
            hold a stack of residual layers, `residual_branches`, the number of branches in it;
            those of nested stacks multiply.
        lr: the base learning rate, finite and >= 0; near 1 is usual for a unit-scaled model.
        kinds: the kind of parameters whose module does not state it, by full name or pattern
            (`{"head.*": "output"}`); the first match wins, also over the module's own statement.
        rates: a kind's rate over the one that follows from its rule; 1 for kinds not named. They
            hold at every width, as `lr` does.
        readout_constraint: for SGD, the constraint of the model's read-out, if it has one.
    Raises:
        ValueError: a parameter of unknown kind; a tied parameter with two kinds or depths; a
            pattern that matches nothing; a bad value.
    Warns:
        UserWarning: a `unn.Stack` holds layers whose residual branches it cannot count.
    """
    kinds, rates = kinds or {}, rates or {}
    _check_values(lr, weight_decay, optimizer)
    _check_rates(rates)
    _check_patterns(model, kinds)
    groups: dict[tuple[Kind, float], dict[str, Any]] = {}
    for use in _trainable(model, kinds):
        factor = lr_factor(
            use.kind,
            _width(use),
            use.depth,
            optimizer=optimizer,
            readout_constraint=readout_constraint,
        ) * rates.get(use.kind, 1.0)
        group_lr = lr * factor
        decay = weight_decay if use.kind in MATRIX_KINDS else 0.0
        if independent_weight_decay and optimizer != "adam":
            decay = decay / group_lr if group_lr else 0.0
        group = groups.setdefault(
            (use.kind, factor),
            {
                "params": [],
                "param_names": [],
                "lr": group_lr,
                "weight_decay": decay,
                "kind": use.kind,
                "lr_factor": factor,
            },
        )
        group["params"].append(use.parameter)
        group["param_names"].append(use.name)
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class _Use:
    """One parameter as one module holds it."""

    name: str
    parameter: nn.Parameter
    module: nn.Module
    kind: Kind
    depth: int


def _trainable(model: nn.Module, kinds: Mapping[str, Kind]) -> Iterable[_Use]:
    """Each trainable parameter at its first use, after checking that all its uses agree."""
    first: dict[nn.Parameter, _Use] = {}
    for use in _uses(model, kinds, prefix="", depth=1):
        tied = first.setdefault(use.parameter, use)
        if use.kind != tied.kind:
            raise ValueError(
                f"param_groups: {tied.name!r} ({tied.kind}) and {use.name!r} ({use.kind}) are one "
                f"tied parameter, which can have one learning rate only; untie them, or choose: "
                f"kinds={{{tied.name!r}: {tied.kind!r}, {use.name!r}: {tied.kind!r}}}."
            )
        if use.depth != tied.depth:
            raise ValueError(
                f"param_groups: {tied.name!r} (depth {tied.depth}) and {use.name!r} (depth "
                f"{use.depth}) are one tied parameter, which can have one learning rate only; "
                f"untie them, or tie them inside one stack."
            )
    return first.values()


def _uses(
    module: nn.Module, kinds: Mapping[str, Kind], *, prefix: str, depth: int
) -> Iterator[_Use]:
    declared: Mapping[str, Kind] = getattr(module, "parameter_kinds", {})
    for own_name, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            name = prefix + own_name
            chosen = (kind for pattern, kind in kinds.items() if fnmatchcase(name, pattern))
            kind = next(chosen, declared.get(own_name))
            if kind not in KINDS:
                raise _unknown_kind(name, kind, module)
            yield _Use(name=name, parameter=parameter, module=module, kind=kind, depth=depth)
    depth *= _branches(module, prefix)
    for child_name, child in module.named_children():
        yield from _uses(child, kinds, prefix=f"{prefix}{child_name}.", depth=depth)


def _branches(module: nn.Module, prefix: str) -> int:
    """How many residual branches a stack has, 1 for any other module.

    Not `depth`: many modules have a number of that name, of other things.
    """
    name = prefix.rstrip(".") or "the model"
    count = getattr(module, "residual_branches", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(
            f"param_groups: residual_branches of {name!r} is {count!r}; it counts the residual "
            f"branches of the stack and must be an integer >= 1."
        )
    if isinstance(module, Stack) and (uncounted := module.uncounted()):
        warnings.warn(
            f"param_groups: the Stack {name!r} counts {count} residual branches, and cannot count "
            f"those of its layers {', '.join(uncounted)}, which are no unn.Residual; a rate is "
            f"divided by the root of the number: give it, as Stack(..., branches=8).",
            UserWarning,
            stacklevel=3,
        )
    return count


def _width(use: _Use) -> int:
    """The dimension that the rule of this kind refers to."""
    shape = use.parameter.shape
    if use.kind in ("bias", "norm"):
        return max(use.parameter.numel(), 1)
    if len(shape) < 2:
        raise ValueError(
            f"param_groups: {use.name!r} is of kind {use.kind!r}, which needs at least 2 "
            f"dimensions, but has shape {tuple(shape)}; 'bias' or 'norm' suits it."
        )
    if use.kind == "input":  # a table holds one row per entry, a linear layer one row per output
        return int(getattr(use.module, "embedding_dim", shape[0]))
    if getattr(use.module, "transposed", False):  # (in, out / groups, *kernel)
        return use.parameter.numel() // (shape[1] * int(getattr(use.module, "groups", 1)))
    return use.parameter.numel() // shape[0]


def _unknown_kind(name: str, kind: object, module: nn.Module) -> ValueError:
    legal = ", ".join(KINDS)
    if kind is not None:
        return ValueError(f"param_groups: kind of {name!r} is {kind!r}; the kinds are {legal}.")
    owner = f"{type(module).__module__}.{type(module).__qualname__}"
    return ValueError(
        f"param_groups: no kind is known for {name!r} (in {owner}), so no learning rate follows; "
        f"use the module of unitscale.nn, or pass kinds={{{name!r}: ...}} with one of {legal}."
    )


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


def _check_patterns(model: nn.Module, kinds: Mapping[str, Kind]) -> None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in kinds:
        if not any(fnmatchcase(name, pattern) for name in names):
            nearest = "".join(
                f"; nearest: {name!r}" for name in get_close_matches(pattern, names, 1)
            )
            raise ValueError(f"param_groups: kinds[{pattern!r}] matched no parameter{nearest}.")
