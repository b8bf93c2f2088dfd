"""A pruning carried out: a new model beside the old one, which stays as it is."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.architecture import in_layer, starred
from unitscale.anatomy.carry import Passage, carried_state, give_session, log2, rms, warn_of_numbers
from unitscale.anatomy.optimizer import State, carry_optimizer, moments_of
from unitscale.anatomy.output import called, evaluating
from unitscale.anatomy.rebuilt import copy_buffers, fill, rebuilt
from unitscale.anatomy.shape import shape_of, sized
from unitscale.compress.plan import Plan
from unitscale.units.forward import session_of

__all__ = ["Report", "apply", "prune_optimizer", "pruned_state", "verify"]


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """The pruned model; the large one stays as it is.

    It has the class, dtype, device, mode and `requires_grad` of the large one; hooks are set anew.
    If that is scaled (`us.unit_scale`), so is this, by the same recipe, at units that were carried
    over: its first call is one of the recipe, and the second measures. Its optimizer:
    `prune_optimizer`.

    Raises:
        ValueError: the plan is of another model, or was applied to this one already.
    """
    check_model(model, plan)
    config: Any = model.config
    pruned = rebuilt(model, sized(config, plan.old, plan.target, plan.known))
    old: dict[str, Tensor] = dict(model.named_parameters())
    fill(pruned, ((n, plan.cut(n, old[plan.origin(n)].detach())) for n in plan.names()))
    copy_buffers(model, pruned)
    pruned.train(model.training)
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(old[plan.origin(name)].requires_grad)
    if (session := session_of(model)) is not None:
        session.terms.collect()
        if plan.target.depth < plan.old.depth:
            warn_of_numbers(session, plan.known.layers, "compress")
        passage = pruning(plan, old, dict(pruned.named_parameters()))
        give_session(session, pruned, passage, session.recipe, session.beside)
    return pruned


def check_model(model: nn.Module, made: Plan) -> None:
    """Refuse a model that a plan was not made for.

    Raises:
        TypeError: no model, or no plan. ValueError: says what differs.
    """
    if not isinstance(model, nn.Module) or not isinstance(made, Plan):
        raise TypeError(
            f"compress: got a {type(model).__name__} and a {type(made).__name__}; expected a model "
            "and a plan of us.compress.plan"
        )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if shapes == made.shapes:
        return
    found = getattr(getattr(model, "config", None), "model_type", None)
    own = shape_of(model.config, made.known) if found == made.architecture else None
    again = "; the plan was applied to it already" if own == made.target else ""
    raise ValueError(
        f"compress: the plan is for a {made.architecture} of {made.old}, and the model is a "
        f"{type(model).__name__} of {own or 'another architecture'}{again}: make a plan of this "
        "model"
    )


def pruning(made: Plan, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Passage:
    """How the tensors of a model become those of the pruned one.

    A tensor between ops holds some of what it held, so its unit stays until it is measured. The s
    of a parameter follows its values.
    """

    def descendants(name: str) -> Iterator[str]:
        star, layer = starred(name, made.known.layers)
        if layer is None:
            yield name
        elif layer in made.layers:
            yield in_layer(star, made.layers.index(layer))

    def change(found: str, name: str) -> tuple[int, int]:
        if found not in new or name not in old:
            return 0, 0
        before, after = rms(old[name]), rms(new[found])
        return (log2(after / before) if before and after else 0), 0

    return Passage(descendants=descendants, change=change, old=old, new=new)


def pruned_state(
    state: State,
    made: Plan,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    start: str = "",
) -> State:
    """What a store of units holds, for the pruned model: see `carried_state`."""
    return carried_state(state, pruning(made, old, new), start)


def prune_optimizer(
    optimizer: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    *,
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
) -> None:
    """Give an optimizer of the pruned model the moments of what stays. Settings are those of `new`.

    Args:
        optimizer: of the large model: Adam, AdamW or SGD of torch or of `us.optim`.
        new: of the pruned model, without a state: the same kind.

    Raises:
        ValueError: parameters of another model, another kind of optimizer, a state that is unknown;
            `new` is left as it was.
    """
    names: tuple[Collection[str], Collection[str]] = (plan.shapes, plan.names())

    def state_of(name: str, moments: Any) -> State | None:
        origin = plan.origin(name)
        if origin not in moments:
            return None
        return moments_of(moments[origin], origin, lambda _, x: plan.cut(name, x), "compress")

    carry_optimizer(optimizer, new, (model, pruned), names, state_of, "compress")


@dataclass(frozen=True, kw_only=True)
class Report:
    """A pruned model beside the large one, on a batch.

    Attributes:
        parameters: before and after; bytes: of them.
        difference: the largest of two outputs; largest: the largest output of the large model.
        loss: before and after, where the models compute one.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    largest: float
    difference: float
    loss: tuple[float, float] | None

    def __str__(self) -> str:
        before, after = self.parameters
        text = (
            f"{before:,} parameters -> {after:,} ({after / before:.0%}); outputs up to "
            f"{self.largest:.4g} differ by up to {self.difference:.3g}"
        )
        return text + (f"; loss {self.loss[0]:.4f} -> {self.loss[1]:.4f}" if self.loss else "")


def verify(model: nn.Module, pruned: nn.Module, batch: Any) -> Report:
    """Compare a pruned model with the large one, each in its own numerics, in eval().

    Args:
        batch: what the models take: a mapping of arguments, a tuple of them, or one.

    Raises:
        ValueError: outputs of different shapes, or not finite.
    """
    with evaluating(model), evaluating(pruned), torch.no_grad():
        (loss, own) = called(model, batch, "compress")
        (new_loss, other) = called(pruned, batch, "compress")
    if own.shape != other.shape or not own.numel() or not other.isfinite().all():
        raise ValueError(
            f"compress: the models' outputs are of shapes {list(own.shape)} and "
            f"{list(other.shape)}; expected finite ones of one shape: give another batch"
        )
    models = [list(one.parameters()) for one in (model, pruned)]
    counts, sizes = zip(
        *((sum(p.numel() for p in one), sum(p.nbytes for p in one)) for one in models), strict=True
    )
    return Report(
        parameters=counts,
        bytes=sizes,
        largest=own.abs().max().item(),
        difference=(own.double() - other.double()).abs().max().item(),
        loss=None if loss is None or new_loss is None else (loss, new_loss),
    )
