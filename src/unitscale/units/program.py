"""A captured graph rewritten for one choice of rounded products: compiled, eager and measured."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from unitscale.formats import E4M3FN, BlockFormat, FloatFormat
from unitscale.graph.capture import BOUNDARY, TensorNode
from unitscale.graph.dynamo import example
from unitscale.graph.engine import compiler
from unitscale.graph.recompute import recomputing
from unitscale.recipes import Cast, Delayed, Gemm, Operand, Recipe, Unit
from unitscale.units.assign import Monomial, limit_for
from unitscale.units.measurement import Limits, Watch
from unitscale.units.ops import operands, rule_of
from unitscale.units.plan import Symbols
from unitscale.units.products import fits_gemm, operands_at
from unitscale.units.rewrite import FACTOR, rewrite

__all__ = ["Program"]

Run = Callable[..., Any]


class Slot(NamedTuple):
    """A scale that earlier steps give to an operand of a product.

    Args:
        name: of the result of the product, and the position of the operand in it.
        operand: how it is rounded.
        unit: what it is held at; a gradient at `1 / phi`.
    """

    name: str
    operand: Operand
    unit: Monomial


class Program:
    """One graph under one recipe, with some of its products rounded.

    Args:
        module: the captured graph, prepared; it is not changed.
        tensors: its tensors.
        rounded: the products whose operands are rounded, and how.
        scale: whether tensors are held at units.
        training: whether gradients are recorded.
        fuses: whether a compiler gets the graph, that computes what lies between products in
            passes of its own and holds little of it in memory.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        tensors: dict[fx.Node, TensorNode],
        recipe: Recipe,
        rounded: Mapping[fx.Node, Gemm],
        *,
        scale: bool,
        training: bool,
        fuses: bool = False,
    ) -> None:
        self.module, self.tensors, self.recipe = module, tensors, recipe
        self.rounded, self.scale, self.training = rounded, scale, training
        self.products = self.alone_at_units() if fuses and scale else None
        self.slots: list[Slot] = []
        self.slots_of: dict[fx.Node, range] = {}
        self.find_slots()
        written = self.rewritten()
        self.factors, self.rewritten_module = written.factors, written.module
        self.holds = written.holds
        self.compiled: Run | None = None

    def find_slots(self) -> None:
        """A slot for each operand, and for the gradient, of the products with delayed scales."""
        symbols = Symbols(self.tensors, scale=self.scale)
        for node, gemm in self.rounded.items():
            if not any(isinstance(operand.scale, Delayed) for operand in gemm.operands):
                continue
            start, name = len(self.slots), self.tensors[node].name
            taken = zip(operands(node, rule_of(node)), operands_at(node, gemm), strict=True)
            for index, (x, operand) in enumerate(taken):
                unit = symbols.operand(x) if x in self.tensors else Monomial()
                self.slots.append(Slot(f"{name}:{index}", operand, unit))
            unit = Monomial() / symbols.gradient(node)
            self.slots.append(Slot(f"{name}:gradient", gemm.grad_input[0], unit))
            self.slots_of[node] = range(start, len(self.slots))

    def alone_at_units(self) -> frozenset[fx.Node] | None:
        """The products that alone see units; None: every tensor is held at its unit.

        A factor is a power of two, so that no bit depends on where it is (short of over- and
        underflow): a recipe rounds what products take, and the gradients of what they give, and
        between them every factor is an op more to trace and to compile. All tensors have units
        where something rounds others, at a product's edges say, and in float16, whose range is
        narrow.
        """
        recipe, values = self.recipe, (example(node) for node in self.tensors)
        narrow = any(isinstance(x, Tensor) and x.dtype == torch.float16 for x in values)
        at_edges = any(
            rule_of(node).kind == "general" or not fits_gemm(node) for node in self.rounded
        )
        if narrow or at_edges or recipe.saved is not None or recipe.activations is not None:
            return None
        if recipe.rounds:
            return frozenset(self.rounded)
        return frozenset(node for node in self.tensors if rule_of(node).product)

    def rewritten(self, *, is_measured: bool = False) -> Any:
        """The graph written anew."""
        return rewrite(
            self.module,
            self.tensors,
            self.recipe,
            scale=self.scale,
            rounded=self.rounded,
            slots=self.slots_of,
            products=None if is_measured else self.products,
            is_measured=is_measured,
        )

    def compile(
        self, inner: str | Callable[..., Any], inputs: Sequence[Any], vector: Tensor
    ) -> None:
        """Hand the rewritten graph to the inner compiler; without this call it runs as it is."""
        if inner == "eager":
            return
        found = compiler(inner) if isinstance(inner, str) else inner
        indices = take_factors(self.rewritten_module)

        def given(vector: Tensor) -> list[Tensor]:
            numbers = vector.detach().unbind()
            return [vector, *(numbers[index] for index in indices)]

        compiled = found(self.rewritten_module, [*given(vector), *inputs])
        self.compiled = lambda vector, *args: compiled(*given(vector), *args)

    @property
    def run(self) -> Run:
        """The rewritten graph as a function of the vector of factors and the graph's inputs."""
        return self.eager if self.compiled is None else self.compiled

    @cached_property
    def eager(self) -> Run:
        """The same without a compiler, which may have changed the graph that it was given."""
        run: Run = self.eager_module.forward
        return run

    @cached_property
    def written_measured(self) -> Any:
        """The graph with every factor in a `hold`, and those factors."""
        return self.rewritten(is_measured=True)

    @cached_property
    def eager_module(self) -> fx.GraphModule:
        """The graph that `eager` runs."""
        fresh = self.rewritten_module if self.compiled is None else self.rewritten().module
        return recomputing(fresh)

    @property
    def measured(self) -> fx.GraphModule:
        """The graph as `observe.MeasuringStep` runs it."""
        module: fx.GraphModule = self.written_measured.module
        return module

    @cached_property
    def needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The tensors whose s, and those whose phi, some factor is made of.

        If products alone see units, of all tensors all the same: a model's units are those it has
        without a compiler.
        """
        factors = self.factors if self.products is None else self.written_measured.factors
        symbols = {symbol for factor in factors for symbol in factor.powers}
        s, phi = (frozenset(n for half, n in symbols if half == key) for key in ("s", "phi"))
        return s, phi

    @cached_property
    def watch(self) -> Watch:
        """What the recipe rounds in this graph, and which values say that a step is sound.

        A scale that is computed from each tensor is not the unit, at which losses are counted.
        """
        everywhere = half_of_max(self.recipe.activations)
        taken: dict[fx.Node, Operand | None] = {}
        values: dict[fx.Node, float | None] = {}
        for node, gemm in self.rounded.items():
            sources = [x for x in operands(node, rule_of(node)) if x in self.tensors]
            for x, operand in zip(sources, operands_at(node, gemm), strict=False):
                taken[x] = taken.get(x) or operand
                values[x] = smaller(values.get(x), ceiling(operand))
        *_, last = self.module.graph.nodes
        results = [x for x in last.all_input_nodes if x in self.tensors]
        if self.training:  # of the others their gradients tell: parts may be masked afterwards
            results = [x for x in results if example(x).dim() == 0]
        limits: dict[str, Limits] = {}
        for node, tensor in self.tensors.items():
            own = self.rounded.get(node)
            grad = None if own is None else ceiling(own.grad_input[0])
            least = torch.finfo(example(node).dtype).smallest_normal
            limits[tensor.name] = Limits(
                smaller(values.get(node), everywhere),
                smaller(grad, everywhere),
                limit_for(round(math.log2(least))),
            )
        return Watch(
            operands={x: format_at_unit(operand) for x, operand in taken.items()},
            outputs={x: format_at_unit(gemm.grad_input[0]) for x, gemm in self.rounded.items()},
            results=frozenset(results),
            boundary=frozenset(x for x in taken if self.tensors[x].pinned == BOUNDARY),
            limits=limits,
        )


def take_factors(module: fx.GraphModule) -> list[int]:
    """Make each factor that a graph reads an input of its own, after the vector; their indices.

    Read from the vector, by `unbind` or one by one, a factor is an op more to trace and to compile,
    and its place is written into the kernel that reads it: then no two layers share a kernel, which
    a compiler of C++ takes a second for.
    """
    graph = module.graph
    taken: dict[int, fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=torch.unbind):
        if FACTOR not in node.meta:
            continue
        vector = node.args[0]
        for number in list(node.users):
            index = number.args[1]
            if index not in taken:
                with graph.inserting_after(list(taken.values())[-1] if taken else vector):
                    taken[index] = graph.placeholder(f"factor_{index}")
            number.replace_all_uses_with(taken[index])
            graph.erase_node(number)
        graph.erase_node(node)
    module.recompile()
    return list(taken)


def format_at_unit(operand: Operand | None) -> FloatFormat | None:
    """The format of an operand that is cast as it is held; None of one with scales of its own."""
    if operand is None or not isinstance(operand.format, FloatFormat):
        return None
    return operand.format if isinstance(operand.scale, Unit | Cast) else None


def ceiling(operand: Operand) -> float | None:
    """The largest magnitude that an operand's unit may leave it; None where it has no limit."""
    if isinstance(operand.format, BlockFormat):
        two_levels = operand.format.has_tensor_scale and isinstance(operand.scale, Unit)
        return operand.format.element.max * E4M3FN.max / 2 if two_levels else None
    return half_of_max(operand.format)


def half_of_max(fmt: Any) -> float | None:
    """The largest magnitude that leaves an outlier room to double; None without a format."""
    return None if fmt is None else fmt.max / 2


def smaller(x: float | None, y: float | None) -> float | None:
    """The smaller of two limits; None is none."""
    return min((limit for limit in (x, y) if limit is not None), default=None)


def numbers(
    values: Iterable[float], device: torch.device | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The vector of scales and factors; one made in an evaluation serves a training step too."""
    with torch.inference_mode(False):
        return torch.tensor(list(values), dtype=dtype, device=device)
