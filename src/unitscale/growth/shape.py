"""The shape to grow to: asked for, and checked."""

import math
from dataclasses import fields
from typing import Any

from unitscale.anatomy.architecture import Architecture
from unitscale.anatomy.shape import (
    Shape,
    check_groups,
    check_head_size,
    check_numbers,
    check_width,
    nearest,
    shape_of,
    sized,
)

__all__ = ["asked_by", "config_of", "target_of"]


GIVEN = tuple(f.name for f in fields(Shape) if f.name != "head_dim")
"""What a person may ask for."""


def target_of(small: Shape, architecture: Architecture, given: dict[str, int | None]) -> Shape:
    """The shape to grow to: what was asked for, and the rest in proportion to the width.

    Raises:
        ValueError: a size that is no positive number or is smaller than the model's; heads that do
            not divide; nothing to grow.
    """
    asked = {name: size for name, size in given.items() if size is not None}
    check_numbers(asked, "growth")
    for name, size in asked.items():
        if size < getattr(small, name):
            raise ValueError(
                f"growth: {name} is {size}, and the model's is {getattr(small, name)} already; "
                "expected at least that: growth makes no model smaller"
            )
    width = asked.get("width", small.width)
    sizes = {"width": width, "depth": asked.get("depth", small.depth)}
    following = [name for name in ("heads", "kv_heads", "ffn") if name not in asked]
    if not architecture.fields["kv_heads"] and "kv_heads" in following:
        following.remove("kv_heads")  # as many as heads
    unit = math.lcm(*(small.width // math.gcd(small.width, getattr(small, n)) for n in following))
    sizes |= {name: in_proportion(name, small, width, unit) for name in following}
    sizes |= {name: asked[name] for name in ("heads", "kv_heads", "ffn") if name in asked}
    sizes.setdefault("kv_heads", sizes["heads"])
    target = Shape(**sizes, head_dim=small.head_dim, experts=asked.get("experts", 1))
    check_heads(small, target, architecture)
    if target == small:
        raise ValueError(f"growth: the target is the model's own shape ({small}); ask for more")
    return target


def in_proportion(name: str, small: Shape, width: int, unit: int) -> int:
    """A size that grows as the width does.

    Args:
        unit: of which a width must be a multiple, so that all sizes that follow it are whole.
    Raises:
        ValueError: it would be no whole number.
    """
    own: int = getattr(small, name)
    grown, rest = divmod(own * width, small.width)
    if rest:
        raise ValueError(
            f"growth: from width {small.width} to {width} the {own} {name} would be "
            f"{own * width / small.width:g}, which do not divide; give {name}= as well, or a "
            f"width of {nearest(width, unit, small.width + 1)}, a multiple of {unit}"
        )
    return grown


def check_heads(small: Shape, target: Shape, architecture: Architecture) -> None:
    """Refuse heads that do not divide, or that divide no width.

    Raises:
        ValueError: says which.
    """
    if not architecture.fields["kv_heads"] and target.kv_heads != target.heads:
        raise ValueError(
            f"growth: kv_heads is {target.kv_heads} and heads is {target.heads}; a "
            f"{architecture.name} has as many of both: leave kv_heads out"
        )
    check_groups(target, "growth")
    if target.heads // target.kv_heads < small.heads // small.kv_heads:
        raise ValueError(
            f"growth: {target.heads} heads in {target.kv_heads} groups are fewer in a group than "
            f"{small.heads} in {small.kv_heads}; each group keeps its queries: give more heads, or "
            "fewer kv_heads"
        )
    if not architecture.fields["head_dim"] and target.heads * small.head_dim != target.width:
        raise ValueError(
            f"growth: {target.heads} heads of {small.head_dim} are not the width of "
            f"{target.width}, as in a {architecture.name}; heads keep their size: expected a "
            f"width of {target.heads * small.head_dim}"
        )
    check_width(target, "growth", least=small.width)


def config_of(config: Any, small: Shape, target: Shape, architecture: Architecture) -> Any:
    """The configuration of the grown model.

    Over a padded width a norm sees the variance shrink, so that its epsilon shrinks as well.
    """
    grown = sized(config, small, target, architecture)
    if target.width % small.width:
        eps = architecture.fields["eps"]
        setattr(grown, eps, getattr(config, eps) * small.width / target.width)
    return grown


def asked_by(config: Any, model: Any, architecture: Architecture) -> dict[str, int | None]:
    """The sizes that a target configuration asks for, if it says nothing else.

    Raises:
        ValueError: another architecture, or another setting that is no size.
    """
    kind = getattr(config, "model_type", None)
    if kind != architecture.name:
        raise ValueError(
            f"growth: the target is of model_type {kind!r}, and the model of {architecture.name!r}"
        )
    target, small = shape_of(config, architecture), shape_of(model.config, architecture)
    check_head_size(target, small, "growth")
    sizes = {own for own in architecture.fields.values() if own}
    follows = sizes | {"transformers_version", "architectures", "dtype", "_name_or_path"}
    follows |= {"pooler_output_size", "layer_types"}
    wanted, own = config.to_dict(), model.config.to_dict()
    for name in sorted(wanted.keys() | own.keys()):
        if name not in follows and wanted.get(name) != own.get(name):
            raise ValueError(
                f"growth: the target's {name} is {wanted.get(name)!r}, and the model's "
                f"{own.get(name)!r}; growth changes sizes only"
            )
    return {name: getattr(target, name) for name in GIVEN if name != "experts"}
