"""What growth will do to a model, as data: made and checked before anything is changed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from unitscale.anatomy.architecture import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    in_layer,
    starred,
)
from unitscale.anatomy.planned import Planned, shapes_of
from unitscale.anatomy.rebuilt import is_tied
from unitscale.anatomy.shape import Shape, check_head_size, shape_of
from unitscale.growth.shape import asked_by, target_of
from unitscale.growth.space import Space, copied, grouped, padded
from unitscale.growth.tensor import Growth

__all__ = ["Origin", "Plan", "plan"]

Method = Literal["fpi", "aki", "aki-pro"]
DepthMethod = Literal["identity", "interpolate", "stack"]
DEPTH_METHODS: Mapping[str, DepthMethod] = {
    "fpi": "identity",
    "aki": "stack",
    "aki-pro": "interpolate",
}
"""What goes with each way to widen, unless another is asked for."""

MOST_SEEDS = 2**62
"""A hash of a name is added to a seed, and torch takes 64 bits."""


class Origin(NamedTuple):
    """Where a parameter of the grown model comes from.

    Attributes:
        name: of the small model's parameter.
        beside: the one that its new rows come from; None is the same.
        is_new: of a layer that is new.
        is_zero: and adds nothing to the residual stream.
    """

    name: str
    beside: str | None = None
    is_new: bool = False
    is_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan(Planned):
    """What growth will do.

    Attributes:
        small: the shape before; `target` is that after.
        method: how it is widened, "fpi", "aki" or "aki-pro".
        depth_method: how layers are added, "identity", "interpolate" or "stack".
        noise: relative RMS of what breaks ties between copies.
        router_std: of a mixture's router; top: experts that a token goes to.
        seed: of the noise and of routers.
        is_tied: whether the read-out is the table of embeddings.
    """

    small: Shape
    method: Method
    depth_method: DepthMethod
    noise: float
    router_std: float
    top: int
    seed: int
    is_tied: bool

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """How each space grows."""
        small, target = self.small, self.target
        groups = (small.kv_heads, small.heads // small.kv_heads)
        new_groups = (target.kv_heads, target.heads // target.kv_heads)
        return {
            "residual": padded(small.width, target.width),
            "q": grouped(groups, new_groups, small.head_dim),
            "kv": copied(small.kv_heads, target.kv_heads, small.head_dim),
            "ffn": copied(small.ffn, target.ffn),
        }

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """For each layer of the grown model the layer that it copies."""
        old, new = self.small.depth, self.target.depth
        if self.depth_method == "stack":
            return tuple(layer % old for layer in range(new))
        return tuple(layer * old // new for layer in range(new))

    @property
    def preserves(self) -> bool:
        """Whether the grown model computes what the small one does."""
        deepens = self.target.depth > self.small.depth
        return self.widens_exactly and not (deepens and self.depth_method != "identity")

    @property
    def widens_exactly(self) -> bool:
        """Whether the width grows without a change of the function, or not at all."""
        return self.method == "fpi" or not any(space.grows for space in self.spaces.values())

    def is_new(self, layer: int) -> bool:
        """Whether a layer of the grown model is one more copy of its source."""
        return self.sources[layer] in self.sources[:layer]

    def origin(self, name: str) -> Origin:
        """Where a parameter of the grown, dense model comes from."""
        star, layer = starred(name, self.known.layers)
        if layer is None:
            return Origin(name)
        source = self.sources[layer]
        beside = None
        if self.method != "fpi" and is_matrix_or_bias(self.known, star):
            beside = in_layer(star, min(source + 1, self.small.depth - 1))
        is_new = self.is_new(layer)
        ends = star.rpartition(".")[0] in self.known.ends
        is_zero = is_new and ends and self.depth_method == "identity"
        return Origin(in_layer(star, source), beside, is_new, is_zero)

    def growth(self, name: str) -> Growth:
        """How the tensors of a parameter's name grow."""
        star, _ = starred(name, self.known.layers)
        is_last = star.rpartition(".")[0] == self.known.last_norm
        folds = self.spaces["residual"].copies if self.is_tied and is_last else 1.0
        return Growth(
            uses=self.known.tensors[star],
            spaces=self.spaces,
            norm=self.known.norm,
            folds=folds,
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What it will do, a line for the whole and one for each module."""
        exact = "computes what the model does" if self.preserves else "changes the function"
        lines = [
            f"{self.architecture}: {self.small}",
            f"   to: {self.target}",
            f"  how: width by {self.method}, depth by {self.depth_method}; {exact}",
        ]
        if self.target.depth > self.small.depth:
            copies = ", ".join(
                f"{source}{'*' if self.is_new(layer) else ''}"
                for layer, source in enumerate(self.sources)
            )
            added = "adding nothing at first" if self.depth_method == "identity" else "as they are"
            lines.append(f"  layers: {copies} (*: new, {added})")
        if self.spaces["residual"].is_padded:
            what = "the mean of the others" if self.known.norm == "layer" else "zero"
            lines.append(
                f"  new channels hold {what}: {self.target.width} is no multiple of "
                f"{self.small.width}; gains and epsilon of norms shrink"
            )
        if self.target.experts > 1:
            lines.append(
                f"  each MLP: {self.target.experts} copies, {self.top} for a token, weights that "
                f"sum to 1; router of standard deviation {self.router_std:g}"
            )
        rows = [self.row(star, name) for star, name in self.stars().items()]
        wide = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines += [
            "  " + "  ".join(cell.ljust(n) for cell, n in zip(row, wide, strict=True)).rstrip()
            for row in rows
        ]
        return lines

    def stars(self) -> dict[str, str]:
        """One parameter for each starred name."""
        found: dict[str, str] = {}
        for name in self.shapes:
            found.setdefault(starred(name, self.known.layers)[0], name)
        return found

    def row(self, star: str, name: str) -> tuple[str, str, str]:
        """A parameter, its shapes, and how each axis grows."""
        growth, old = self.growth(name), self.shapes[name]
        new = [
            size if use is None else growth.space(use).new
            for size, use in zip(old, growth.uses, strict=True)
        ]
        same = list(old) == new
        words = [] if same else [word for use in growth.uses if use and (word := growth.word(use))]
        if growth.folds != 1:
            words.append(f"divided by {growth.folds:g} for the tied read-out")
        is_beside = self.method != "fpi" and is_matrix_or_bias(self.known, star)
        if is_beside and not same:
            words.append("new rows from the next layer")
        shapes = str(list(old)) if same else f"{list(old)} -> {new}"
        return star, shapes, "; ".join(words) or "as it is"


def is_matrix_or_bias(architecture: Architecture, star: str) -> bool:
    """Whether a parameter in a layer has rows that AKI takes from the next layer."""
    return any(use is not None and use.role == "write" for use in architecture.tensors[star])


def plan(
    model: nn.Module,
    target: Any = None,
    *,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn: int | None = None,
    experts: int | None = None,
    method: Method = "fpi",
    depth_method: DepthMethod | None = None,
    noise: float = 0.02,
    top: int = 2,
    router_std: float = 0.02,
    seed: int = 0,
) -> Plan:
    """Plan the growth of a model; nothing is changed. `print` it to see what it will do.

    Args:
        model: of `transformers`: GPT-2, Llama, BERT or ViT, with a head.
        target: a configuration of the same class with larger sizes, or a `Shape`; or give sizes.
        width, depth, heads, kv_heads, ffn: sizes to grow to; those left out grow with the width.
            Heads keep their size, and whole heads are copied.
        experts: copies of each MLP, for a mixture; `top` of them take a token.
        method: "fpi" copies, and keeps the function exactly; "aki" takes new rows from the next
            layer, and "aki-pro" interpolates layers beside that: both change the function and
            leave no ties.
        depth_method: "identity" (with fpi) adds blocks that add nothing at first; "interpolate"
            (aki-pro) puts each copy beside its source, "stack" (aki) the whole model on top.
        noise: relative RMS of noise that sums to zero over copies: it breaks their ties, and keeps
            the function. With 0 exact copies stay equal for ever, and the new width is wasted.
        router_std: of the normal distribution that routers begin with.

    Raises:
        ValueError: an architecture that growth does not know; a target that is smaller, or that
            heads do not divide; a width between multiples where norms allow no padding.
    Source: bert2BERT (FPI, AKI), arXiv 2110.07143; AquilaMoE (AKI-Pro), arXiv 2408.06567.
    """
    known = architecture_of(model, "growth")
    given = {"width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "ffn": ffn}
    small = shape_of(model.config, known)
    if target is not None:
        if any(size is not None for size in given.values()):
            raise ValueError("growth: both a target and sizes were given; give one of them")
        if isinstance(target, Shape):
            check_head_size(target, small, "growth")
            names = (*given, "experts") if experts is None else tuple(given)
            given = {name: getattr(target, name) for name in names}
        else:
            given = asked_by(target, model, known)
    wanted = target_of(small, known, {"experts": experts, **given})
    if method not in DEPTH_METHODS:
        raise ValueError(f"growth: method is {method!r}; expected {', '.join(DEPTH_METHODS)}")
    depth_method = depth_method or DEPTH_METHODS[method]
    if depth_method not in get_args(DepthMethod):
        raise ValueError(
            f"growth: depth_method is {depth_method!r}; expected {', '.join(get_args(DepthMethod))}"
        )
    if not 0 <= noise < 1:
        raise ValueError(f"growth: noise is {noise!r}; expected from 0 to below 1, as 0.02")
    if type(seed) is not int or not 0 <= seed < MOST_SEEDS:
        raise ValueError(f"growth: seed is {seed!r}; expected a whole number from 0 to 2**62 - 1")
    check_mixture(known, wanted, top, router_std)
    made = Plan(
        architecture=known.name,
        small=small,
        target=wanted,
        method=method,
        depth_method=depth_method,
        noise=noise,
        router_std=router_std,
        top=top,
        seed=seed,
        is_tied=is_tied(model),
        shapes=shapes_of(model),
    )
    check_exact(made)
    return made


def check_mixture(known: Architecture, target: Shape, top: int, router_std: float) -> None:
    """Refuse a mixture that cannot be.

    Raises:
        ValueError: fewer experts than a token takes; an architecture without a module for its MLP.
    """
    if target.experts == 1:
        return
    if not known.mlp:
        raise ValueError(
            f"growth: a {known.name} has no module for its MLP, so it has no experts; grow a "
            f"{', '.join(name for name, one in ARCHITECTURES.items() if one.mlp)}"
        )
    if not 1 <= top <= target.experts:
        raise ValueError(
            f"growth: top is {top} of {target.experts} experts; expected from 1 to all of them"
        )
    if not router_std > 0:
        raise ValueError(f"growth: router_std is {router_std!r}; expected a number above 0")


def check_exact(made: Plan) -> None:
    """Refuse what no method can do.

    Raises:
        ValueError: padding where norms do not allow it; identity blocks where there are none.
    """
    known, small, target = made.known, made.small, made.target
    multiple = f"a multiple of {small.width}"
    if made.spaces["residual"].is_padded and known.is_post:
        raise ValueError(
            f"growth: width is {target.width}; a {known.name} normalizes what its blocks add up "
            f"to, and padding would change that: expected {multiple}"
        )
    if made.spaces["residual"].is_padded and made.method != "fpi":
        raise ValueError(
            f"growth: width is {target.width} with method={made.method!r}, which copies channels: "
            f"expected {multiple}, or method='fpi', which pads"
        )
    deepens = target.depth > small.depth
    if deepens and made.depth_method == "identity" and known.is_post:
        raise ValueError(
            f"growth: a block of a {known.name} ends with a norm, so that none adds nothing; give "
            "depth_method='interpolate' or 'stack', which change the function"
        )


def dense(made: Plan) -> Plan:
    """The plan without its experts."""
    return replace(made, target=replace(made.target, experts=1))
