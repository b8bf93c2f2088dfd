"""The units at which the layers of a scaled model take their inputs and weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from unitscale.graph.name import module_path
from unitscale.recipes import Gemm, Recipe
from unitscale.units.forward import require_session
from unitscale.units.given import taken_by
from unitscale.units.products import kind_of

__all__ = ["LayerUnit", "give_units", "layer_units", "recipe_of"]


@dataclass(frozen=True, kw_only=True)
class LayerUnit:
    """One rounded product of a model: a layer, if it has a parameter.

    Args:
        path: of the module that it is in.
        op: the kind of product, as rules name it.
        gemm: how its operands are rounded.
        weight: name of the parameter; None of a product without one.
        input: name of the tensor that comes in, as in `us.unit_rows`; None likewise.
        weight_log2, input_log2: the operands are rounded as `t / 2**log2`; None where no unit was
            measured or given.
        is_training: whether its graph records gradients. What evaluation computes may differ: it
            has no dropout.
    """

    path: str
    op: str
    gemm: Gemm
    weight: str | None
    input: str | None
    weight_log2: int | None
    input_log2: int | None
    is_training: bool


def layer_units(model: nn.Module) -> list[LayerUnit]:
    """One row for each rounded product of each graph that ran.

    Raises:
        ValueError: the model is not scaled.
    """
    session = require_session(model, "layer_units")
    session.terms.collect()
    units, found = session.store.units, []
    for executable in session.executables:
        for prefix, place in executable.places.items():
            known = {taken.node: taken for taken in taken_by(place.program)}
            for node, gemm in place.program.rounded.items():
                taken = known.get(node)
                x = None if taken is None else prefix + taken.input
                weight = None if taken is None else prefix + taken.weight
                found.append(
                    LayerUnit(
                        path=(prefix + module_path(node)).removesuffix("."),
                        op=kind_of(node),
                        gemm=gemm,
                        weight=weight,
                        input=x,
                        weight_log2=units[weight].s if weight in units else None,
                        input_log2=units[x].s if x in units else None,
                        is_training=executable.training,
                    )
                )
    return found


def evaluated_parameters(model: nn.Module) -> set[str]:
    """The parameters, by name, of what has run without gradients, under the recipe or beside it.

    Raises:
        ValueError: the model is not scaled.
    """
    session = require_session(model, "evaluated_parameters")
    session.terms.collect()
    found = {
        prefix + name
        for executable in session.executables
        if not executable.training
        for prefix in executable.places
        for _, name in executable.slots
    }
    # Of a module beside the graphs nobody knows in which mode it ran; a warning has named it.
    return found | {
        f"{path}.{name}" if path else name
        for path in session.plain
        for name, _ in model.get_submodule(path).named_parameters()
    }


def recipe_of(model: nn.Module, caller: str) -> Recipe:
    """The recipe of a scaled model, as it was placed in it.

    Raises:
        ValueError: the model is not scaled, or runs in full precision now, or has no units.
    """
    session = require_session(model, caller)
    if session.suspended:
        raise ValueError(f"{caller}: the model runs in full precision now; call it outside of that")
    if not session.scale:
        raise ValueError(
            f"{caller}: recipe {session.recipe.name!r} was applied without units; call "
            "us.unit_scale(model, 'fp8-serve') instead of us.apply_recipe"
        )
    return session.recipe


def give_units(model: nn.Module, given: Mapping[str, tuple[int, int]]) -> None:
    """Give a scaled model the units of its layers, in every graph that it will have.

    Before its first call. Let it measure nothing (`remeasure="never"`), or it replaces them.

    Args:
        given: by the name of a weight, log2 of its unit and of that of the input.
    Raises:
        ValueError: the model is not scaled, or has run already; a name that is no parameter.
            Nothing was changed.
    """
    session = require_session(model, "give_units")
    if session.executables:
        raise ValueError("give_units: the model has run already; scale it anew")
    if unknown := given.keys() - {name for name, _ in model.named_parameters()}:
        raise ValueError(f"give_units: {min(unknown)!r} is no parameter of the model")
    session.store.given = dict(given)
