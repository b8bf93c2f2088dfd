"""What a recipe keeps for backward, seen on fake tensors: the real graph, at any size.

The model is built of fake tensors, given the recipe and called once. What autograd saves is what
it would save of real ones, to the byte. One batch tells what grows with it, if its size has a large
prime as a factor: the bytes of any tensor that holds a value for each sample are a multiple of that
prime, and those of a rounded weight are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from unitscale import units
from unitscale.memory.source import Source, without_memory
from unitscale.models.placed import moved_inside
from unitscale.recipes import Recipe, without_loss_scale
from unitscale.train.initial import failing
from unitscale.units.forward import session_of

PRIME = 107
"""A prime that is a factor of no width or number of symbols that people choose."""

WHOLE_BLOCKS = 128
"""Blocks of scales lie along the samples too: a batch of so many times the prime fills them."""


@dataclass(frozen=True)
class Kept:
    """Bytes that one forward pass keeps for backward, parameters apart, and those of the units.

    Args:
        each: of every sample of the batch.
        fixed: whatever the batch: weights as products take them, masks, tables of positions.
        units: of the vectors of factors.
    """

    each: float
    fixed: float
    units: float

    def grown(self, other: "Kept", times: float) -> "Kept":
        """`self`, and `times` what `other` has more."""
        return Kept(
            *(
                getattr(self, name) + times * (getattr(other, name) - getattr(self, name))
                for name in ("each", "fixed", "units")
            )
        )


@dataclass
class SavedFakes:
    """The distinct storages of fake tensors that autograd saved, those of `excluded` apart."""

    excluded: set[int]
    found: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> Tensor:
        """Note the storage of a tensor. It is kept, so that no other gets its place."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.excluded:
            self.found[storage._cdata] = storage
        return tensor


def kept_by(source: Source, recipe: Recipe, *, length: int, depth: int | None = None) -> Kept:
    """What a training step of the model keeps, with so many layers (None: as many as it has).

    Raises:
        ModelError: the model's code failed, as it does where it looks at a number.
    """
    torch.compiler.reset()
    with without_memory() as mode:
        model = source.build(depth)
        give(model, recipe, mode)
        is_plain = session_of(model) is None
        batch = PRIME if is_plain else PRIME * WHOLE_BLOCKS
        ids = torch.zeros(batch, length, dtype=torch.long)
    own = (*model.parameters(), *model.buffers())
    saved = SavedFakes({tensor.untyped_storage()._cdata for tensor in own})
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor)
    # Outside of the mode: within it torch.compile leaves every function as it is, and models of
    # transformers make masks that they do without otherwise. What a model without a graph makes
    # from nothing is real then, so its batch is small.
    with failing(f"{source.name} failed on tensors without numbers"), hooks:
        loss = model(ids, ids)
    sizes = [storage.nbytes() for storage in saved.found.values()]
    each = sum(size for size in sizes if size % PRIME == 0) / batch
    del loss
    torch.compiler.reset()
    fixed = sum(size for size in sizes if size % PRIME)
    return Kept(each=each, fixed=fixed, units=unit_bytes(model))


def give(model: nn.Module, recipe: Recipe, mode: FakeTensorMode) -> None:
    """Give a model the recipe as a run would. Its units stay at one: no number depends on them.

    Its graphs run in the mode, so that what they make from nothing, such as a mask, is fake too.
    """

    def inner(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with mode:
                return graph(*args)

        return run

    inner.fuses = False  # type: ignore[attr-defined]  # a plan is of what runs without a compiler
    recipe = moved_inside(without_loss_scale(recipe), model)
    if recipe.unit_scaled:
        units.unit_scale(model, recipe, inner=inner, remeasure="never")
    elif recipe.rounds:
        units.apply_recipe(model, recipe, inner=inner)


def unit_bytes(model: nn.Module) -> int:
    """The bytes of the vectors from which the graphs of a model read their factors."""
    session = session_of(model)
    if session is None:
        return 0
    return sum(
        place.vector.nbytes
        for executable in session.executables
        for place in executable.places.values()
    )
