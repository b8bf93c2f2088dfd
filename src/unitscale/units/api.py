"""The calls a person makes: scale a model, read its units, measure again, keep them in a file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.nn.parallel import DistributedDataParallel

from unitscale.formats import FloatFormat
from unitscale.graph.engine import compiled_call
from unitscale.recipes import Operand, Recipe, parse
from unitscale.units.forward import attach, detach, require_session, session_of
from unitscale.units.overview import Summary, summarize
from unitscale.units.placing import (
    NOTHING,
    Beside,
    Skip,
    fused_weights,
    placed,
    skipped_by,
    warn_of_what_is_missing,
)
from unitscale.units.replicas import agree, groups_of
from unitscale.units.row import UnitRow
from unitscale.units.schedule import Remeasure
from unitscale.units.session import Session

M = TypeVar("M", bound=nn.Module)


def unit_scale(
    model: M,
    recipe: str | Recipe = "fp8",
    *,
    inner: str | Callable[..., Any] = "auto",
    remeasure: Remeasure = "geometric",
    skip: Skip = (),
    activations: FloatFormat | None = None,
    saved: FloatFormat | Operand | None = None,
) -> M:
    """Hold every tensor of an existing model at RMS about 1, with products in low precision.

    In place: class, parameters, `state_dict`, optimizer and learning rate stay as they are, and
    so does the function computed: in FP32 the loss and gradients are those of the plain model to
    the bit.

    Args:
        model: any module; its forward is captured at the first call, by torch.compile.
        recipe: a name of `unitscale.recipes.RECIPES` or a `Recipe`; "fp32-units" rounds nothing.
        inner: the torch.compile backend that runs the result. "auto" is "inductor" on an
            accelerator and "eager", which starts at once, on a CPU.
        remeasure: training calls at which units are measured: "geometric" (0, 1, 2, 4, 8,
            every 16th to 256, then eight in each doubling, in the end every 1,024th), "drift"
            (those and every 64th), "once", "never" or a collection of steps. A measuring step is an
            ordinary step of the recipe.
        skip: patterns of module paths (as in fnmatch) whose products stay in full precision, with
            all that is inside of those modules; or a function of a path and its module that says
            whether to skip it, True or False, of every module inside of the model.
        activations: a format, FP16 say, that every tensor between products is rounded to, and
            its gradient; None leaves them in the model's dtype.
        saved: what is held between forward and backward outside of products: a format, E4M3FN
            say, in which element-wise functions save their inputs at their units; or an `Operand`
            with a scale that is computed, in which those and norms do, as in recipe "coat". Less
            memory, and a gradient that is off by a few percent there.

    Raises:
        TypeError: not a module. ValueError: already compiled or scaled, unknown recipe, a pattern
            that matches no module, patterns that leave nothing to round, an executor that the
            device does not have.
    Source: unit scaling after Blake, Orr, Luschi 2023; units as potentials, see docs/units.md.
    """
    beside = Beside((), activations, saved)
    return compile_with(
        model, recipe, scale=True, inner=inner, remeasure=remeasure, skip=skip, beside=beside
    )


def apply_recipe(
    model: M,
    recipe: str | Recipe,
    *,
    inner: str | Callable[..., Any] = "auto",
    remeasure: Remeasure = "never",
    skip: Skip = (),
) -> M:
    """Round the operands of a model's products, in place, and leave its scales to the model.

    For a model written unit-scaled, whose operands are cast as they are, and for the rivals that
    find a scale at each product. A recipe that `unit_scale` would scale is taken without its
    units. `remeasure` lists steps at which tensors are measured (nothing is scaled by it): see
    `units`.

    Raises: as `unit_scale`.
    """
    return compile_with(model, recipe, scale=False, inner=inner, remeasure=remeasure, skip=skip)


def compile_with(
    model: M,
    recipe: str | Recipe,
    *,
    scale: bool,
    inner: str | Callable[..., Any],
    remeasure: Remeasure,
    skip: Skip,
    beside: Beside = NOTHING,
) -> M:
    """Check the arguments, then compile the model with a session as its backend."""
    recipe = parse(recipe)
    caller = "unit_scale" if scale else "apply_recipe"
    check_model(model, caller)
    beside = replace(beside, skips=skipped_by(skip, model, caller))
    recipe = placed(recipe, model, beside, caller)
    warn_of_what_is_missing(recipe, model, scale=scale, caller=caller)
    session = Session(
        recipe, scale=scale, remeasure=remeasure, inner=inner, model=model, beside=beside
    )
    session.store.join(fused_weights(model, recipe.fused))
    attach(model, session)
    return model


def unscale(model: M) -> M:
    """Give a scaled model its plain forward back, in place; a plain one stays as it is.

    Parameters, buffers, hooks and what the optimizer knows stay. Its units are forgotten; keep them
    with `save_units`.
    """
    detach(model)
    return model


def set_recipe(model: M, recipe: str | Recipe, *, skip: Skip | None = None) -> M:
    """Go on with a scaled model under another recipe, with the units and schedule that it has.

    What was asked for beside the recipe stays: `skip`, `activations` and `saved`.

    Args:
        recipe: as for `unit_scale`; its own patterns of modules to skip take the place of those of
            the earlier recipe.
        skip: as for `unit_scale`, in the place of what was given there; None keeps that.
    Raises:
        ValueError: the model is not scaled, or inside of `full_precision`; else as `unit_scale`.
            Nothing was changed.
    """
    old = require_session(model, "set_recipe")
    if old.suspended:
        raise ValueError(
            "set_recipe: the model runs in full precision now; switch before or after the context"
        )
    recipe = parse(recipe)
    beside = old.beside
    if skip is not None:
        beside = replace(beside, skips=skipped_by(skip, model, "set_recipe"))
    recipe = placed(recipe, model, beside, "set_recipe")
    warn_of_what_is_missing(recipe, model, scale=old.scale, caller="set_recipe", stacklevel=3)
    old.terms.collect()
    session = Session(
        recipe, scale=old.scale, inner=old.inner, model=model, store=old.store, beside=beside
    )
    session.store.join(fused_weights(model, recipe.fused))
    session.store.forget_zeros()
    detach(model)
    attach(model, session)
    return model


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Run a scaled model as the plain one inside of the context.

    Nothing is rounded or measured, and these calls do not count in the schedule. Nested contexts
    end with the outermost.

    Raises:
        ValueError: the model is not scaled.
    """
    session = require_session(model, "full_precision")
    with session.aside():
        yield


def check_model(model: Any, caller: str) -> None:
    """Refuse what cannot be captured in place."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: got {type(model).__name__}; expected a torch.nn.Module.")
    name = type(model).__name__
    if session_of(model) is not None:
        raise ValueError(
            f"{caller}: this {name} is already scaled; call us.set_recipe(model, recipe) to change "
            "its recipe, or us.unscale(model) first."
        )
    if compiled_call(model) is not None or hasattr(model, "_orig_mod"):
        raise ValueError(
            f"{caller}: this {name} is already compiled; pass the plain model, "
            f"{caller} compiles it (choose the compiler with inner=)."
        )
    inner = [path for path, m in model.named_modules() if m is not model and session_of(m)]
    if inner:
        raise ValueError(
            f"{caller}: {', '.join(map(repr, inner[:3]))} of this {name} is scaled already, and "
            "would keep its own recipe; call us.unscale on it first, and scale the whole model."
        )


def recalibrate(model: nn.Module) -> None:
    """Make the next training call of a scaled model a measuring step, whatever the schedule.

    Data-parallel copies measure too, if one of them is told to.
    """
    require_session(model, "recalibrate").store.requested = True


def share_units(model: nn.Module) -> None:
    """Give all processes of a run the units and amaxes of the last step now.

    They are exchanged at the next training call, else. Each process has to call it; do so before
    one of them writes a checkpoint for all. Without several processes it does nothing.

    Args:
        model: the scaled model, or the DistributedDataParallel around it.
    Raises:
        ValueError: the model is not scaled. RuntimeError: another process did not call it.
    """
    wrapper = model if isinstance(model, DistributedDataParallel) else None
    inner: nn.Module = model if wrapper is None else wrapper.module
    session = require_session(inner, "share_units")
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    session.terms.collect()
    groups = [wrapper.process_group] if wrapper else groups_of(inner) or [dist.group.WORLD]
    agree(session.store, groups)


def rows(model: nn.Module) -> list[UnitRow]:
    """One row per tensor of a scaled model's graphs: its unit, its RMS, and why it has none."""
    return require_session(model, "units").rows()


def summary(model: nn.Module) -> Summary:
    """How far the recipe holds in a scaled model; prints as a table.

    The products by what multiplies them, with their share of the multiply-adds, and the modules
    that are not covered, with the reason. It tells of what has run so far.

    Raises:
        ValueError: the model is not scaled.
    """
    return summarize(require_session(model, "summary"))


def coverage(model: nn.Module) -> float:
    """Share in [0, 1] of a scaled model's multiply-adds whose operands the recipe rounds.

    Raises:
        ValueError: the model is not scaled.
    """
    return summary(model).coverage


@contextmanager
def measured(model: nn.Module) -> Iterator[list[UnitRow]]:
    """Measure a plain or scaled model on what is run inside: `with measured(model) as rows: ...`.

    The list fills when the block ends; the model is not changed. A plain model is captured, run
    as it is, and left plain.
    """
    found: list[UnitRow] = []
    temporary = session_of(model) is None
    if temporary:
        apply_recipe(model, "fp32", inner="eager")
    session = require_session(model, "measured")
    session.store.requested = True
    try:
        yield found
    finally:
        session.store.requested = False
        found.extend(session.rows())
        if temporary:
            detach(model)


def measure(model: nn.Module, *inputs: Any) -> list[UnitRow]:
    """Rows of one forward and backward pass on `inputs`; the model must return its scalar loss.

    Parameter gradients are left as they were, and so is torch's random state.
    """
    kept = [(p, p.grad) for p in model.parameters()]
    state = torch.get_rng_state()
    for parameter, _ in kept:
        parameter.grad = None
    try:
        with measured(model) as found:
            model(*inputs).backward()
    finally:
        torch.set_rng_state(state)
        for parameter, grad in kept:
            parameter.grad = grad
    return found


def backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The torch.compile backend "unitscale": `torch.compile(model, backend="unitscale")`.

    `options`: recipe (default "fp8"), inner, remeasure and skip, as for `unit_scale`; a recipe
    without units measures only if told to. Each graph has units of its own; to read or save them
    use `unit_scale`.
    """
    given: dict[str, Any] = {"recipe": "fp8", "inner": "auto", "remeasure": None, "skip": ()}
    unknown = (options or {}).keys() - given.keys()
    if unknown:
        raise ValueError(
            f"backend 'unitscale': unknown options {sorted(unknown)}; expected {list(given)}."
        )
    given |= options or {}
    if isinstance(given["skip"], str) or callable(given["skip"]):
        raise TypeError(
            f"backend 'unitscale': skip is {given['skip']!r}; expected a list of patterns"
        )
    recipe = parse(given["recipe"])
    recipe = replace(recipe, skip=(*recipe.skip, *given["skip"]))
    default: Remeasure = "geometric" if recipe.unit_scaled else "never"
    session = Session(
        recipe,
        scale=recipe.unit_scaled,
        remeasure=default if given["remeasure"] is None else given["remeasure"],
        inner=given["inner"],
    )
    return session(module, example_inputs)
