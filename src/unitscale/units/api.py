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
from unitscale.recipes import Recipe, parse
from unitscale.units.compiled import compile_in_place
from unitscale.units.products import formats_of
from unitscale.units.row import UnitRow
from unitscale.units.session import Remeasure, Session

ATTRIBUTE = "unitscale_session"
"""Where a model keeps its session; not a parameter, buffer or module, so no checkpoint sees it."""

M = TypeVar("M", bound=nn.Module)

UNCAPTURED = (nn.RNN, nn.LSTM, nn.GRU)


def unit_scale(
    model: M,
    recipe: str | Recipe = "fp8",
    *,
    inner: str | Callable[..., Any] = "inductor",
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
        inner: the torch.compile backend that runs the result; "eager" starts at once.
        remeasure: training steps at which units are measured: "geometric" (0, 1, 2, 4, 8, ...),
            "drift" (those and every 64th), "once", "never" or a collection of steps.
        skip: patterns of module paths (as in fnmatch) whose products stay in full precision.
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
    inner: str | Callable[..., Any] = "inductor",
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
    session = Session(
        replace(recipe, skip=(*recipe.skip, *skip)),
        scale=scale,
        remeasure=remeasure,
        inner=inner,
        model=model,
    )
    compile_in_place(model, session, session.begin_call)
    model.__dict__[ATTRIBUTE] = session
    return model


def check_model(model: Any, caller: str) -> None:
    """Refuse what cannot be compiled in place, and name what Dynamo will not capture."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: got {type(model).__name__}; expected a torch.nn.Module.")
    if session_of(model) is not None:
        raise ValueError(
            f"{caller}: this {type(model).__name__} is already scaled; use a fresh one."
        )
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise ValueError(
            f"{caller}: this {type(model).__name__} is already compiled; pass the plain model, "
            f"{caller} compiles it (choose the compiler with inner=)."
        )
    recurrent = [name for name, m in model.named_modules() if isinstance(m, UNCAPTURED)]
    if recurrent and not torch._dynamo.config.allow_rnn:
        warnings.warn(
            f"{caller}: torch.compile does not capture the recurrent modules {recurrent}, so they "
            "run as they are; set torch._dynamo.config.allow_rnn = True, or use unitscale.nn.",
            stacklevel=4,
        )


def check_patterns(model: nn.Module, patterns: Sequence[str], caller: str) -> None:
    """Every pattern must match a module."""
    paths = [name for name, _ in model.named_modules()]
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
    if recipe.executor != "scaled_mm" or first is None:
        return
    try:
        choose(formats_of(recipe), first.dtype, first.device)
    except ValueError as error:
        raise ValueError(f"{caller}, recipe {recipe.name!r}: {error}") from None


def session_of(model: nn.Module) -> Session | None:
    """The session of a scaled model, or None."""
    return model.__dict__.get(ATTRIBUTE)


def require_session(model: nn.Module, caller: str) -> Session:
    """The session of a scaled model.

    Raises:
        ValueError: the model has none.
    """
    session = session_of(model)
    if session is None:
        raise ValueError(
            f"{caller}: this {type(model).__name__} has no units; call us.unit_scale(model) or "
            "us.apply_recipe(model, recipe) first (a copy of a scaled model is a plain model)."
        )
    return session


def recalibrate(model: nn.Module) -> None:
    """Make the next training step of a scaled model a measuring step, whatever the schedule."""
    require_session(model, "recalibrate").request_measurement()


def rows(model: nn.Module) -> list[UnitRow]:
    """One row per tensor of a scaled model's graphs: its unit, its RMS, and why it has none."""
    return require_session(model, "units").rows()


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
    session.request_measurement()
    try:
        yield found
    finally:
        session.measure_next = False
        found.extend(session.rows())
        if temporary:
            model.__dict__.pop(ATTRIBUTE)
            model._compiled_call_impl = None  # what Module.compile set


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
    """Write a scaled model's units to a JSON file, to resume with (`load_units`)."""
    session = require_session(model, "save_units")
    content = {
        "parameters": [name for name, _ in model.named_parameters()],
        **session.state_dict(),
    }
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def load_units(model: nn.Module, path: str | Path) -> None:
    """Read units from a file of `save_units` into a scaled model, and where its schedule stood.

    Raises:
        ValueError: the file is of another model: its parameters are others, or its tensors are not
            those of the graphs captured so far, if there are any.
    """
    session = require_session(model, "load_units")
    content = json.loads(Path(path).read_text())
    check_keys(path, {name for name, _ in model.named_parameters()}, set(content["parameters"]))
    captured = {name for name, _ in session.tensors()}
    if captured:
        check_keys(path, captured, content["units"].keys())
    session.load_state_dict(content)


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
    given: dict[str, Any] = {"recipe": "fp8", "inner": "inductor", "remeasure": None, "skip": ()}
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
