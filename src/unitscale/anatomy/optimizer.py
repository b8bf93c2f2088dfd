"""The state of an optimizer for a model of other sizes, from that of the old one's."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unitscale import optim
from unitscale.anatomy.whole import unwrapped

__all__ = ["MOMENTS", "Moment", "State", "carry_optimizer", "moments_of"]

Moment = Literal["first", "second"]
"""A mean of gradients, or of their squares."""

MOMENTS: Mapping[str, Moment] = {
    "exp_avg": "first",
    "exp_avg_sq": "second",
    "max_exp_avg_sq": "second",
    "momentum_buffer": "first",
}
"""What changes with a parameter, by torch's names."""

State = dict[str, Any]


def carry_optimizer(
    optimizer: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    models: tuple[nn.Module, nn.Module],
    names: tuple[Collection[str], Collection[str]],
    state_of: Callable[[str, Mapping[str, State]], State | None],
    who: str,
) -> None:
    """Give an optimizer of a new model the state of the old one's, with moments made to fit.

    Args:
        models: old and new; names: the parameters that the plan says they have.
        state_of: of a new parameter's name and the states by old names: its state.
        who: asks, for the errors.

    Raises:
        ValueError: parameters of another model, another kind of optimizer, a state that is unknown;
            `new` is left as it was.
    """
    models = unwrapped(models[0]), unwrapped(models[1])
    kind = kind_of(optimizer, who)
    if kind_of(new, who) != kind:
        raise ValueError(
            f"{who}: the optimizers are {type(optimizer).__name__} and {type(new).__name__}; "
            "expected two of a kind"
        )
    if new.state:
        raise ValueError(f"{who}: the new optimizer has a state already; make another one")
    own = names_of(models[0], optimizer, "the optimizer", who)
    wanted = names_of(models[1], new, "the new optimizer", who)
    if strange := sorted(set(own.values()) - set(names[0])):
        raise ValueError(f"{who}: the plan is of a model without {strange[0]!r}")
    if strange := sorted(set(wanted.values()) - set(names[1])):
        raise ValueError(f"{who}: the plan gives a model without {strange[0]!r}")
    held = in_float32(optimizer, models[0], who)
    moments = {own[index]: state for index, state in held.items()}
    states = {}
    for index, name in wanted.items():
        if (state := state_of(name, moments)) is not None:
            states[index] = state
    content = new.state_dict()
    new.load_state_dict({"state": states, "param_groups": as_torch(content["param_groups"])})


def moments_of(state: State, name: str, moment: Callable[[str, Tensor], Tensor], who: str) -> State:
    """A state whose moments are made to fit, and whose numbers stay.

    Args:
        name: of the old parameter.
        moment: of a key of `MOMENTS` and its tensor: that of the new parameter.
    Raises:
        ValueError: a tensor that is no moment.
    """
    found: State = {}
    for key, value in state.items():
        if key in MOMENTS and isinstance(value, Tensor):
            found[key] = moment(key, value)
        elif not isinstance(value, Tensor) or value.ndim == 0:
            found[key] = value.clone() if isinstance(value, Tensor) else value
        else:
            raise ValueError(
                f"{who}: the optimizer holds {key!r} of {name!r}, which {who} does not know; "
                f"expected {', '.join(MOMENTS)}"
            )
    return found


def kind_of(optimizer: torch.optim.Optimizer, who: str) -> type[torch.optim.Optimizer]:
    """What an optimizer is at heart.

    Raises:
        ValueError: none that is known.
    """
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
        if isinstance(optimizer, kind):
            return kind
    raise ValueError(
        f"{who}: the optimizer is a {type(optimizer).__name__}; expected Adam, AdamW or SGD, of "
        "torch or of unitscale.optim"
    )


def names_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, what: str, who: str
) -> dict[int, str]:
    """The name of each parameter in the groups, by its place there.

    Raises:
        ValueError: one is not the model's.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {}
    for index, parameter in enumerate(parameters):
        if id(parameter) not in names:
            raise ValueError(
                f"{who}: parameter {index} of {what}, of shape {list(parameter.shape)}, is none "
                f"of the {type(model).__name__}'s"
            )
        found[index] = names[id(parameter)]
    return found


def in_float32(optimizer: torch.optim.Optimizer, model: nn.Module, who: str) -> dict[int, State]:
    """The states by place in the groups, with moments in float32 whatever codec holds them."""
    content = optimizer.state_dict()
    if not hasattr(optimizer, "state_rows"):
        states: dict[int, State] = content["state"]
        return states
    makers: dict[Any, Any] = {
        torch.optim.AdamW: optim.AdamW,
        torch.optim.Adam: optim.Adam,
        torch.optim.SGD: optim.SGD,
    }
    names = names_of(model, optimizer, "the optimizer", who)
    count = len(names)
    # Own parameters: loading a state must not touch those of the model.
    copies = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [
        {"params": copies[at : at + size], "lr": float(group["lr"])}
        for at, size, group in zip(starts, sizes, optimizer.param_groups, strict=True)
    ]
    options = {"momentum": 0.9} if kind_of(optimizer, who) is torch.optim.SGD else {}
    plain = makers[kind_of(optimizer, who)](groups, 1.0, rules=None, states="fp32", **options)
    plain.load_state_dict(content)
    moments = plain.state_dict()["state"]
    return {
        index: {k: v for k, v in moments[index].items() if k in MOMENTS or v.ndim == 0}
        for index in range(count)
        if index in moments
    }


def as_torch(groups: list[State]) -> list[State]:
    """Groups that say their moments are torch's own: float32, and to be encoded."""
    return [{k: v for k, v in g.items() if k not in ("states", "states_version")} for g in groups]
