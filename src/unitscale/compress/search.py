"""Which of many shapes of one size is best: each pruned, retrained a little, and ranked by loss."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unitscale.anatomy.architecture import architecture_of
from unitscale.anatomy.output import called, evaluating
from unitscale.anatomy.shape import Shape, shape_of
from unitscale.compress import shape as shapes
from unitscale.compress.apply import apply
from unitscale.compress.distil import Distillation, distil
from unitscale.compress.importance import Importance
from unitscale.compress.plan import Plan, plan

__all__ = ["Candidate", "candidates", "search"]

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape that was tried.

    Attributes:
        plan: what was kept; parameters: that it has.
        pruned_loss: before any training; loss: after it.
    """

    plan: Plan
    parameters: int
    pruned_loss: float
    loss: float

    def __str__(self) -> str:
        return (
            f"{self.plan.target}: {self.parameters:,} parameters, loss {self.pruned_loss:.4f} -> "
            f"{self.loss:.4f}"
        )


def candidates(model: nn.Module, parameters: int, *, tolerance: float = 0.05) -> list[Shape]:
    """Shapes of about so many parameters, those nearest to the model's proportions first.

    Args:
        tolerance: by what share the number may differ.
    Raises:
        ValueError: more parameters than the model has, or no shape of that number.
    """
    known = architecture_of(model, "compress")
    config: Any = model.config
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return shapes.candidates(own, shape_of(config, known), known, parameters, tolerance)


def search(
    model: nn.Module,
    targets: Sequence[Shape],
    *,
    importance: Importance,
    train: Callable[[], Batches],
    valid: Sequence[Mapping[str, Any]],
    lr: float = 1e-3,
) -> list[Candidate]:
    """Prune to each shape, retrain it a little by distillation, and rank: the best first.

    The model is the teacher, in its own numerics, and stays as it is; students are in its recipe.
    A ranking right after pruning is not that after training, so train some hundred steps.

    Args:
        train: gives the batches of the short training, the same for each shape.
        valid: batches with labels, by whose mean loss shapes are ranked.
        lr: of AdamW.

    Raises:
        ValueError: no shape, no batch, or a loss that is not finite.
    """
    if not targets:
        raise ValueError("compress: there is no shape to try; expected at least one")
    if not valid:
        raise ValueError("compress: there is no batch to rank by; expected at least one")
    plans = [plan(model, target, importance=importance) for target in targets]
    found = []
    for made in plans:
        student = apply(model, made)
        before = mean_loss(student, valid)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
        student.train()
        distil(Distillation(model, student, made), train(), optimizer)
        found.append(
            Candidate(
                plan=made,
                parameters=made.parameters[1],
                pruned_loss=before,
                loss=mean_loss(student, valid),
            )
        )
    return sorted(found, key=lambda one: one.loss)


def mean_loss(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> float:
    """The mean loss over batches with labels, in eval().

    Raises:
        ValueError: the model gives no loss, or one that is not finite.
    """
    with evaluating(model), torch.no_grad():
        losses = [
            called(model, batch, "compress", number=number)[0]
            for number, batch in enumerate(batches)
        ]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        raise ValueError("compress: the model gives no loss; batches need labels")
    mean = sum(known) / len(known)
    if not abs(mean) < float("inf"):  # false for NaN
        raise ValueError(f"compress: the loss is {mean}; give other batches, or a smaller lr")
    return mean
