"""What the plans of growth and of pruning have in common: which model they are of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import nn

from unitscale.anatomy.architecture import ARCHITECTURES, Architecture
from unitscale.anatomy.shape import Shape, shape_of
from unitscale.anatomy.whole import check_whole, refuse_wrapped

__all__ = ["Planned", "check_given", "check_planned", "shapes_of"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A change of a model's sizes.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        target: the shape afterwards.
        shapes: of the model's parameters, by which `apply` knows it.
    """

    architecture: str
    target: Shape
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def known(self) -> Architecture:
        """What is known of the architecture."""
        return ARCHITECTURES[self.architecture]

    def to_json(self) -> dict[str, Any]:
        """The same as data, without the shapes of every parameter."""
        return {name: value for name, value in asdict(self).items() if name != "shapes"}


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, shared ones once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_given(model: Any, plan: Any, who: str) -> None:
    """Refuse what is no model, or no plan.

    Raises:
        TypeError: says what was given.
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, Planned):
        raise TypeError(
            f"{who}: got a {type(model).__name__} and a {type(plan).__name__}; expected a model "
            f"and a plan of us.{who}.plan"
        )


def check_planned(model: Any, plan: Planned, before: Shape, after: Shape, who: str) -> None:
    """Refuse a model that a plan was not made for.

    Args:
        before, after: the shapes of a model that the plan is of, and was applied to.
        who: asks, for the errors.
    Raises:
        ValueError: says what differs.
    """
    refuse_wrapped(model, who)
    check_whole(model, who)
    if shapes_of(model) == plan.shapes:
        return
    found = getattr(getattr(model, "config", None), "model_type", None)
    own = shape_of(model.config, plan.known) if found == plan.architecture else None
    again = "; the plan was applied to it already" if own == after else ""
    raise ValueError(
        f"{who}: the plan is for a {plan.architecture} of {before}, and the model is a "
        f"{type(model).__name__} of {own or 'another architecture'}{again}: make a plan of this "
        "model"
    )
