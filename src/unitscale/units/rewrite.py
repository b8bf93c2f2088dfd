"""Rewrite a captured graph: every tensor held at its unit, products in low precision.

`plan` says by which factor each operand is multiplied on its way into an op and the output on its
way out; here that is written down, as `hold` nodes around a copy of the op.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from unitscale.formats import FloatFormat
from unitscale.gemm import ProductFormats
from unitscale.gemm import rounded as round_both_ways
from unitscale.gemm.rounded import edge_scales
from unitscale.graph.capture import TensorNode, body_name, checkpointed, transformed
from unitscale.graph.dynamo import example, set_example
from unitscale.recipes import Gemm, Operand, Recipe
from unitscale.units import saved
from unitscale.units.assign import Monomial
from unitscale.units.flow import Flow
from unitscale.units.hold import hold, times
from unitscale.units.ops import GEMM, operands, rule_of
from unitscale.units.plan import NodePlan, Symbols, plan_node
from unitscale.units.products import fits_gemm, formats_at, matrix_operands, operands_at

FACTOR, FACTORS, DEFINES, SHOWS, SUM = (
    "unitscale_factor",
    "unitscale_factors",
    "unitscale_defines",
    "unitscale_shows",
    "unitscale_sum",
)
"""What `meta` says of a node of a rewritten graph: the monomial of a number; those of a `hold`,
forward and backward; the symbol whose s a `hold` is the first to need; the tensor it shows; on a
sum and on the holds of its operands, the symbol of the sum, which is needed before the sum is."""


@dataclass(frozen=True)
class Shown:
    """A tensor as a node of a rewritten graph holds it: over `s`, its gradient times `phi`."""

    tensor: TensorNode
    s: Monomial
    phi: Monomial


@dataclass(frozen=True)
class Rewritten:
    """A rewritten graph: its first input is the vector of the numbers of `factors`, in order.

    Args:
        holds: how many ops or regions between products hold their inputs in few bits.
    """

    module: fx.GraphModule
    factors: list[Monomial]
    holds: int


def rewrite(
    module: fx.GraphModule,
    tensors: dict[fx.Node, TensorNode],
    recipe: Recipe,
    *,
    scale: bool,
    rounded: Mapping[fx.Node, Gemm],
    slots: Mapping[fx.Node, range] = MappingProxyType({}),
    products: Collection[fx.Node] | None = None,
    is_measured: bool = False,
) -> Rewritten:
    """Hold every tensor at its unit (if `scale`) and round the operands of the `rounded` products.

    The rewritten graph takes one more input, a float vector, before the others: the scales of the
    `slots` of products that get theirs from earlier steps, then the factors. It returns the true
    outputs and sends the true gradients to its inputs, whatever the units are.
    With `products` these alone see units, see `Symbols`.
    One that `is_measured` is run node by node, by `observe`: every factor stands in a `hold`, and
    the nodes say in their `meta` what they hold and which units they need.
    """
    symbols = Symbols(tensors, scale=scale, products=products)
    factors: dict[Monomial, int] = {}
    writer = Writer(module, recipe, symbols, factors, rounded, slots, is_measured=is_measured)
    rewritten = writer.run()
    return Rewritten(rewritten, list(factors), writer.holds)


class Writer:
    """Copies a graph node by node, with `hold` and rounding around the copies."""

    def __init__(
        self,
        module: fx.GraphModule,
        recipe: Recipe,
        symbols: Symbols,
        factors: dict[Monomial, int],
        rounded: Mapping[fx.Node, Gemm],
        slots: Mapping[fx.Node, range],
        *,
        is_measured: bool,
        is_body: bool = False,
    ) -> None:
        self.is_body = is_body
        self.module, self.recipe, self.symbols, self.factors = module, recipe, symbols, factors
        self.rounded, self.slots, self.is_measured = rounded, slots, is_measured
        self.holds = 0
        self.slot_count = sum(map(len, slots.values()))
        self.exact = recipe.keeps_layout
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.transformed = transformed(module.graph)
        self.entering: dict[fx.Node, list[fx.Node]] = {}
        self.bodies: dict[str, fx.GraphModule] = {}
        self.vector = self.graph.placeholder("factors")
        self.scalars: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        """The rewritten graph, checked."""
        for node in self.module.graph.nodes:
            self.write(node)
        self.graph.lint()
        result = fx.GraphModule(self.module, self.graph)
        result.meta.update(self.module.meta)  # a checkpointed body has its policy there
        for name, body in self.bodies.items():
            setattr(result, name, body)
        if isinstance(self.recipe.saved, Operand):
            flow = Flow(result, self.recipe.saved, is_measured=self.is_measured)
            flow.write()
            self.holds += flow.written
        return result

    def factor(self, monomial: Monomial) -> fx.Node | None:
        """The node of a factor's number; None if it is 1 whatever the units are."""
        if monomial.is_one:
            return None
        index = self.slot_count + self.factors.setdefault(monomial, len(self.factors))
        if self.is_body:  # torch's partitioner can neither save nor recompute what `unbind` gives
            number = self.graph.call_function(torch.select, (self.vector, 0, index))
            number.meta[FACTOR] = monomial
            return number
        if self.scalars is None:
            self.scalars = self.graph.call_function(torch.unbind, (self.vector,))
            self.scalars.meta[FACTOR] = None
        number = self.graph.call_function(operator.getitem, (self.scalars, index))
        number.meta[FACTOR] = monomial
        return number

    def hold(self, x: fx.Node, fwd: Monomial, bwd: Monomial) -> fx.Node:
        """`x` with a factor in each direction; `x` itself if both are 1."""
        if fwd.is_one and bwd.is_one:
            return x
        if self.symbols.products is not None and fwd == bwd:  # a multiplication is its own gradient
            return self.graph.call_function(times, (x, self.factor(fwd)), {"exact": self.exact})
        factors = (self.factor(fwd), self.factor(bwd), self.exact)
        held = self.graph.call_function(hold, (x, *factors))
        held.meta[FACTORS] = (fwd, bwd)
        set_example(held, example(x))
        return held

    def write(self, node: fx.Node) -> None:
        """Copy one node with its plan."""
        if node.op == "placeholder":
            self.copies[node] = self.shown(self.graph.node_copy(node), node)
            return
        if node in self.transformed:
            self.write_transformed(node)
            return
        is_rounded = node in self.rounded
        plan = plan_node(node, self.symbols, is_rounded=is_rounded)
        if not is_rounded and self.recipe.activations is None:
            plan.fold_parameter(node)
        copy = self.product(node, plan) if is_rounded else self.plain(node, plan)
        if node.op == "output":
            return
        copy = self.held_output(copy, node, plan)
        held = self.recipe.activations
        if held is not None and node in self.symbols.s:
            copy = self.rounding(copy, held.name, held.name)
        self.copies[node] = self.shown(copy, node)

    def held_output(self, copy: fx.Node, node: fx.Node, plan: NodePlan) -> fx.Node:
        """An op's result with the factors on its way out, marked as where its s is set."""
        held = self.hold(copy, plan.after, plan.after_backward)
        if held is not copy and node in self.symbols.s:
            held.meta[DEFINES] = self.symbols.s[node]
        return held

    def shown(self, copy: fx.Node, node: fx.Node) -> fx.Node:
        """Note on a node of the rewritten graph which tensor it holds, and at which unit."""
        tensor = self.symbols.tensors.get(node)
        if tensor is not None:
            units = (self.symbols.unit(node), self.symbols.gradient(node))
            copy.meta[SHOWS] = Shown(tensor, *units)
        return copy

    def write_transformed(self, node: fx.Node) -> None:
        """Copy a node under a function transform: from its start to its end, that is one op to us.

        What goes in is recovered before the start, and what comes out is divided after the end,
        because `hold` cannot run in between.
        """
        start = self.transformed[node]
        inside = [n for n in self.transformed if self.transformed[n] is start]
        if node is start:
            for user in inside:
                outer = [x for x in arguments(user) if self.transformed.get(x) is not start]
                self.entering[user] = [self.true_value(x) for x in reversed(outer)]
        stack = self.entering[node]
        self.copies[node] = self.graph.node_copy(
            node, lambda x: self.copies[x] if self.transformed.get(x) is start else stack.pop()
        )
        if node is inside[-1]:
            for result in (n for n in inside if n in self.symbols.tensors):
                s, phi = self.symbols.unit(result), self.symbols.gradient(result)
                copy = self.hold(self.copies[result], Monomial() / s, Monomial() / phi)
                if copy is not self.copies[result] and result in self.symbols.s:
                    copy.meta[DEFINES] = self.symbols.s[result]
                self.copies[result] = self.shown(copy, result)

    def true_value(self, x: fx.Node) -> fx.Node:
        """A tensor with its true value, which gets its true gradient."""
        return self.hold(self.copies[x], self.symbols.unit(x), self.symbols.gradient(x))

    def plain(self, node: fx.Node, plan: NodePlan) -> fx.Node:
        """A copy of an op with its factors, and of the body of a checkpoint call."""
        saving = self.saving(node, plan)
        copy = self.copy(node, lambda x: self.edge(x, plan))
        if saving is not None:
            copy.target, copy.args = saved.saving, (*saving, *copy.args)
            self.holds += 1
        body = checkpointed(node)
        if body is not None:
            # The body reads the same vector of factors, as its first input.
            writer = Writer(
                body,
                self.recipe,
                self.symbols,
                self.factors,
                self.rounded,
                self.slots,
                is_measured=self.is_measured,
                is_body=True,
            )
            self.bodies[body_name(node)] = writer.run()
            self.holds += writer.holds
            copy.args = (copy.args[0], self.vector, *copy.args[1:])
        if rule_of(node).kind == "sum":
            self.mark_sum(copy, self.symbols.s.get(node))
        return copy

    @staticmethod
    def mark_sum(copy: fx.Node, symbol: str | None) -> None:
        """Mark an op whose operands are multiplied by what its own result's s must be known for."""
        edges = [
            x
            for x in copy.all_input_nodes
            if symbol is not None and ("s", symbol) in x.meta.get(FACTORS, (Monomial(),))[0].powers
        ]
        for marked in (copy, *edges) if edges else ():
            marked.meta[SUM] = symbol

    def saving(self, node: fx.Node, plan: NodePlan) -> tuple[Any, ...] | None:
        """What `saved.saving` is told of a function that saves its input; None if this does not."""
        name, fmt = saved.with_saved_input(node), self.recipe.saved
        if name is None or not isinstance(fmt, FloatFormat):
            return None
        if not self.symbols.tensors[node].requires_grad:
            return None
        units = []
        for x in node.args:
            assert isinstance(x, fx.Node)
            before, inside, _ = self.factors_of(x, plan)
            units.append(self.factor(before * inside))
        return name, fmt.name, tuple(units)

    def copy(self, node: fx.Node, edge: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A copy of an op, with an edge of its own for each time that it takes a tensor.

        The last edge comes first, because autograd goes back through the latest node first: so the
        gradients of `x - x` are summed one by one and in the order of the plain model.
        """
        if node.op == "output" or node.target is F.multi_head_attention_forward:
            # Attention asks whether its query is its key, and then projects both at once.
            edges = {x: edge(x) for x in node.all_input_nodes}
            return self.graph.node_copy(node, edges.__getitem__)
        stack = [edge(x) for x in reversed(arguments(node))]
        return self.graph.node_copy(node, lambda x: stack.pop())

    def product(self, node: fx.Node, plan: NodePlan) -> fx.Node:
        """A copy of a product in low precision, by `gemm` or rounded at its edges."""
        rule = rule_of(node)
        formats = formats_at(node, self.rounded[node], self.recipe.executor)
        extra: dict[str, Any] = {"formats": formats}
        slots = self.slots.get(node)
        if slots is not None:
            numbers = (self.vector, 0, slots.start, len(slots))
            extra["scales"] = self.graph.call_function(torch.narrow, numbers)
        if rule.kind == "general" or not fits_gemm(node):
            return self.product_at_edges(node, plan, formats, extra.get("scales"))
        if rule.kind == "attention":
            extra["query_factor"] = self.factor(plan.fold_query(node))
        # A measuring step learns the factors on the gradients only in its backward pass.
        folds = formats.executor == "scaled_mm" and not self.is_measured
        if folds and (matrices := matrix_operands(node)):
            extra["factors"] = tuple(map(self.factor, plan.fold_scales(node, matrices)))
        copy = self.plain(node, plan)
        copy.op, copy.target = "call_function", GEMM[node.target]
        copy.kwargs = {**copy.kwargs, **extra}
        return copy

    def product_at_edges(
        self, node: fx.Node, plan: NodePlan, formats: ProductFormats, scales: fx.Node | None
    ) -> fx.Node:
        """A copy of a product that `gemm` does not compute, its operands and result rounded."""
        rule = rule_of(node)
        taken = operands(node, rule)
        own: list[fx.Node | None] = [None] * (len(taken) + 1)
        if scales is not None:
            parts = self.graph.call_function(edge_scales, (scales, len(taken)))
            own = [self.graph.call_function(operator.getitem, (parts, i)) for i in range(len(own))]
        rounds = operands_at(node, self.rounded[node])
        texts = [str(operand) if operand.rounds else None for operand in rounds]

        def edge(x: fx.Node) -> fx.Node:
            if x not in taken:
                return self.edge(x, plan)
            index = taken.index(x)
            is_general = rule.kind == "general"
            rounding = (texts[index], formats.result, own[index])
            return self.operand(x, plan, rounding, is_general)

        # A pinned result's gradient comes at 1, and is brought to its phi before it is rounded.
        tensor, phi = self.symbols.tensors.get(node), Monomial()
        if tensor is not None and tensor.keeps_true_gradient:
            phi = self.symbols.gradient_at(node, is_rounded=True)
            plan.after_backward = plan.after_backward / phi
        copy = self.held_output(self.copy(node, edge), node, plan)
        plan.after = plan.after_backward = Monomial()
        copy = self.rounding(copy, formats.result, formats.g_grad_input, own[-1])
        if phi.is_one:
            return copy
        # Cloned, since a view that a custom function makes must not be written to.
        clone = self.graph.call_function(torch.clone, (self.hold(copy, Monomial(), phi),))
        set_example(clone, example(node))
        return clone

    def edge(self, x: fx.Node, plan: NodePlan) -> fx.Node:
        """A tensor on its way into an op, with its factors."""
        if x not in self.symbols.tensors:
            return self.copies[x]
        before, inside, backward = self.factors_of(x, plan)
        return self.hold(self.copies[x], before * inside, backward)

    def operand(
        self,
        x: fx.Node,
        plan: NodePlan,
        rounding: tuple[str | None, str | None, fx.Node | None],
        is_general: bool,
    ) -> fx.Node:
        """An operand on its way into a product: brought to its unit, rounded, multiplied."""
        if x not in self.symbols.tensors:
            return self.copies[x]
        before, inside, backward = self.factors_of(x, plan)
        # Its gradient is rounded as the product gives it, before it becomes that of a parameter,
        # say. A general product sees true values: there the gradient is at its unit afterwards.
        last = backward if is_general else inside
        edge = self.hold(self.copies[x], before, backward / last)
        edge = self.rounding(edge, *rounding)
        return self.hold(edge, inside, last)

    def factors_of(self, x: fx.Node, plan: NodePlan) -> tuple[Monomial, Monomial, Monomial]:
        """The factors before and after the rounding of a tensor, and on its gradient."""
        one = Monomial()
        backward = plan.backward.get(x, one) if self.symbols.tensors[x].requires_grad else one
        return plan.before.get(x, one), plan.inside.get(x, one), backward

    def rounding(
        self, x: fx.Node, fwd: str | None, bwd: str | None, scales: fx.Node | None = None
    ) -> fx.Node:
        """`x` with rounding in each direction."""
        given: dict[str, Any] = {} if scales is None else {"scales": scales}
        rounded = self.graph.call_function(round_both_ways, (x, fwd, bwd), given)
        set_example(rounded, example(x))
        return rounded


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in order, each as often as it is taken."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found
