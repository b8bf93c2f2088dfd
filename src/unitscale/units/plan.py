"""What the factors around each op of a captured graph are: the rule of the design, op by op.

For each op, `plan_node` says by which factor each operand is multiplied on its way in and the
output on its way out, whatever the units are. Factors stay symbolic (`assign.Monomial`): a plan
depends on the structure of the graph alone, the numbers come later.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from unitscale.graph import dynamo
from unitscale.graph.effect import argument, effect_of, writes_input
from unitscale.graph.name import is_parameter
from unitscale.graph.tensor import TensorNode, reorders, repeats
from unitscale.units.assign import Monomial, product
from unitscale.units.ops import RULES, Rule, operands, rule_of


@dataclass(kw_only=True)
class NodePlan:
    """The factors around one op.

    Args:
        before: per operand, the factor that brings it to its unit (products of a pinned tensor).
        inside: per operand, the factor it is multiplied by before the op, after any rounding.
        backward: per operand, the factor on its gradient.
        after: the factor on the output.
        after_backward: the factor on the output's gradient.
    """

    before: dict[fx.Node, Monomial] = field(default_factory=dict)
    inside: dict[fx.Node, Monomial] = field(default_factory=dict)
    backward: dict[fx.Node, Monomial] = field(default_factory=dict)
    after: Monomial = field(default_factory=Monomial)
    after_backward: Monomial = field(default_factory=Monomial)

    def fold_query(self, node: fx.Node) -> Monomial:
        """Take the query's factor out of the plan, for attention that multiplies by it itself."""
        query = node.args[0]
        assert isinstance(query, fx.Node)
        factor = self.inside.pop(query)
        self.backward[query] = self.backward.get(query, Monomial()) / factor
        return factor

    def fold_scales(self, node: fx.Node, taken: list[fx.Node]) -> list[Monomial]:
        """Take the factors on the results of a linear product out of the plan, for a kernel.

        Those of the output (its bias keeps out of them) and of the gradients of the two operands.
        """
        output, self.after = self.after, Monomial()
        rule = rule_of(node)
        bias = argument(node, rule.additive) if rule.additive else None
        if bias in self.inside:
            self.inside[bias] = self.inside[bias] * output
        grads = [self.backward.get(x, Monomial()) for x in taken]
        self.backward |= dict.fromkeys(taken, Monomial())
        return [output, *grads]

    def fold_parameter(self, node: fx.Node) -> None:
        """Multiply the output's gradient by the factor on a weight's, and divide the others by it.

        For a linear op that rounds nothing. A weight's gradient comes out of a product and goes to
        the optimizer: its factor is a pass over memory of its own. Those on the gradients before
        and after the op join what computes or uses them. Not in float16, whose range is too narrow
        for a gradient that is not at its unit.
        """
        rule, value = rule_of(node), dynamo.example(node)
        if isinstance(value, Tensor) and value.dtype == torch.float16:
            return
        taken = operands(node, rule)
        parameters = [x for x in taken if is_parameter(x)]
        if rule.kind != "linear" or len(taken) != 2 or len(parameters) != 1:
            return
        one = Monomial()
        factor, others = self.backward.get(parameters[0], one), set(taken) - set(parameters)
        if any(carries_gradient(x) and self.backward.get(x, one).is_one for x in others):
            return
        self.after_backward = self.after_backward * factor
        self.backward = {x: backward / factor for x, backward in self.backward.items()}


class Symbols:
    """The symbolic unit of every tensor: which share one, and which are 1 for good.

    Args:
        scale: whether tensors have units at all.
        products: those that alone see units, their operands forward and their results backward,
            while every tensor between them has its true value; None holds every tensor at its unit.
    """

    def __init__(
        self,
        tensors: dict[fx.Node, TensorNode],
        *,
        scale: bool,
        products: Collection[fx.Node] | None = None,
    ) -> None:
        self.tensors, self.scale = tensors, scale
        self.products = products
        self.s: dict[fx.Node, str] = {}
        self.phi: dict[fx.Node, str] = {}
        for node, tensor in tensors.items():
            if tensor.pinned is not None or not scale:
                continue
            self.s[node] = tensor.name
            if tensor.requires_grad:
                self.phi[node] = tensor.name
            rule = rule_of(node)
            base = operands(node, rule)[0] if rule.kind == "view" else None
            if base in self.s:
                self.s[node] = self.s[base]
                if rule.bijective and len(base.users) == 1 and {base, node} <= self.phi.keys():
                    self.phi[node] = self.phi[base]
        self.taken, self.given = self.s, self.phi
        if products is not None:
            self.s, self.phi = {}, {}

    def unit(self, node: fx.Node) -> Monomial:
        """s of a tensor."""
        return Monomial({("s", self.s[node]): 1}) if node in self.s else Monomial()

    def gradient(self, node: fx.Node) -> Monomial:
        """phi of a tensor."""
        return Monomial({("phi", self.phi[node]): 1}) if node in self.phi else Monomial()

    def operand(self, node: fx.Node) -> Monomial:
        """The unit at which an operand is rounded: of a pinned tensor too."""
        return Monomial({("s", self.taken.get(node, self.tensors[node].name)): 1})

    def at(self, x: fx.Node, node: fx.Node, *, is_rounded: bool) -> Monomial:
        """The unit at which an op takes an operand."""
        is_product = self.products is not None and node in self.products
        if is_rounded or (is_product and x in self.taken):
            return self.operand(x)
        return self.unit(x)

    def gradient_at(self, node: fx.Node, *, is_rounded: bool) -> Monomial:
        """phi of the gradient that a product takes whose result has its true one.

        That is one among `products`, and one that is rounded and whose result is pinned to (1, 1):
        at that its gradients would be flushed. 1 for any other op.
        """
        tensor = self.tensors.get(node)
        if tensor is not None and is_rounded and self.scale and tensor.keeps_true_gradient:
            return Monomial({("phi", tensor.name): 1})
        if self.products is None or node not in self.products or node not in self.given:
            return Monomial()
        return Monomial({("phi", self.given[node]): 1})


def plan_node(node: fx.Node, symbols: Symbols, *, is_rounded: bool) -> NodePlan:
    """The factors around one op; see the docstring of `ops` for the kinds.

    A worked example, one linear layer y = x w + b. The hidden tensor x has the unit s = 1/8,
    phi = 32, the output y has s = 2, phi = 16; w and b are parameters, so at (1, 1), but a product
    that a recipe rounds takes w at its own s = 1/4. Say x = 0.25, w = 0.5, b = 1, and y's gradient
    is 1/16. Then y = 1.125, and the true gradients are 1/32 for x, 1/64 for w and 1/16 for b.

                            x        w        b        y
        held                2        0.5      1                   t / s; w and b as they are
        before              1        4        -                   w is rounded at 2, x at 2
        inside              1        1        32                  b / (s(x) s(w)) adds up
        the op                                         36         2 * 2 + 32
        after                                          1/64       s(x) s(w) / s(y)
        held                                           0.5625     1.125 / 2

        gradient carried                               1          phi(y) / 16
        the op              2        2        1                   to each operand, as it is held
        backward            1/2      1/128    1/16                phi(x) / phi(y) * s(w), and so on
        gradient carried    1        1/64     1/16                32 / 32; the true ones at (1, 1)

    Where nothing is rounded w has no factor before (s(w) counts as 1): b's inside is 8, `after` is
    1/16, x's backward factor 2; the others are the same.
    """
    tensors = symbols.tensors
    inputs = [x for x in node.all_input_nodes if x in tensors]
    # Nothing may come between a tensor and an op that takes it several times inside.
    is_repeating = not is_rounded and any(repeats(node, x) or reorders(node, x) for x in inputs)
    rule = rule_of(node) if node in tensors and not is_repeating else Rule(kind="general")
    plan = NodePlan(inside={x: symbols.unit(x) for x in inputs})
    if not symbols.scale:
        return plan
    taken = [x for x in operands(node, rule) if x in tensors] if rule.kind != "general" else []
    at = {x: symbols.at(x, node, is_rounded=is_rounded) for x in taken}
    plan.before = {x: symbols.unit(x) / at[x] for x in taken}
    outside = Monomial()
    if rule.kind in ("linear", "view"):
        plan.inside |= dict.fromkeys(taken, Monomial())
        outside = product(at.values())
        bias = argument(node, rule.additive) if rule.additive else None
        if bias in tensors:
            plan.inside[bias] = symbols.unit(bias) / outside
    elif rule.kind == "sum":
        outside = symbols.unit(node)
        plan.inside |= {x: symbols.unit(x) / outside for x in taken}
        plan.before = {}
    elif rule.kind == "attention":
        query, key, value = taken[:3]
        plan.inside |= {query: at[query] * at[key], key: Monomial(), value: Monomial()}
        outside = at[value]
    plan.after_backward = symbols.gradient_at(node, is_rounded=is_rounded)
    phi = symbols.gradient(node) * plan.after_backward
    unitless = [x for x in node.all_input_nodes if x not in tensors and carries_gradient(x)]
    if unitless or is_repeating or is_foreign(node):
        # A tuple or a complex tensor has no unit: what flows back into it must be the true
        # gradient. And so must what a backward written by hand gets, which need not be linear.
        plan.after_backward, phi = plan.after_backward / phi, Monomial()
    plan.after = outside / symbols.unit(node) if node in tensors else Monomial()
    for x in inputs:
        factor = plan.inside[x] * plan.before.get(x, Monomial())
        plan.backward[x] = symbols.gradient(x) / phi * outside * factor / symbols.unit(x)
    return plan


def carries_gradient(node: fx.Node) -> bool:
    """Whether a gradient reaches a node's value: a tensor, or a tuple or list that holds some."""
    value = dynamo.example(node)
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def is_foreign(node: fx.Node) -> bool:
    """Whether a node may run a backward that is not torch's: a custom autograd.Function, say.

    So is an op that writes into its input: nothing may come between the two. And so is one of torch
    whose backward is not linear to the bit: the gradient of a matrix exponential is itself one, of
    a matrix with the gradient in it, and takes as many squarings as that is large; that of
    `logcumsumexp` is an exponential of the gradient's logarithm.
    """
    if writes_input(node) or not effect_of(node).linear_backward:
        return True
    if node.op != "call_function" or node.target in RULES:
        return False
    if dynamo.calls_model_code(node):
        return True
    module = getattr(node.target, "__module__", None) or ""
    return module.split(".")[0] not in ("", "torch", "_operator", "builtins", "math")
