"""A captured graph rewritten for one choice of rounded products: compiled, eager and measured."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.graph.capture import BOUNDARY, TensorNode
from unitscale.graph.dynamo import example
from unitscale.graph.engine import compiler
from unitscale.graph.recompute import recomputing
from unitscale.recipes import Recipe
from unitscale.units.assign import limit_for
from unitscale.units.measurement import Limits, Watch
from unitscale.units.ops import operands, rule_of
from unitscale.units.rewrite import rewrite

__all__ = ["Program"]

Run = Callable[..., Any]


class Program:
    """One graph under one recipe, with some of its products rounded.

    Args:
        module: the captured graph, prepared; it is not changed.
        tensors: its tensors.
        rounded: the products whose operands are rounded.
        scale: whether tensors are held at units.
        training: whether gradients are recorded.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        tensors: dict[fx.Node, TensorNode],
        recipe: Recipe,
        rounded: frozenset[fx.Node],
        *,
        scale: bool,
        training: bool,
    ) -> None:
        self.module, self.tensors, self.recipe = module, tensors, recipe
        self.rounded, self.scale, self.training = rounded, scale, training
        written = self.rewritten()
        self.factors, self.rewritten_module = written.factors, written.module
        self.compiled: Run | None = None

    def rewritten(self, *, is_measured: bool = False) -> Any:
        """The graph written anew."""
        return rewrite(
            self.module,
            self.tensors,
            self.recipe,
            scale=self.scale,
            rounded=self.rounded,
            is_measured=is_measured,
        )

    def compile(
        self, inner: str | Callable[..., Any], inputs: Sequence[Any], vector: Tensor
    ) -> None:
        """Hand the rewritten graph to the inner compiler; without this call it runs as it is."""
        if inner != "eager":
            found = compiler(inner) if isinstance(inner, str) else inner
            self.compiled = found(self.rewritten_module, [vector, *inputs])

    @property
    def run(self) -> Run:
        """The rewritten graph as a function of the vector of factors and the graph's inputs."""
        return self.eager if self.compiled is None else self.compiled

    @cached_property
    def eager(self) -> Run:
        """The same without a compiler, which may have changed the graph that it was given."""
        fresh = self.rewritten_module if self.compiled is None else self.rewritten().module
        run: Run = recomputing(fresh).forward
        return run

    @cached_property
    def measured(self) -> fx.GraphModule:
        """The graph as `observe.MeasuringStep` runs it."""
        module: fx.GraphModule = self.rewritten(is_measured=True).module
        return module

    @cached_property
    def needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The tensors whose s, and those whose phi, some factor is made of."""
        symbols = {symbol for factor in self.factors for symbol in factor.powers}
        s, phi = (frozenset(n for half, n in symbols if half == key) for key in ("s", "phi"))
        return s, phi

    @cached_property
    def watch(self) -> Watch:
        """What the recipe rounds in this graph, and which values say that a step is sound."""
        recipe = self.recipe
        taken: Iterable[fx.Node] = (x for n in self.rounded for x in operands(n, rule_of(n)))
        taken = frozenset(x for x in taken if x in self.tensors)
        *_, last = self.module.graph.nodes
        results = [x for x in last.all_input_nodes if x in self.tensors]
        if self.training:  # of the others their gradients tell: parts may be masked afterwards
            results = [x for x in results if example(x).dim() == 0]
        everywhere = half_of_max(recipe.activations)
        limits: dict[str, Limits] = {}
        for node, tensor in self.tensors.items():
            value = half_of_max(recipe.forward) if node in taken else None
            grad = half_of_max(recipe.backward) if node in self.rounded else None
            least = torch.finfo(example(node).dtype).smallest_normal
            limits[tensor.name] = Limits(
                smaller(value, everywhere),
                smaller(grad, everywhere),
                limit_for(round(math.log2(least))),
            )
        # A scale that is computed from each tensor is not the unit, at which losses are counted.
        is_current = recipe.source == "current"
        return Watch(
            forward=None if is_current else recipe.forward,
            backward=None if is_current else recipe.backward,
            operands=taken,
            outputs=self.rounded,
            results=frozenset(results),
            boundary=frozenset(x for x in taken if self.tensors[x].pinned == BOUNDARY),
            limits=limits,
        )


def half_of_max(fmt: Any) -> float | None:
    """The largest magnitude that leaves an outlier room to double; None without a format."""
    return None if fmt is None else fmt.max / 2


def smaller(x: float | None, y: float | None) -> float | None:
    """The smaller of two limits; None is none."""
    return min((limit for limit in (x, y) if limit is not None), default=None)


def numbers(
    exponents: Iterable[int], device: torch.device | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The vector of factors; one that an evaluation makes serves the next training step too."""
    with torch.inference_mode(False):
        return torch.tensor([2.0**e for e in exponents], dtype=dtype, device=device)
