"""torch's optimizers, built from a whole model so that each parameter gets its own rate."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import nn

from .groups import Parameters, param_groups
from .proportion import Watch
from .rules import Kind, OptimizerName, ReadoutConstraint
from .states import StatesName

ModelOrGroups = nn.Module | Parameters
Rules = Literal["u-mup"]


class _InCodecs:
    """Makes `AdamW(..., states="coat")` an object of the class that holds states by codec.

    Without `states` the class stays torch's own step, untouched.
    """

    def __new__(cls, *args: Any, states: str | None = None, **options: Any) -> Self:
        if states is None:
            return super().__new__(cls)
        from . import coded  # which is built on the classes of this file

        if issubclass(cls, coded.Coded):
            return super().__new__(cls)
        chosen = {AdamW: coded.CodedAdamW, Adam: coded.CodedAdam, SGD: coded.CodedSGD}.get(cls)
        if chosen is None:
            raise TypeError(
                f"{cls.__name__}: states={states!r} with a subclass; derive it from "
                "unitscale.optim.coded.CodedAdamW, CodedAdam or CodedSGD."
            )
        return super().__new__(chosen)  # type: ignore[return-value, type-abstract]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with what it would ignore or not explain refused.

        Raises:
            ValueError: states of the group's own where the optimizer has none; parameters without
                names where the others have them, or the other way round.
        """
        states = param_group.get("states") if isinstance(param_group, dict) else None
        if states is not None and not hasattr(self, "state_rows"):
            raise ValueError(
                f"{type(self).__name__}: a group has states={states!r}, and the optimizer holds "
                "none by codec; pass states= to it as well, such as states='fp32', which is for "
                "all other groups."
            )
        known: list[dict[str, Any]] = getattr(self, "param_groups", [])
        if known and isinstance(param_group, dict):
            _check_names(type(self).__name__, known[0], param_group)
        super().add_param_group(param_group)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Any) -> None:
        """As torch's, but codes are not taken for numbers.

        Raises:
            ValueError: the state is of an optimizer with `states=`, and this one has none.
        """
        groups = state_dict.get("param_groups", ()) if isinstance(state_dict, Mapping) else ()
        held = [group["states"] for group in groups if group.get("states") is not None]
        if held and not hasattr(self, "state_rows"):
            raise ValueError(
                f"{type(self).__name__}: the state was saved with states={held[0]!r}, whose codes "
                f"this optimizer would take for numbers; make it with states={held[0]!r}, or with "
                "states='fp32' to have float32 moments of them."
            )
        super().load_state_dict(state_dict)  # type: ignore[misc]


class AdamW(_InCodecs, torch.optim.AdamW):
    """`torch.optim.AdamW` with u-muP learning rates and independent weight decay.

    Given a model, the groups are those of `param_groups(model, lr, ...)`; given groups, they are
    used as they are. The step is torch's own, bit for bit, and so are `state_dict` and `options`.
    A step warns once if a scheduler has erased the groups' factors (`optim.proportion`).

    Args:
        model: the model; or groups; or parameters, bare or named, that say their kinds
            (`us.Parameter`). With `rules=None` any parameters.
        weight_decay: None means 0, and with `rules=None` torch's own default.
        rules: None for torch's semantics: `lr` for every parameter, decay times `lr`. `kinds`,
            `rates` and `independent_weight_decay` mean nothing then.
        states: how moments and master weights are held: "fp32", "fp8-lm", "coat",
            "bf16-stochastic" or "master24" (`optim.states`). None leaves all to
            torch. With it, `seed` (of stochastic rounding) and `chunk_size` (elements of a piece)
            are options, and `state_rows()` says what each parameter got; `amsgrad`, `capturable`,
            `differentiable` and `fused` are refused, and `foreach` changes nothing.
    """

    def __init__(
        self,
        model: ModelOrGroups,
        lr: float,
        *,
        weight_decay: float | None = None,
        independent_weight_decay: bool = True,
        kinds: Mapping[str, Kind] | None = None,
        rates: Mapping[Kind, float] | None = None,
        rules: Rules | None = "u-mup",
        states: StatesName | None = None,
        **options: Any,
    ) -> None:
        decay = _decay(weight_decay, rules, 1e-2)
        groups = _groups(
            model,
            lr,
            "adamw",
            rules,
            weight_decay=decay,
            independent_weight_decay=independent_weight_decay,
            kinds=kinds,
            rates=rates,
        )
        super().__init__(groups, lr=lr, weight_decay=decay, **options)
        self.register_step_pre_hook(Watch())


class Adam(_InCodecs, torch.optim.Adam):
    """`torch.optim.Adam` with u-muP learning rates; `weight_decay` is torch's, on the gradient.

    `rules` and `states` as in `AdamW`.
    """

    def __init__(
        self,
        model: ModelOrGroups,
        lr: float,
        *,
        weight_decay: float = 0.0,
        kinds: Mapping[str, Kind] | None = None,
        rates: Mapping[Kind, float] | None = None,
        rules: Rules | None = "u-mup",
        states: StatesName | None = None,
        **options: Any,
    ) -> None:
        groups = _groups(
            model, lr, "adam", rules, weight_decay=weight_decay, kinds=kinds, rates=rates
        )
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        self.register_step_pre_hook(Watch())


class SGD(_InCodecs, torch.optim.SGD):
    """`torch.optim.SGD` with u-muP learning rates and independent weight decay.

    Unlike Adam, SGD sees the size of the gradients, so it must know if the read-out is constrained.
    torch adds the decay to the gradient: with momentum it is 1 / (1 - momentum) times as strong.
    `rules` and `states` as in `AdamW`.
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
        rules: Rules | None = "u-mup",
        states: StatesName | None = None,
        **options: Any,
    ) -> None:
        groups = _groups(
            model,
            lr,
            "sgd",
            rules,
            weight_decay=weight_decay,
            independent_weight_decay=independent_weight_decay,
            kinds=kinds,
            rates=rates,
            readout_constraint=readout_constraint,
        )
        super().__init__(groups, lr=lr, weight_decay=weight_decay, **options)
        self.register_step_pre_hook(Watch())


def _check_names(optimizer: str, known: Mapping[str, Any], group: dict[str, Any]) -> None:
    """Refuse a group that has names if the groups of the optimizer have none, and the reverse."""
    params = group.get("params")
    if params is None or isinstance(params, set | str):  # torch refuses it in its own words
        return
    members = [params] if isinstance(params, torch.Tensor) else list(params)
    group["params"] = members  # it may have been an iterator
    pairs = sum(isinstance(member, tuple) for member in members)
    is_named = "param_names" in group or (pairs == len(members) > 0)
    if members and 0 < pairs < len(members):
        raise ValueError(
            f"{optimizer}: {len(members) - pairs} of {len(members)} parameters of the new group "
            "have no name; expected pairs of name and parameter, or parameters alone."
        )
    if is_named == ("param_names" in known):
        return
    if is_named:
        raise ValueError(
            f"{optimizer}: the parameters of the new group have names, and those that the "
            "optimizer has do not; pass them without names, as {'params': [parameter, ...]}."
        )
    raise ValueError(
        f"{optimizer}: the parameters of the new group have no names, and those that the "
        "optimizer has do; pass pairs, as {'params': [('head.weight', parameter), ...]}, or groups "
        "of us.optim.param_groups, which have their rates as well."
    )


def _decay(given: float | None, rules: Rules | None, torchs: float) -> float:
    if given is not None:
        return given
    return torchs if rules is None else 0.0


def _groups(
    model: ModelOrGroups, lr: float, optimizer: OptimizerName, rules: Rules | None, **wanted: Any
) -> list[Any]:
    if rules is None:
        return _plain(model, wanted)
    if rules != "u-mup":
        raise ValueError(
            f"unitscale.optim: rules is {rules!r}; expected 'u-mup', or None for torch's semantics."
        )
    if isinstance(model, nn.Module):
        return param_groups(model, lr, optimizer=optimizer, **wanted)
    given: list[Any] = list(model)
    if given and all(isinstance(group, dict) for group in given):
        return given
    return param_groups(given, lr, optimizer=optimizer, **wanted)


def _plain(model: ModelOrGroups, wanted: Mapping[str, Any]) -> list[Any]:
    """Parameters or groups as torch takes them."""
    for name in ("kinds", "rates", "readout_constraint"):
        if wanted.get(name) is not None:
            raise ValueError(
                f"unitscale.optim: {name} is {wanted[name]!r} with rules=None, which has no use "
                f"for it; leave it out, or leave rules out."
            )
    if not isinstance(model, nn.Module):
        return list(model)
    return [named for named in model.named_parameters() if named[1].requires_grad]
