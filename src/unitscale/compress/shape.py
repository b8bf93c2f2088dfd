"""The shape to prune to: asked for, or found for a number of parameters, and checked."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from unitscale.anatomy.architecture import Architecture, starred
from unitscale.anatomy.shape import (
    Shape,
    check_groups,
    check_head_size,
    check_numbers,
    check_width,
    nearest,
)

__all__ = ["candidates", "count", "shape_for", "target_of"]

SIZES = ("width", "depth", "heads", "kv_heads", "ffn")
STEPS = 16
"""Sizes of each kind that are tried for a budget."""

DEPTH_WEIGHT = 4.0
"""How much rather a model gets narrower than shallower by the same factor: width keeps more of it
(arXiv 2407.14679, best practice 4)."""

Shapes = Mapping[str, tuple[int, ...]]


def target_of(old: Shape, architecture: Architecture, given: Mapping[str, int | None]) -> Shape:
    """The shape to prune to: what was asked for; the rest stays.

    Where heads have no size of their own in the configuration (GPT-2, BERT, ViT), heads and width
    follow one another.

    Raises:
        ValueError: a size that is no positive number or larger than the model's; heads that do not
            divide.
    """
    asked = {name: size for name, size in given.items() if size is not None}
    check_numbers(asked, "compress")
    for name, size in asked.items():
        if size > getattr(old, name):
            raise ValueError(
                f"compress: {name} is {size}, and the model's is {getattr(old, name)}; expected at "
                "most that: pruning makes no model larger"
            )
    if not architecture.fields["kv_heads"]:
        if asked.get("kv_heads", asked.get("heads")) != asked.get("heads"):
            raise ValueError(
                f"compress: kv_heads is {asked['kv_heads']}; a {architecture.name} has as many as "
                "query heads: leave kv_heads out"
            )
        asked |= {"kv_heads": asked["heads"]} if "heads" in asked else {}
    if not architecture.fields["head_dim"]:
        asked = with_heads(old, architecture, asked)
    elif "heads" not in asked and "kv_heads" in asked:
        asked["heads"] = asked["kv_heads"] * (old.heads // old.kv_heads)
    elif "heads" in asked and "kv_heads" not in asked and old.heads == old.kv_heads:
        asked["kv_heads"] = asked["heads"]  # they are not grouped, and stay so
    target = replace(old, **asked)
    check_width(target, "compress", most=old.width)
    check_groups(target, "compress")
    if target.heads // target.kv_heads > old.heads // old.kv_heads:
        raise ValueError(
            f"compress: {target.heads} heads in {target.kv_heads} groups are more in a group than "
            f"{old.heads} in {old.kv_heads}; heads stay in their group: give more kv_heads"
        )
    return target


def with_heads(old: Shape, architecture: Architecture, asked: dict[str, int]) -> dict[str, int]:
    """The sizes with heads that make up the width.

    Raises:
        ValueError: they cannot.
    """
    width, heads = asked.get("width"), asked.get("heads")
    if width is None and heads is None:
        return asked
    width = heads * old.head_dim if width is None and heads is not None else width
    assert width is not None
    if width % old.head_dim or heads not in (None, width // old.head_dim):
        whole = f"{nearest(width, old.head_dim, most=old.width)}, a multiple of {old.head_dim}"
        whole = whole if width % old.head_dim else ""
        given = f"and heads is {heads}" if heads is not None else ""
        raise ValueError(
            f"compress: width is {width} {given}".rstrip()
            + f"; heads of {old.head_dim}, which keep their size, make up the width of a "
            f"{architecture.name}: expected {whole or f'heads={width // old.head_dim}'}"
        )
    return {**asked, "width": width, "heads": width // old.head_dim} | {
        "kv_heads": width // old.head_dim
    }


def sizes_of(shape: Shape) -> dict[str, int]:
    """How long the axes of each space are."""
    return {
        "residual": shape.width,
        "q": shape.heads * shape.head_dim,
        "kv": shape.kv_heads * shape.head_dim,
        "ffn": shape.ffn,
    }


def count(shapes: Shapes, architecture: Architecture, shape: Shape) -> int:
    """The parameters of a model of another shape.

    Args:
        shapes: of the parameters of a model that is there, tied ones once.
    """
    sizes, total = sizes_of(shape), 0
    for name, own in shapes.items():
        star, layer = starred(name, architecture.layers)
        if layer not in (None, 0):
            continue
        axes = (
            size if use is None else sum(sizes[space] for space in use.spaces)
            for size, use in zip(own, architecture.tensors[star], strict=True)
        )
        total += math.prod(axes) * (1 if layer is None else shape.depth)
    return total


def steps(old: int, unit: int = 1) -> list[int]:
    """At most `STEPS` sizes up to an old one, multiples of a unit."""
    stride = max(1, math.ceil(old / unit / STEPS)) * unit
    return sorted({*range(stride, old + 1, stride), old})


def grid(old: Shape, architecture: Architecture) -> Iterator[Shape]:
    """Shapes that a model can be pruned to."""
    has_dim, members = bool(architecture.fields["head_dim"]), old.heads // old.kv_heads
    for depth in steps(old.depth):
        for kv_heads in steps(old.kv_heads):
            heads = kv_heads * members
            for width in steps(old.width) if has_dim else [heads * old.head_dim]:
                if width % heads:
                    continue  # transformers would not load it
                for ffn in steps(old.ffn):
                    yield replace(
                        old, depth=depth, heads=heads, kv_heads=kv_heads, width=width, ffn=ffn
                    )


def candidates(
    shapes: Shapes,
    old: Shape,
    architecture: Architecture,
    parameters: int,
    tolerance: float = 0.05,
) -> list[Shape]:
    """Shapes of about so many parameters, those nearest to the model's proportions first.

    Raises:
        ValueError: more parameters than the model has, or none of that number.
    """
    own = count(shapes, architecture, old)
    if type(parameters) is not int or parameters < 1:
        raise ValueError(
            f"compress: parameters is {parameters!r}; expected a whole number of at least 1"
        )
    if parameters > own:
        raise ValueError(
            f"compress: the target is {parameters:,} parameters, and the model has {own:,}; "
            "expected at most that"
        )
    found, nearest = [], own
    for shape in grid(old, architecture):
        number = count(shapes, architecture, shape)
        if abs(number - parameters) < abs(nearest - parameters):
            nearest = number
        if abs(number - parameters) <= tolerance * parameters:
            found.append(shape)
    if not found:
        raise ValueError(
            f"compress: no shape has {parameters:,} parameters, to {tolerance:.0%}; the nearest "
            f"has {nearest:,}"
        )
    return sorted(found, key=lambda shape: lopsidedness(old, shape))


def lopsidedness(old: Shape, new: Shape) -> float:
    """How unlike the cuts of width, heads and MLP are, and how much depth is cut."""
    cuts = {name: math.log(getattr(old, name) / getattr(new, name)) for name in SIZES}
    wide = [cuts["width"], cuts["heads"], cuts["ffn"]]
    mean = sum(wide) / len(wide)
    return sum((cut - mean) ** 2 for cut in wide) + DEPTH_WEIGHT * cuts["depth"] ** 2


def shape_for(shapes: Shapes, old: Shape, architecture: Architecture, parameters: int) -> Shape:
    """The shape for a number of parameters: at most so many where one is within 5 %."""
    found = candidates(shapes, old, architecture, parameters)
    within = [one for one in found if count(shapes, architecture, one) <= parameters]
    return (within or found)[0]


def asked_by(target: Any, old: Shape) -> dict[str, int]:
    """The sizes that a `Shape` asks for.

    Raises:
        ValueError: it is none, or of another kind of model.
    """
    if not isinstance(target, Shape):
        raise ValueError(f"compress: the target is a {type(target).__name__}; expected a Shape")
    check_head_size(target, old, "compress")
    if target.experts != 1:
        raise ValueError(
            f"compress: the target has {target.experts} experts; pruning makes no mixture: "
            "expected experts=1"
        )
    return {name: getattr(target, name) for name in SIZES}
