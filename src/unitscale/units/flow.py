"""Write a rewritten graph so that what autograd holds of it is in eight bits: COAT's flow.

Regions (see `units.region`) are computed again in backward, from codes of their inputs; products
that take one tensor alike share its codes; a weight is rounded again where it is needed. One copy
is held of a tensor, however many regions take it.

In a measuring step the nodes of a region stay, because their units are set one by one; each op
takes its derivative at the point that it has in a region that is computed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from unitscale import gemm
from unitscale.gemm import ProductFormats
from unitscale.gemm.operand import Use
from unitscale.graph.dynamo import example
from unitscale.graph.name import is_parameter
from unitscale.recipes import Delayed, Operand
from unitscale.units import keep
from unitscale.units.hold import hold
from unitscale.units.ops import operands, rule_of
from unitscale.units.region import SAVING, Region, is_needed, name_of, regions

__all__ = ["Flow"]

POINT = ("unitscale_factors", "example_value")
"""What `meta` says of the copy of a node at its point: nothing is measured there."""

SIDES: dict[Callable[..., Tensor], tuple[int, int]] = {
    gemm.linear: (0, 1),
    gemm.matmul: (0, 1),
    gemm.addmm: (1, 2),
}
"""Where the products that share have their input and their weight."""


@dataclass
class Flow:
    """The writer of one graph.

    Args:
        module: a rewritten graph; it is changed.
        operand: how inputs of regions are held.
        is_measured: whether it is for measuring steps.
    """

    module: fx.GraphModule
    operand: Operand
    is_measured: bool = False
    codes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    now: dict[fx.Node, fx.Node] = field(default_factory=dict)
    count: int = 0
    written: int = 0

    def write(self) -> None:
        """Hold what the graph saves in few bits."""
        for region in regions(self.module.graph):
            if not any(map(self.is_held, self.inputs_of(region))):
                continue
            write = self.write_measured if self.is_measured else self.write_region
            write(region)
            self.written += 1
        self.share()
        self.module.graph.lint()
        self.module.recompile()

    @property
    def text(self) -> str:
        """Of the operand, as a printed graph shows it."""
        return str(self.operand)

    def is_held(self, x: fx.Node) -> bool:
        """Whether an input of a region is held as codes."""
        value = example(x)
        return is_needed(x) and keep.pays(value.shape, value.itemsize, self.text)

    def codes_of(self, x: fx.Node, before: fx.Node) -> fx.Node:
        """The node that makes the codes of a tensor, made once."""
        if x not in self.codes:
            with self.module.graph.inserting_before(before):
                self.codes[x] = self.module.graph.call_function(keep.codes, (x, self.text))
        return self.codes[x]

    def attach(self, nodes: tuple[fx.Node, ...], inputs: tuple[fx.Node, ...]) -> str:
        """Make a module of some nodes, of these inputs in order, and return its name."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for x in inputs:
            copies[x] = graph.placeholder(x.name)
        for node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[nodes[-1]])
        name = f"unitscale_region_{self.count}"
        self.count += 1
        setattr(self.module, name, fx.GraphModule(torch.nn.Module(), graph))
        return name

    def write_region(self, region: Region) -> None:
        """One call in the place of a region."""
        graph, root, inputs = self.module.graph, region.root, self.inputs_of(region)
        held = tuple(self.codes_of(x, root) if self.is_held(x) else None for x in inputs)
        name = self.attach(region.nodes, inputs)
        with graph.inserting_before(root):
            body = graph.get_attr(name)
            call = graph.call_function(keep.again, (body, self.text, held, *inputs))
        self.replace(root, call)
        for node in reversed(region.nodes[:-1]):
            graph.erase_node(node)

    def replace(self, node: fx.Node, call: fx.Node) -> None:
        """Put a call in the place of a node, with all that is known of it."""
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        self.module.graph.erase_node(node)
        self.now[node] = call

    def write_measured(self, region: Region) -> None:
        """The nodes of a region, each with its derivative where the region would have it."""
        graph, points = self.module.graph, dict[fx.Node, fx.Node]()
        inside, bodies = set(region.nodes), dict[fx.Node, tuple[str, list[fx.Node]]]()

        def at(x: fx.Node, before: fx.Node) -> fx.Node:
            """The node of a tensor's point, made when asked for: its units are set by then."""
            if x in points:
                return points[x]
            for y in x.all_input_nodes if x in inside and x not in bodies else ():
                at(y, before)
            codes = self.codes_of(x, before) if x not in inside and self.is_held(x) else None
            with graph.inserting_before(before):
                if x in bodies:
                    name, there = bodies[x]
                    body = graph.get_attr(name)
                    points[x] = graph.call_function(keep.plain, (body, *there))
                elif x in inside:
                    points[x] = graph.node_copy(x, points.__getitem__)
                    points[x].meta = {key: x.meta[key] for key in POINT if key in x.meta}
                elif codes is not None:
                    points[x] = graph.call_function(keep.point_like, (codes, self.text, x))
                else:
                    points[x] = x
            return points[x]

        for node in region.nodes:
            if node.target is hold or name_of(node) not in SAVING:
                continue
            inputs = tuple(node.all_input_nodes)
            there = [at(x, node) for x in inputs]
            name = self.attach((node,), inputs)
            with graph.inserting_before(node):
                body = graph.get_attr(name)
                call = graph.call_function(keep.at_points, (body, len(inputs), *inputs, *there))
            inside.add(call)
            bodies[call] = name, there
            self.replace(node, call)

    def inputs_of(self, region: Region) -> tuple[fx.Node, ...]:
        """The inputs of a region, some of which are regions that were written before."""
        return tuple(self.now.get(x, x) for x in region.inputs)

    def share(self) -> None:
        """Let products share the codes of what they take alike, and round weights again."""
        found: dict[tuple[fx.Node, str], list[fx.Node]] = {}
        for node in self.module.graph.nodes:
            if node.target not in SIDES or not example(node).requires_grad:
                continue
            x, weight = (node.args[index] for index in SIDES[node.target])
            formats: ProductFormats = node.kwargs["formats"]
            if example(x).dim() < 2 or example(weight).dim() != 2:
                continue
            if is_own(weight) and may_recode(formats.w_output, formats.w_grad_input):
                node.kwargs = {**node.kwargs, "recodes": True}
            text = formats.x_output
            if text is not None and text == formats.x_grad_weight and is_shareable(text):
                found.setdefault((same_values(x), text), []).append(node)
        for (x, text), nodes in found.items():
            if len(nodes) < 2:
                continue
            with self.module.graph.inserting_before(nodes[0]):
                codes = self.module.graph.call_function(keep.shared, (x, text))
            for node in nodes:
                node.kwargs = {**node.kwargs, "codes": codes}


def is_own(node: fx.Node) -> bool:
    """Whether a tensor is a parameter or a view of one, which is in memory in any case."""
    while node.op.startswith("call_") and rule_of(node).kind == "view":
        node = operands(node, rule_of(node))[0]
    return node.op == "placeholder" and is_parameter(node)


def is_shareable(text: str) -> bool:
    """Whether an operand is found from its tensor alone, the same for every product."""
    operand = Use(text).operand
    is_alike = operand.is_per_tensor and operand.is_shared
    return is_alike and not isinstance(operand.scale, Delayed)


def may_recode(*texts: str | None) -> bool:
    """Whether a weight rounded a second time gives what it gave."""
    found = [Use(text).operand for text in texts]
    return all(not isinstance(x.scale, Delayed) and x.rounding == "nearest" for x in found)


def same_values(node: fx.Node) -> fx.Node:
    """The tensor that a `hold` holds with a factor on its gradient alone."""
    while node.target is hold and node.args[1] is None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node
