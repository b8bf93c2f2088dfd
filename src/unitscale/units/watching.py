"""Run a graph node by node, so that whoever watches knows which one is at work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from unitscale.recipes import Recipe
from unitscale.units import keep

__all__ = ["At", "Watched", "observed"]


@dataclass
class At:
    """Where a model is in its forward pass.

    Args:
        node: of a rewritten graph; None outside of one, or inside of one that is compiled.
        recipe: of the graph at work, or of the last one.
        prefix: what the names of the graph lack, see `graph.place`.
        compiled: whether a compiled graph is at work.
        measures: whether it is a measuring step.
        vector: the factors of the graph.
        scales: identities of storages that hold scales of codes.
        given: the tensors that the node at work takes.
    """

    node: fx.Node | None = None
    recipe: Recipe | None = None
    prefix: str = ""
    compiled: bool = False
    measures: bool = False
    vector: Tensor | None = None
    scales: set[int] = field(default_factory=set)
    given: list[tuple[fx.Node, Tensor]] = field(default_factory=list)

    @contextmanager
    def inside(
        self,
        recipe: Recipe,
        prefix: str,
        vector: Tensor,
        *,
        compiled: bool = False,
        measures: bool = False,
    ) -> Iterator[None]:
        """A context in which a graph runs."""
        self.recipe, self.prefix, self.vector = recipe, prefix, vector
        self.compiled, self.measures, self.node = compiled, measures, None
        try:
            yield
        finally:
            self.node, self.compiled, self.measures, self.given = None, False, False, []

    def enter(self, node: fx.Node, env: dict[fx.Node, Any]) -> None:
        """A node begins."""
        self.node = node
        found = ((x, env.get(x)) for x in node.all_input_nodes)
        self.given = [(x, value) for x, value in found if isinstance(value, Tensor)]

    def leave(self, node: fx.Node, value: Any) -> None:
        """It has given its value."""
        if node.target in (keep.codes, keep.shared) and isinstance(value[1], Tensor):
            self.scales.add(value[1].untyped_storage()._cdata)

    def source(self, tensor: Tensor) -> fx.Node | None:
        """Which input of the node at work a tensor is, if it is one."""
        memory = tensor.untyped_storage()._cdata
        return next((x for x, y in self.given if y.untyped_storage()._cdata == memory), None)

    def is_factor(self, tensor: Tensor) -> bool:
        """Whether a tensor is a part of the vector of factors."""
        if self.vector is None:
            return False
        return tensor.untyped_storage()._cdata == self.vector.untyped_storage()._cdata


class Watched(fx.Interpreter):
    """Runs a rewritten graph as it is, and tells where it is."""

    def __init__(self, module: fx.GraphModule, at: At) -> None:
        super().__init__(module)
        self.extra_traceback = False  # an error of the model's is not ours to explain
        self.at = at

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        return observed(self.at, n, self.env, super().run_node)


def observed(
    at: At | None, node: fx.Node, env: dict[fx.Node, Any], run: Callable[[fx.Node], Any]
) -> Any:
    """Run a node with `at` knowing of it."""
    if at is None:
        return run(node)
    at.enter(node, env)
    value = run(node)
    at.leave(node, value)
    return value
