"""What-if: what other recipes would make of the products of the very steps that are recorded.

As a sampled step runs, the operands of each product are kept by reference; when the gradient of its
result comes, the three products are computed anew as each recipe would, compared with FP32 of the
same operands, and let go. The step itself is not touched: not a bit of it, nor torch's random
numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from unitscale.gemm import ProductFormats
from unitscale.graph.capture import TensorNode
from unitscale.graph.dynamo import example
from unitscale.graph.engine import modes_set_aside
from unitscale.numerics.digest import short
from unitscale.numerics.rounding_error import Lost, relative_error
from unitscale.recipes import Recipe
from unitscale.record.operand import Subject, subject_of
from unitscale.record.product import (
    Layer,
    Other,
    Product,
    layer_names,
    layer_of,
    roles_of,
    runner,
)
from unitscale.record.terms import Terms, terms_of
from unitscale.units.assign import limit_for
from unitscale.units.count import multiply_adds
from unitscale.units.ops import operands, rule_of
from unitscale.units.products import kind_of, places_around

__all__ = ["ProductReader", "WhatIf"]

Row = dict[str, Any]

SEED = 0
"""Of stochastic rounding, at every product of every step."""


@dataclass
class Value:
    """A tensor of a step, kept until the products that take it have been computed.

    It is `held * 2**log2`; `version` is that of the memory when it was taken.
    """

    held: Tensor
    log2: int
    requires_grad: bool
    version: int

    @classmethod
    def of(cls, held: Tensor, log2: int) -> "Value":
        """A tensor that was just computed."""
        return cls(held.detach(), log2, held.requires_grad, held._version)

    @property
    def is_written_to(self) -> bool:
        """Whether an op wrote into it since."""
        return self.held._version != self.version


@dataclass
class Pending:
    """A product whose gradient has not come yet."""

    name: str
    node: fx.Node
    prefix: str
    step: int
    values: list[Value]
    called: Any


@dataclass
class WhatIf:
    """The recipes that are asked about, and what was found of the steps so far.

    Args:
        recipes: see `terms.recipes_of`.
        formats: the first line of the recording, which every row repeats: a reader of a version
            before these rows takes one for that line again, and passes over it.
    """

    recipes: Sequence[Recipe]
    formats: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    earlier: dict[str, float] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    known: dict[tuple[fx.Node, str], list[Terms]] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)

    def terms(self, node: fx.Node, prefix: str) -> list[Terms]:
        """What each recipe does to a product."""
        key = (node, prefix)
        if key not in self.known:
            self.known[key] = [terms_of(node, recipe, prefix) for recipe in self.recipes]
        return self.known[key]

    def amax_before(self, name: str, amax: float) -> float | None:
        """The amax of a tensor in the step recorded before; that of now is noted for the next."""
        self.now[name] = amax
        found = self.earlier.get(name)
        return found if found is not None and 0 < found < math.inf else None

    def collect(self) -> list[Row]:
        """The rows of a step that is done."""
        for pending in list(self.pending.values()):
            self.look(pending, None)  # no gradient came: a part that is frozen, or not used
        self.pending = {}
        found, self.rows = self.rows, []
        self.earlier, self.now = self.earlier | self.now, {}
        return found

    def look(self, pending: Pending, grad: Value | None) -> None:
        """Compute a product as each recipe would, and add its row."""
        self.pending.pop(pending.name, None)
        with on_the_side(pending.values[0].held):
            self.rows.append(self.row(pending, grad))

    def row(self, pending: Pending, grad: Value | None) -> Row:
        """What the recipes make of one product."""
        node, prefix = pending.node, pending.prefix
        terms = self.terms(node, prefix)
        if node not in self.macs:
            self.macs[node] = multiply_adds(node)
        row: Row = {
            "what_if": pending.name,
            "formats": self.formats,
            "step": pending.step,
            "op": kind_of(node),
            "module": places_around(node, prefix)[-1],
            "macs": self.macs[node],
        }
        why = self.obstacle(pending)
        rounding = [term for term in terms if term.formats is not None]
        product = None if why or not rounding else self.product(pending, grad)
        if product is not None and product.sampled is not None:
            row["sampled"] = product.sampled
        row["recipes"] = {
            term.recipe.name: {"why": term.why}
            if term.formats is None
            else {"why": why}
            if product is None
            else numbers_of(product, term.formats, term.loss_log2)
            for term in terms
        }
        return row

    @staticmethod
    def obstacle(pending: Pending) -> str | None:
        """Why nothing can be said of a product; None if something can."""
        if any(value.is_written_to for value in pending.values):
            return "not measured: an operand was written to before the gradient came"
        if any(value.held.numel() == 0 for value in pending.values):
            return "not measured: an operand is empty"
        return None

    def product(self, pending: Pending, grad: Value | None) -> Product:
        """The product with its operands as subjects of rounding."""
        node, values = pending.node, pending.values
        taken = operands(node, rule_of(node))
        limit = limit_of(node)
        roles = roles_of(node, taken)
        form = layer_of(node, *(v.held for v in values)) if len(values) == 2 else None
        subjects: dict[str, Subject] = {}

        def subject(key: str, role: str, value: Value, shape: Callable[[Tensor], Tensor]) -> None:
            name = f"{pending.name}.{role}"
            found = subject_of(shape(value.held), value.log2, limit, is_gradient=key[0] == "g")
            found.earlier_amax = self.amax_before(name, found.amax)
            subjects[key] = found

        if form is None:
            for role, value in zip(roles, values, strict=True):
                subject(role, role, value, lambda x: x)
            if grad is not None:
                subject("grad_output", "grad_output", grad, lambda x: x)
            wanted = [r for r, v in zip(roles, values, strict=True) if v.requires_grad]
            return Other(subjects, runner(node, taken, pending.called), wanted)
        pair = (1, 0) if form.is_crossed else (0, 1)
        x, w = form.factors(*(v.held for v in values))
        subject("x", roles[pair[0]], values[pair[0]], lambda _: x)
        subject("w", roles[pair[1]], values[pair[1]], lambda _: w)
        if grad is not None:
            subject("g", "grad_output", grad, lambda g: form.gradient(g, w))
        wanted = ["output"]
        wanted += ["grad_x"] if values[pair[0]].requires_grad else []
        wanted += ["grad_w"] if values[pair[1]].requires_grad else []
        return Layer(subjects, layer_names([roles[i] for i in pair]), wanted)


def numbers_of(product: Product, formats: ProductFormats, loss_log2: int) -> Row:
    """What a recipe makes of a product, as JSON holds it."""
    found = product.measure(formats, loss_log2)
    names = [*found.operands, *found.results]
    tensors = [numbers for numbers, _ in found.operands.values()] + list(found.results.values())
    flat = torch.cat(tensors).tolist() if tensors else []  # one wait for the device
    lines = iter(flat)
    row: Row = {"errors": {}, "operands": {}}
    for name in names:
        if name in found.operands:
            lost = Lost.of([next(lines) for _ in range(4)], found.operands[name][1])
            row["operands"][name] = [None if x is None else short4(x) for x in lost]
        else:
            error = relative_error(next(lines), next(lines))
            row["errors"][name] = None if error is None else short4(error)
    return row


def short4(x: float) -> float | None:
    """A number to four digits; None if it is not finite."""
    found = short(x)
    return None if found is None else float(f"{found:.4g}")


def limit_of(node: fx.Node) -> int:
    """The largest exponent of a unit in the dtype of a tensor."""
    least = torch.finfo(example(node).dtype).smallest_normal
    return limit_for(round(math.log2(least)))


@contextmanager
def on_the_side(x: Tensor) -> Iterator[None]:
    """Without gradients, autocast and modes of the model's, and with random numbers of its own."""
    devices = [x.device] if x.device.type == "cuda" else []
    kind = x.device.type
    with (
        torch.no_grad(),
        modes_set_aside(),
        torch.autocast(kind, enabled=False),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(SEED)
        yield


class ProductReader:
    """Reads the products of one call of a graph (a `units.observe.Reader` and `CallReader`).

    Args:
        prefix: what the names of the graph's tensors lack.
        suffix: of a call that is not the first of its step.
    """

    def __init__(self, what_if: WhatIf, step: int, prefix: str, suffix: str = "") -> None:
        self.what_if, self.step, self.prefix, self.suffix = what_if, step, prefix, suffix
        self.values: dict[fx.Node, Value] = {}
        self.waiting: dict[fx.Node, int] = {}
        self.called: Any = ((), {})
        self.mine: dict[str, Pending] = {}

    def read_call(self, args: Any, kwargs: Any) -> None:
        """Take the arguments of the op that was run last, as the rewritten graph gives them."""
        self.called = (args, kwargs)

    def read(self, tensor: TensorNode, held: Tensor, log2: int, operand_log2: int | None) -> None:
        """Take a value, which is `held * 2**log2`."""
        node = tensor.node
        takers = [user for user in node.users if rule_of(user).product]
        if takers:
            self.values[node], self.waiting[node] = Value.of(held, log2), len(takers)
        if not rule_of(node).product:
            return
        taken = operands(node, rule_of(node))
        if all(x in self.values for x in taken):
            name = self.prefix + tensor.name + self.suffix
            values = [self.values[x] for x in taken]
            form = layer_of(node, *(v.held for v in values)) if len(values) == 2 else None
            called = None if form is not None else self.called
            pending = Pending(name, node, self.prefix, self.step, values, called)
            self.what_if.pending[name] = self.mine[name] = pending
        for x in dict.fromkeys(taken):
            self.waiting[x] = self.waiting.get(x, 0) - 1
            if self.waiting[x] <= 0:
                self.values.pop(x, None)
        self.called = ((), {})

    def read_gradient(self, tensor: TensorNode, carried: Tensor, log2: int) -> None:
        """Take a gradient, which is carried as `2**log2` times the true one."""
        pending = self.mine.pop(self.prefix + tensor.name + self.suffix, None)
        if pending is not None and self.what_if.pending.get(pending.name) is pending:
            self.what_if.look(pending, Value.of(carried, -log2))
