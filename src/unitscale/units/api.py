"""The calls a person makes: scale a model, read its units, measure again, keep them in a file."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx, nn

from unitscale.formats import FloatFormat
from unitscale.gemm import choose
from unitscale.graph.engine import compiled_call
from unitscale.graph.place import alias_patterns
from unitscale.recipes import Recipe, parse
from unitscale.units.forward import attach, detach, forward_of
from unitscale.units.overview import Summary, summarize
from unitscale.units.products import formats_of
from unitscale.units.row import UnitRow
from unitscale.units.schedule import Remeasure
from unitscale.units.session import Session
from unitscale.units.store import check_state

M = TypeVar("M", bound=nn.Module)


def unit_scale(
    model: M,
    recipe: str | Recipe = "fp8",
    *,
    inner: str | Callable[..., Any] = "auto",
    remeasure: Remeasure = "geometric",
    skip: Sequence[str] = (),
    activations: FloatFormat | None = None,
    saved: FloatFormat | None = None,
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
        remeasure: training calls at which units are measured: "geometric" (0, 1, 2, 4, ..., 1024,
            then every 1,024th), "drift" (those and every 64th), "once", "never" or a collection of
            steps. A measuring step is an ordinary step of the recipe.
        skip: patterns of module paths (as in fnmatch) whose products stay in full precision, with
            all that is inside of those modules.
        activations: a format, FP16 say, that every tensor between products is rounded to, and
            its gradient; None leaves them in the model's dtype.
        saved: a format, E4M3FN say, in which element-wise functions save their inputs for
            backward: less memory, and a gradient that is off by a few percent there.

    Raises:
        TypeError: not a module. ValueError: already compiled or scaled, unknown recipe, a pattern
            that matches no module, an executor that the device does not have.
    Source: unit scaling after Blake, Orr, Luschi 2023; units as potentials, see docs/units.md.
    """
    recipe = parse(recipe)
    recipe = replace(
        recipe, activations=activations or recipe.activations, saved=saved or recipe.saved
    )
    return compile_with(model, recipe, scale=True, inner=inner, remeasure=remeasure, skip=skip)


def apply_recipe(
    model: M,
    recipe: str | Recipe,
    *,
    inner: str | Callable[..., Any] = "auto",
    remeasure: Remeasure = "never",
    skip: Sequence[str] = (),
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
    skip: Sequence[str],
) -> M:
    """Check the arguments, then compile the model with a session as its backend."""
    recipe = parse(recipe)
    caller = "unit_scale" if scale else "apply_recipe"
    check_model(model, caller)
    check_patterns(model, (*recipe.skip, *skip), caller)
    check_executor(model, recipe, caller)
    warn_of_loss_scale(recipe, caller)
    patterns = (*recipe.skip, *skip)
    recipe = replace(recipe, skip=(*patterns, *alias_patterns(model, patterns)))
    session = Session(recipe, scale=scale, remeasure=remeasure, inner=inner, model=model)
    attach(model, session)
    return model


def unscale(model: M) -> M:
    """Give a scaled model its plain forward back, in place; a plain one stays as it is.

    Parameters, buffers, hooks and what the optimizer knows stay. Its units are forgotten; keep them
    with `save_units`.
    """
    detach(model)
    return model


def set_recipe(model: M, recipe: str | Recipe) -> M:
    """Go on with a scaled model under another recipe, with the units and schedule that it has.

    Args:
        recipe: as for `unit_scale`; its own patterns of modules to skip take the place of the
            earlier ones.
    Raises:
        ValueError: the model is not scaled; else as `unit_scale`. Nothing was changed.
    """
    old = require_session(model, "set_recipe")
    recipe = parse(recipe)
    check_patterns(model, recipe.skip, "set_recipe")
    check_executor(model, recipe, "set_recipe")
    recipe = replace(recipe, skip=(*recipe.skip, *alias_patterns(model, recipe.skip)))
    old.terms.collect()
    session = Session(recipe, scale=old.scale, inner=old.inner, model=model, store=old.store)
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


def warn_of_loss_scale(recipe: Recipe, caller: str) -> None:
    """Say that a recipe's loss scale is not applied by a model."""
    if recipe.loss_scale is not None:
        factor = "a factor" if recipe.loss_scale == "dynamic" else f"{recipe.loss_scale:g}"
        warnings.warn(
            f"{caller}: recipe {recipe.name!r} expects the loss times {factor} and the gradients "
            "divided by it, which a model cannot do; do both in the training loop "
            "(torch.amp.GradScaler does) and pass unitscale.recipes.without_loss_scale(recipe), or "
            "take 'fp16', which needs neither.",
            stacklevel=4,
        )


def check_patterns(model: nn.Module, patterns: Sequence[str], caller: str) -> None:
    """Every pattern must match a module."""
    paths = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = get_close_matches(pattern, paths, n=1, cutoff=0.0)
            raise ValueError(
                f"{caller}: skip={pattern!r} matches no module of {type(model).__name__}; "
                f"nearest path: {near[0] if near else '(none)'!r}."
            )


def check_executor(model: nn.Module, recipe: Recipe, caller: str) -> None:
    """Refuse FP8 products that the device of the model does not have, before it is compiled."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if not recipe.rounds or first is None:
        return
    try:
        choose(formats_of(recipe), first.dtype, first.device)
    except ValueError as error:
        raise ValueError(f"{caller}, recipe {recipe.name!r}: {error}") from None


def session_of(model: nn.Module) -> Session | None:
    """The session of a scaled model, or None."""
    forward = forward_of(model)
    return None if forward is None else forward.session


def require_session(model: nn.Module, caller: str) -> Session:
    """The session of a scaled model.

    Raises:
        ValueError: the model has none.
    """
    session = session_of(model)
    if session is None:
        raise ValueError(
            f"{caller}: this {type(model).__name__} has no units; call us.unit_scale(model) or "
            "us.apply_recipe(model, recipe) first (a pickle of a scaled model is a plain model)."
        )
    return session


def recalibrate(model: nn.Module) -> None:
    """Make the next training call of a scaled model a measuring step, whatever the schedule.

    Data-parallel copies measure too, if one of them is told to.
    """
    require_session(model, "recalibrate").store.requested = True


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


def save_units(model: nn.Module, path: str | Path) -> None:
    """Write a scaled model's units to a JSON file, to resume with (`load_units`).

    Raises:
        ValueError: the model is not scaled, or has no units yet.
    """
    session = require_session(model, "save_units")
    session.terms.collect()
    if not session.store.units:
        raise ValueError(
            f"save_units: this {type(model).__name__} has no units yet; they are set by its first "
            "training step (forward and backward) or evaluation."
        )
    content = {
        "parameters": [name for name, _ in model.named_parameters()],
        **session.store.state_dict(),
    }
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def load_units(model: nn.Module, path: str | Path) -> None:
    """Read units from a file of `save_units` into a scaled model, and where its schedule stood.

    Raises:
        ValueError: it is no such file, or one of another model: its parameters are others, or its
            tensors are not those of the graphs captured so far, if there are any. Nothing was
            changed.
    """
    session = require_session(model, "load_units")
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load_units: {path} is no file of save_units: {error}") from None
    try:
        check_state(content)
    except ValueError as error:
        raise ValueError(f"load_units: {path}: {error}") from None
    if not isinstance(content.get("parameters"), list):
        raise ValueError(f"load_units: {path} does not name the parameters of its model")
    names = set(map(str, content["parameters"]))
    check_keys(path, {name for name, _ in model.named_parameters()}, names)
    session.terms.collect()
    if captured := session.store.units.keys():
        check_keys(path, set(captured), content["units"].keys())
    session.store.load_state_dict(content)


def check_keys(path: str | Path, wanted: Set[str], found: Set[str]) -> None:
    """Refuse a file of units whose keys are not those of the model."""
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        raise ValueError(
            f"load_units: {path} is of another model; missing {missing[:5]} ({len(missing)} in "
            f"all), extra {extra[:5]} ({len(extra)} in all)."
        )


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
