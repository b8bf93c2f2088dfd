"""The names of a grown model's parameters and tensors, from those of the small one."""

from collections.abc import Iterator

from unitscale.anatomy.architecture import in_layer, names_at_depth, starred
from unitscale.growth.plan import Plan

__all__ = ["dense_name", "dense_names", "descendants", "parameter_names", "router_name"]

EXPERTS, ROUTER = "experts", "router"
"""Where the copies of an MLP and what chooses among them are, in place of it."""


def dense_names(made: Plan) -> list[str]:
    """The parameters of the grown model before its MLPs are replaced."""
    return names_at_depth(made.shapes, made.known.layers, made.target.depth)


def parameter_names(made: Plan) -> list[str]:
    """The parameters of the grown model."""
    found = [expert for name in dense_names(made) for expert in expert_names(name, made)]
    if made.target.experts > 1:
        found += [router_name(layer, made) for layer in range(made.target.depth)]
    return found


def router_name(layer: int, made: Plan) -> str:
    """The parameter of a layer's router."""
    return f"{made.known.layers}.{layer}.{made.known.mlp}.{ROUTER}.weight"


def expert_names(name: str, made: Plan) -> Iterator[str]:
    """What becomes of a name in the grown, dense model: one of each expert, if it is in an MLP."""
    star, layer = starred(name, made.known.layers)
    before = f"{made.known.layers}.*.{made.known.mlp}."
    if made.target.experts == 1 or layer is None or not star.startswith(before):
        yield name
        return
    mlp = f"{made.known.layers}.{layer}.{made.known.mlp}"
    for expert in range(made.target.experts):
        yield f"{mlp}.{EXPERTS}.{expert}.{star.removeprefix(before)}"


def dense_name(name: str, made: Plan) -> str | None:
    """The inverse of `expert_names`; of a router it is its MLP's first parameter.

    None where there is no such MLP.
    """
    star, layer = starred(name, made.known.layers)
    before = f"{made.known.layers}.*.{made.known.mlp}."
    if made.target.experts == 1 or layer is None or not star.startswith(before):
        return name
    first, _, rest = star.removeprefix(before).partition(".")
    if first == ROUTER:
        start = in_layer(before, layer)
        return next((n for n in dense_names(made) if n.startswith(start)), None)
    return in_layer(before, layer) + rest.partition(".")[2]


def descendants(name: str, made: Plan) -> Iterator[str]:
    """The names in the grown model of what was one tensor or parameter of the small one."""
    star, layer = starred(name, made.known.layers)
    if layer is None:
        yield name
        return
    for number, source in enumerate(made.sources):
        if source == layer:
            yield from expert_names(in_layer(star, number), made)
