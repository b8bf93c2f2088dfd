"""Bytes per process, by kind, of a training run that nobody has started yet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import nn

from unitscale.memory.audit import Kept, kept_by
from unitscale.memory.source import Source, without_memory
from unitscale.memory.states import state_bytes
from unitscale.models.placed import check_recipe
from unitscale.recipes import Recipe
from unitscale.recipes.within import names_modules

Sharding = Literal["fsdp", "zero2", "zero1", "ddp"]
SHARDED: Mapping[str, frozenset[str]] = {
    "fsdp": frozenset({"weights", "gradients", "states"}),
    "zero2": frozenset({"gradients", "states"}),
    "zero1": frozenset({"states"}),
    "ddp": frozenset(),
}
"""What each process holds only its part of."""

ITEM_BYTES = {"fp32": 4, "bf16": 2}
KINDS = ("weights", "gradients", "master", "moments", "gathered", "activations", "fixed", "units")

GATHERED = 4
"""Weights of a group that FSDP2 holds whole at a time, in items for each parameter of the group:
the group at work and the next, the gradient, and what is sent of it (states.md, section 10)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The parameters of a model.

    Args:
        total: all of them. largest: of the largest group that FSDP2 gathers at once.
    """

    total: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes of one process, by kind.

    Args:
        weights, gradients: in the dtype of the parameters.
        master: what the optimizer's codec holds of a weight beside the parameter.
        moments: its two moments, with their scales.
        gathered: under FSDP2, the largest group of parameters whole: two of them, a gradient, and
            what is sent.
        activations: what a micro-batch keeps for backward.
        fixed: what is kept for backward whatever the batch: above all the weights as low-precision
            products take them, whole on each process.
        units: the factors of the units.
    """

    recipe: str
    states: str
    weights: float
    gradients: float
    master: float
    moments: float
    gathered: float
    activations: float
    fixed: float
    units: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, kind) for kind in KINDS))

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self) | {"total": self.total}


def sizes_of(model: nn.Module) -> Sizes:
    """The parameters of a model and of its largest group.

    FSDP2 is given each layer of the longest list of layers by itself, and the rest together.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=[])
    groups = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return Sizes(total=sum(p.numel() for p in model.parameters()), largest=max([*groups, rest]))


def sizes_at(source: Source, depth: int | None = None, recipes: Sequence[Recipe] = ()) -> Sizes:
    """The parameters of a source's model.

    Raises:
        ModelError: its code failed. ValueError: a recipe names modules that it has not.
    """
    with without_memory():
        model = source.build(depth)
        for recipe in recipes:
            check_recipe(recipe, model)
        return sizes_of(model)


def kept_at(source: Source, recipe: Recipe, *, length: int, total: int) -> Kept:
    """What the whole model keeps under a recipe.

    Models of equal layers are followed with one layer and with two; each more adds the same. That
    they are equal is seen by their parameters: if these do not add up, all layers are followed,
    and so they are if the recipe names modules.

    Args:
        total: the parameters of the whole model.

    Raises:
        As `kept_by`.
    """
    depth = source.depth
    if depth is not None and depth > 2 and not names_modules(recipe):
        one, two = (sizes_at(source, n).total for n in (1, 2))
        if one + (depth - 1) * (two - one) == total:
            first, second = (kept_by(source, recipe, length=length, depth=n) for n in (1, 2))
            return first.grown(second, depth - 1)
    return kept_by(source, recipe, length=length)


def plan_memory(
    sizes: Sizes,
    kept: Kept,
    *,
    recipe: str,
    states: str,
    dtype: str,
    ranks: int,
    micro_batch: int,
    sharding: Sharding = "fsdp",
) -> Plan:
    """The bytes of each of `ranks` processes.

    With P parameters of w bytes, N ranks and U parameters in the largest group: what `sharding`
    shares among the ranks is divided by N, and FSDP2 adds `4 w U`. Activations are those of one
    micro-batch: accumulation adds none.

    Raises:
        ValueError: unknown states or sharding, states that cannot hold the dtype, or a count below
            one.
    """
    for name, value in (("ranks", ranks), ("micro_batch", micro_batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if sharding not in get_args(Sharding):
        raise ValueError(f"sharding is {sharding!r}; expected one of {', '.join(SHARDED)}")
    own, item, total = state_bytes(states, dtype), ITEM_BYTES[dtype], sizes.total
    shared = SHARDED[sharding]
    share = {name: ranks if name in shared else 1 for name in ("weights", "gradients", "states")}
    return Plan(
        recipe=recipe,
        states=states,
        weights=item * total / share["weights"],
        gradients=item * total / share["gradients"],
        master=own["master"] * total / share["states"],
        moments=(own["first"] + own["second"]) * total / share["states"],
        gathered=GATHERED * item * sizes.largest if sharding == "fsdp" and ranks > 1 else 0.0,
        activations=kept.each * micro_batch,
        fixed=kept.fixed,
        units=kept.units,
    )
