"""The state of an optimizer for a grown model, from that of the small one's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitscale import optim
from unitscale.growth.names import dense_name, parameter_names, router_name
from unitscale.growth.plan import Plan
from unitscale.growth.tensor import Moment

__all__ = ["grow_optimizer", "grown_moments"]

MOMENTS: Mapping[str, Moment] = {
    "exp_avg": "first",
    "exp_avg_sq": "second",
    "max_exp_avg_sq": "second",
    "momentum_buffer": "first",
}
"""What grows with a parameter, by torch's names."""

State = dict[str, Any]


def grow_optimizer(
    optimizer: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    *,
    small: nn.Module,
    grown: nn.Module,
    plan: Plan,
) -> None:
    """Give an optimizer of the grown model the state of the small one's, grown along.

    Moments are those that the grown model would have had if it had made the steps itself (see
    `tensor`). Layers that are new and add nothing at first have no mean of gradients, and the
    squares of their source; routers begin without a state. Settings are those of `new`.

    Args:
        optimizer: of the small model: Adam, AdamW or SGD of torch or of `us.optim`, with any
            `states`.
        new: of the grown model, without a state: the same kind, with any `states`.

    Raises:
        ValueError: parameters of another model, another kind of optimizer, a state that is unknown;
            `new` is left as it was.
    """
    kind = kind_of(optimizer)
    if kind_of(new) != kind:
        raise ValueError(
            f"growth: the optimizers are {type(optimizer).__name__} and {type(new).__name__}; "
            "expected two of a kind"
        )
    if new.state:
        raise ValueError("growth: the new optimizer has a state already; make another one")
    own = names_of(small, optimizer, "the optimizer")
    wanted = names_of(grown, new, "the new optimizer")
    if strange := sorted(set(own.values()) - plan.shapes.keys()):
        raise ValueError(f"growth: the plan is of a model without {strange[0]!r}")
    if strange := sorted(set(wanted.values()) - set(parameter_names(plan))):
        raise ValueError(f"growth: the plan gives a model without {strange[0]!r}")
    held = in_float32(optimizer, small)
    moments = {own[index]: state for index, state in held.items()}
    states = {}
    for index, name in wanted.items():
        if (state := grown_moments(name, plan, moments)) is not None:
            states[index] = state
    content = new.state_dict()
    new.load_state_dict({"state": states, "param_groups": as_torch(content["param_groups"])})


def grown_moments(name: str, made: Plan, moments: Mapping[str, State]) -> State | None:
    """The state of one parameter of the grown model; None if it has none.

    Args:
        moments: the states of the small model's parameters, by name.
    Raises:
        ValueError: a state that is neither a moment nor a number.
    """
    dense = dense_name(name, made)
    if dense is None or name in (router_name(layer, made) for layer in range(made.target.depth)):
        return None
    origin, growth = made.origin(dense), made.growth(dense)
    if origin.name not in moments:
        return None
    # Each expert gets the gradients of its share of the tokens.
    share = 1 / made.target.experts if dense != name else 1.0
    begins = origin.is_new and made.depth_method == "identity"
    found: State = {}
    for key, value in moments[origin.name].items():
        if key in MOMENTS and isinstance(value, Tensor):
            beside = moments.get(origin.beside or origin.name, {}).get(key, value)
            grown = growth.moment(value, MOMENTS[key], beside)
            grown = grown * share ** (1 if MOMENTS[key] == "first" else 2)
            found[key] = torch.zeros_like(grown) if begins and MOMENTS[key] == "first" else grown
        elif not isinstance(value, Tensor) or value.ndim == 0:
            found[key] = value.clone() if isinstance(value, Tensor) else value
        else:
            raise ValueError(
                f"growth: the optimizer holds {key!r} of {origin.name!r}, which growth does not "
                f"know; expected {', '.join(MOMENTS)}"
            )
    return found


def kind_of(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer]:
    """What an optimizer is at heart.

    Raises:
        ValueError: none that growth knows.
    """
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
        if isinstance(optimizer, kind):
            return kind
    raise ValueError(
        f"growth: the optimizer is a {type(optimizer).__name__}; expected Adam, AdamW or SGD, of "
        "torch or of unitscale.optim"
    )


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer, what: str) -> dict[int, str]:
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
                f"growth: parameter {index} of {what}, of shape {list(parameter.shape)}, is none "
                f"of the {type(model).__name__}'s"
            )
        found[index] = names[id(parameter)]
    return found


def in_float32(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, State]:
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
    names = names_of(model, optimizer, "the optimizer")
    count = len(names)
    # Own parameters: loading a state must not touch those of the model.
    copies = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [
        {"params": copies[at : at + size], "lr": float(group["lr"])}
        for at, size, group in zip(starts, sizes, optimizer.param_groups, strict=True)
    ]
    options = {"momentum": 0.9} if kind_of(optimizer) is torch.optim.SGD else {}
    plain = makers[kind_of(optimizer)](groups, 1.0, rules=None, states="fp32", **options)
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
