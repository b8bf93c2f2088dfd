"""The shape of a model: the sizes that can change, their checks, and a configuration of others."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unitscale.anatomy.architecture import Architecture

__all__ = [
    "Shape",
    "check_groups",
    "check_head_size",
    "check_numbers",
    "check_width",
    "nearest",
    "shape_of",
    "sized",
]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model.

    Attributes:
        width: of the residual stream.
        depth: layers.
        heads: of the queries; kv_heads: of keys and values, as many unless they are grouped.
        head_dim: elements of a head, which never changes.
        ffn: of the inner layer of an MLP.
        experts: copies of each MLP; 1 is the dense model.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    experts: int = 1

    def __str__(self) -> str:
        kv = f" ({self.kv_heads} of keys and values)" if self.kv_heads != self.heads else ""
        experts = f", {self.experts} experts" if self.experts > 1 else ""
        return (
            f"width {self.width}, depth {self.depth}, {self.heads} heads{kv} of {self.head_dim}, "
            f"ffn {self.ffn}{experts}"
        )


def shape_of(config: Any, architecture: Architecture) -> Shape:
    """The shape that a configuration of `transformers` says."""
    names = architecture.fields
    width, heads = getattr(config, names["width"]), getattr(config, names["heads"])
    own_dim = getattr(config, names["head_dim"], None) if names["head_dim"] else None
    own_kv = getattr(config, names["kv_heads"], None) if names["kv_heads"] else None
    return Shape(
        width=width,
        depth=getattr(config, names["depth"]),
        heads=heads,
        kv_heads=own_kv or heads,
        head_dim=own_dim or width // heads,
        ffn=getattr(config, names["ffn"]) or 4 * width,  # GPT-2's default is None
    )


def sized(config: Any, old: Shape, new: Shape, architecture: Architecture) -> Any:
    """A copy of a configuration with other sizes, and nothing else."""
    found = copy.deepcopy(config)
    sizes = asdict(new)
    for name, own in architecture.fields.items():
        if own and name in sizes and sizes[name] != getattr(old, name):
            setattr(found, own, sizes[name])
    if architecture.fields["head_dim"]:
        setattr(found, architecture.fields["head_dim"], new.head_dim)
    if new.width != old.width:
        setattr(found, architecture.fields["ffn"], new.ffn)  # GPT-2's None follows the width
    return found


def check_numbers(asked: Mapping[str, Any], who: str) -> None:
    """Refuse sizes that are no positive whole numbers.

    Args:
        who: asks, for the errors, as in all of these.
    Raises:
        ValueError: says which.
    """
    for name, size in asked.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{who}: {name} is {size!r}; expected a whole number of at least 1")


def check_groups(shape: Shape, who: str) -> None:
    """Refuse heads that do not divide into their groups.

    Raises:
        ValueError: says which.
    """
    if shape.heads % shape.kv_heads:
        raise ValueError(
            f"{who}: {shape.heads} heads do not divide into {shape.kv_heads} groups; expected a "
            "multiple of kv_heads"
        )


def check_head_size(target: Shape, own: Shape, who: str) -> None:
    """Refuse a target with heads of another size.

    Raises:
        ValueError: says both sizes.
    """
    if target.head_dim != own.head_dim:
        raise ValueError(
            f"{who}: the target's heads are of {target.head_dim}, and the model's of "
            f"{own.head_dim}; heads keep their size: ask for more or fewer of them"
        )


def check_width(shape: Shape, who: str, *, least: int = 1, most: int | None = None) -> None:
    """Refuse a width that heads do not divide, which transformers neither saves nor loads.

    It says so of a Llama too, whose heads have a size of their own.

    Args:
        least, most: the widths that can be had, for the error.
    Raises:
        ValueError: names the nearest widths that work.
    """
    if shape.width % shape.heads:
        raise ValueError(
            f"{who}: width is {shape.width} with {shape.heads} heads; transformers saves and loads "
            "no model whose heads do not divide its width: expected a width of "
            f"{nearest(shape.width, shape.heads, least, most)}, or heads that divide {shape.width}"
        )


def nearest(size: int, unit: int, least: int = 1, most: int | None = None) -> str:
    """The multiples of a unit that are nearest to a size on either side, as "16 or 20".

    Args:
        least, most: between which they lie; "" if none does.
    """
    below = size // unit * unit
    found = [n for n in (below, below + unit) if n >= least and (most is None or n <= most)]
    return " or ".join(map(str, found))
