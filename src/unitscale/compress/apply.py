"""A pruning carried out: a new model beside the old one, which stays as it is."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.anatomy.architecture import in_layer, starred
from unitscale.anatomy.carry import (
    Passage,
    give_session,
    value_change,
    warn_of_numbers,
)
from unitscale.anatomy.optimizer import State, carry_optimizer, moments_of
from unitscale.anatomy.output import called, evaluating
from unitscale.anatomy.planned import check_given, check_planned
from unitscale.anatomy.rebuilt import remade
from unitscale.anatomy.shape import sized
from unitscale.compress.plan import Plan
from unitscale.units.forward import session_of

__all__ = ["Report", "apply", "prune_optimizer", "pruning", "verify"]


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """The pruned model; the large one stays as it is.

    It has the class, dtype, device, mode and `requires_grad` of the large one; hooks and
    `model.compile()` are set anew. If that is scaled (`us.unit_scale`), so is this, by the same
    recipe, at units that were carried over: its first call is one of the recipe, and the second
    measures. Its optimizer: `prune_optimizer`.

    Raises:
        TypeError: no model, or no plan.
        ValueError: the plan is of another model, or was applied to this one already; the model is
            wrapped, or its parameters are masked, computed or quantized.
    """
    check_given(model, plan, "compress")
    check_planned(model, plan, plan.old, plan.target, "compress")
    config = sized(model.config, plan.old, plan.target, plan.known)
    old: dict[str, Tensor] = dict(model.named_parameters())
    pruned = remade(
        model,
        config,
        plan.names(),
        lambda name: plan.cut(name, old[plan.origin(name)].detach()),
        plan.origin,
        "compress",
    )
    if (session := session_of(model)) is not None:
        session.terms.collect()
        if plan.target.depth < plan.old.depth:
            warn_of_numbers(session, plan.known.layers, "compress")
        passage = pruning(plan, model, pruned)
        give_session(session, pruned, passage, session.recipe, session.beside)
    return pruned


def pruning(made: Plan, large: nn.Module, pruned: nn.Module) -> Passage:
    """How the tensors of a model become those of the pruned one.

    A tensor between ops holds some of what it held, so its unit stays until it is measured. The s
    of a parameter follows its values.
    """
    old: dict[str, Tensor] = dict(large.named_parameters())
    new: dict[str, Tensor] = dict(pruned.named_parameters())

    def descendants(name: str) -> Iterator[str]:
        star, layer = starred(name, made.known.layers)
        if layer is None:
            yield name
        elif layer in made.layers:
            yield in_layer(star, made.layers.index(layer))

    def change(found: str, name: str) -> tuple[int, int]:
        if found not in new or name not in old:
            return 0, 0
        return value_change(old[name], new[found]), 0

    return Passage(descendants=descendants, change=change, old=old, new=new)


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
