"""What one training step says about a model: every tensor's scale, before and after units.

Two passes over the same inputs and random numbers: the first measures the units, the second shows
every value to an observer that knows its unit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from unitscale import units
from unitscale.formats import E4M3FN, E5M2, FP16, FloatFormat
from unitscale.graph.capture import TensorNode
from unitscale.numerics import digest, flushed_fraction, saturated_fraction
from unitscale.recipes import Recipe
from unitscale.recipes.within import within
from unitscale.record.ranges import OUTSIDE, held, held_grad, share_in_range
from unitscale.record.sink import format_limits
from unitscale.record.terms import asked_of_model, complaints
from unitscale.record.what_if import ProductReader, WhatIf
from unitscale.units.forward import session_of

VALUE_FORMATS = (E4M3FN, FP16)
GRAD_FORMATS = (E5M2, FP16)
"""What the recipes round values and gradients to."""

FORMATS = (E4M3FN, FP16, E5M2)
"""All of them: the first for values, the last for gradients, as in a recording."""


class AnalysisError(RuntimeError):
    """The model did not make a training step that could be measured."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Shares of a tensor's elements that a format loses, as it is and as it is held."""

    flushed_before: float
    flushed_after: float
    saturated_before: float
    saturated_after: float


@dataclass
class Losses:
    """What the formats lose of one tensor and of its gradient, by the format's name.

    `statistics` are the digests of the two, "value" and "gradient", as a recording has them.
    """

    elements: int = 0
    value: dict[str, Loss] = field(default_factory=dict)
    grad: dict[str, Loss] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, the inputs of one step, and what makes a loss of its output (None: it is one).

    `inside` is where the user's own model lies in it: "model" if it was made a model of the loss.
    """

    model: nn.Module
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    loss_fn: Callable[[Any], Any] | None = None
    inside: str = ""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Subject":
        """The same on a device, what is float32 in another dtype; the model itself is moved."""

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(device, dtype if x.dtype == torch.float32 else x.dtype)

        self.model.to(device)
        if dtype != torch.float32:
            self.model.to(dtype)
        arguments, keywords = tree_map(moved, (self.arguments, self.keywords))
        return replace(self, arguments=arguments, keywords=keywords)

    def loss(self) -> Tensor:
        """The scalar loss of the inputs.

        Raises:
            AnalysisError: it is something else.
        """
        output = self.model(*self.arguments, **self.keywords)
        if self.loss_fn is not None:
            output = self.loss_fn(output)
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", output)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = (
                f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
            )
            raise AnalysisError(
                f"the loss is {got}; expected a scalar tensor that requires a gradient, or an "
                "object that has it as .loss; else return a loss function as well"
            )
        return loss.sum()


def subject_of(made: Any, inputs_of: Callable[[Any], tuple[Any, Any]]) -> Subject:
    """The subject in what a factory returned.

    `model, inputs` or `model, inputs, loss_fn`: the inputs are a tuple of positional arguments, a
    dict of keyword arguments, or one argument. A model alone is a language model over bytes;
    `inputs_of` gives it, as a model of the loss, and its inputs.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(made, nn.Module):
        model, arguments = inputs_of(made)
        inside = next((path for path, part in model.named_modules() if part is made), "")
        return Subject(model=model, arguments=arguments, inside=inside)
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        got = type(made).__name__
        if isinstance(made, tuple):
            got += f" of {', '.join(type(item).__name__ for item in made)}"
        raise ValueError(f"the factory returned a {got}; expected model, inputs[, loss function]")
    model, inputs, loss_fn = (*made, None)[:3]
    if isinstance(inputs, tuple):
        return Subject(model=model, arguments=inputs, loss_fn=loss_fn)
    # transformers' BatchEncoding and others have keys without being a dict.
    if hasattr(inputs, "keys"):
        return Subject(model=model, keywords=dict(inputs), loss_fn=loss_fn)
    return Subject(model=model, arguments=(inputs,), loss_fn=loss_fn)


def analyse(subject: Subject, what_if: Sequence[Recipe] = ()) -> dict[str, Any]:
    """Run the step, and say of every tensor what it is before and after units, as JSON holds it.

    The model is in training mode, and compiled, afterwards.

    Args:
        what_if: recipes, of which the result says what each would make of every product.

    Raises:
        AnalysisError: the model fails, its loss is no scalar, or a NaN turns up.
        ValueError: it is scaled or compiled already, or a recipe names modules that it has not.
    """
    model = subject.model.train()
    own = model.get_submodule(subject.inside)
    asked_of = [within(asked_of_model(recipe, own), subject.inside) for recipe in what_if]
    with failing("the model failed on its inputs"), torch.random.fork_rng():
        subject.loss()
    units.unit_scale(model, "fp32-units", inner="eager", remeasure="once")
    session = session_of(model)
    assert session is not None
    with failing("the model failed under torch.compile"):
        with torch.random.fork_rng():
            loss = subject.loss()
            loss.backward()
        rows = units.rows(model)  # takes the readings, and refuses a NaN in them
        found = {row.name: Losses() for row in rows}
        by_name = {row.name: row for row in rows}
        asked = WhatIf(asked_of, format_limits(FORMATS)) if what_if else None
        session.terms.observer = partial(Observed, by_name, found, asked)
        with torch.random.fork_rng():
            subject.loss().backward()
        session.terms.observer = None
    if not rows:
        raise AnalysisError("torch.compile captured no graph of this model")
    more: dict[str, Any] = {}
    if asked is not None:
        answers = asked.collect()
        for row in answers:  # a pattern of `skip` is for the user's model
            row["module"] = row["module"].removeprefix(f"{subject.inside}.")
            for found_of in row["recipes"].values() if subject.inside else ():
                if "why" in found_of:
                    found_of["why"] = found_of["why"].replace(f"skip='{subject.inside}.", "skip='")
        names = [recipe.name for recipe in what_if]
        said = list(complaints(answers, names, type(model).__name__, 0))
        more = {"what_if": answers, "what_if_notes": said}
    return more | {
        "model": type(model).__name__,
        "loss": loss.item(),
        "graphs": len(session.executables),
        "parameters": sum(p.numel() for p in model.parameters()),
        "share_in_range": shares(rows),
        "formats": format_limits(FORMATS),
        "tensors": [describe(row, found[row.name]) for row in rows],
    }


@contextmanager
def failing(what: str) -> Any:
    """Turn whatever a user's model raises into one line."""
    try:
        yield
    except AnalysisError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise AnalysisError(f"{what}: {type(error).__name__}: {lines[0]}") from error


class Observed:
    """Notes what the formats lose of the tensors of one graph (a `units.observe.Reader`)."""

    def __init__(
        self,
        rows: dict[str, units.UnitRow],
        found: dict[str, Losses],
        what_if: WhatIf | None,
        prefix: str,
    ) -> None:
        self.rows, self.found, self.prefix = rows, found, prefix
        self.products = None if what_if is None else ProductReader(what_if, 0, prefix)

    def read_call(self, args: Any, kwargs: Any) -> None:
        """Take the arguments of the op that was run last."""
        if self.products is not None:
            self.products.read_call(args, kwargs)

    def read(self, tensor: TensorNode, held: Tensor, log2: int, operand_log2: int | None) -> None:
        """Take a value, which is `held * 2**log2`."""
        name = self.prefix + tensor.name
        row, losses = self.rows[name], self.found[name]
        plain = held.detach() * 2.0**log2
        losses.elements = plain.numel()
        losses.value = {f.name: loss_in(f, plain, plain / row.s) for f in VALUE_FORMATS}
        losses.statistics["value"] = statistics(plain, -int(math.log2(row.s)))
        if self.products is not None:
            self.products.read(tensor, held, log2, operand_log2)

    def read_gradient(self, tensor: TensorNode, carried: Tensor, log2: int) -> None:
        """Take a gradient, which is carried as `2**log2` times the true one."""
        name = self.prefix + tensor.name
        row, losses = self.rows[name], self.found[name]
        grad = carried.detach().to_dense() * 2.0**-log2
        losses.grad = {f.name: loss_in(f, grad, grad * row.phi) for f in GRAD_FORMATS}
        losses.statistics["gradient"] = statistics(grad, int(math.log2(row.phi)))
        if self.products is not None:
            self.products.read_gradient(tensor, carried, log2)


def loss_in(fmt: FloatFormat, before: Tensor, after: Tensor) -> Loss:
    """The shares that a format loses of a tensor as it is and as it is held."""
    return Loss(
        flushed_before=flushed_fraction(before, fmt).item(),
        flushed_after=flushed_fraction(after, fmt).item(),
        saturated_before=saturated_fraction(before, fmt).item(),
        saturated_after=saturated_fraction(after, fmt).item(),
    )


def statistics(x: Tensor, held_log2: int) -> dict[str, Any]:
    """A row of a recording, of all elements."""
    found = digest(x, FORMATS, held_log2=held_log2, sample=max(x.numel(), 1))
    return {"held_log2": held_log2} | found.row()


def shares(rows: Sequence[units.UnitRow]) -> dict[str, dict[str, float | None]]:
    """Share of tensors with RMS in [1/2, 2] before and after, zeros left out."""
    inner = [row for row in rows if row.op not in OUTSIDE and row.grad_rms is not None]
    weights = [row for row in rows if row.op == "parameter"]

    def both(before: Iterable[Any], after: Iterable[Any]) -> dict[str, float | None]:
        return {"before": share_in_range(before), "after": share_in_range(after)}

    return {
        "activations": both((row.rms for row in inner), map(held, inner)),
        "gradients": both((row.grad_rms for row in inner), map(held_grad, inner)),
        "weights": both((row.rms for row in weights), map(held, weights)),
    }


def describe(row: units.UnitRow, losses: Losses) -> dict[str, Any]:
    """One tensor as JSON holds it."""
    return {
        "name": row.name,
        "op": row.op,
        "elements": losses.elements,
        "s": row.s,
        "phi": row.phi,
        "reason": row.reason,
        "rms": {"before": row.rms, "after": held(row)},
        "grad_rms": {"before": row.grad_rms, "after": held_grad(row)},
        "value_loss": {name: asdict(loss) for name, loss in losses.value.items()},
        "grad_loss": {name: asdict(loss) for name, loss in losses.grad.items()},
        "statistics": losses.statistics,
    }
