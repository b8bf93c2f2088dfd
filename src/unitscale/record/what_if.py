"""What-if: what other recipes would make of the products of the very steps that are recorded.

As a sampled step runs, the operands of each product are kept by reference; when the gradient of its
result comes, the three products are computed anew as each recipe would, compared with FP32 of the
same operands, and let go. The step itself is not touched: not a bit of it, nor torch's random
numbers.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from unitscale.gemm import ProductFormats
from unitscale.graph.capture import TensorNode
from unitscale.graph.dynamo import example
from unitscale.graph.engine import modes_set_aside
from unitscale.numerics.digest import short
from unitscale.numerics.rounding_error import Lost, relative_error
from unitscale.recipes import RECIPES, Recipe, parse
from unitscale.record.operand import Subject, subject_of
from unitscale.record.product import Layer, Other, Product, layer_names, layer_of, roles_of
from unitscale.units.assign import limit_for
from unitscale.units.count import multiply_adds
from unitscale.units.ops import argument, operands, rule_of
from unitscale.units.products import (
    FULL_PRECISION,
    formats_at,
    gemm_at,
    kind_of,
    multiplied,
    operands_at,
    places_around,
)

__all__ = ["ProductReader", "WhatIf", "recipes_of"]

Row = dict[str, Any]

DYNAMIC_LOSS_LOG2 = 16
"""Of a dynamic loss scale: where torch.amp.GradScaler begins."""

SEED = 0
"""Of stochastic rounding, at every product of every step."""


def recipes_of(what_if: str | Iterable[str | Recipe]) -> list[Recipe]:
    """The recipes that are asked for, each once; "all" are those that round something.

    A text may name several, with commas between them.

    Raises:
        ValueError: an unknown name, two recipes of one name, or none at all.
    """
    if what_if == "all":
        return [recipe for recipe in RECIPES.values() if recipe.rounds]
    asked = what_if.split(",") if isinstance(what_if, str) else list(what_if)
    found = [parse(one.strip() if isinstance(one, str) else one) for one in asked]
    if not found:
        raise ValueError('what_if is empty; name at least one recipe, or "all", or leave it out')
    for index, recipe in enumerate(found):
        if recipe.name in [other.name for other in found[:index]]:
            raise ValueError(f"what_if names {recipe.name!r} twice; name each recipe once")
    return found


class Terms(NamedTuple):
    """What one recipe does to one product: the texts of its operands, or why it rounds nothing."""

    recipe: Recipe
    formats: ProductFormats | None
    why: str
    loss_log2: int


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
        recipes: see `recipes_of`.
        formats: the first line of the recording, which every row repeats: a reader of a version
            before these rows takes one for that line again, and passes over it.
    """

    recipes: Sequence[Recipe]
    formats: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    earlier: dict[str, float] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)
    has_told: bool = False
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

    def collect(self, model: str, step: int) -> list[Row]:
        """The rows of a step that is done, and a warning if it said nothing of some recipe."""
        for pending in list(self.pending.values()):
            self.look(pending, None)  # no gradient came: a part that is frozen, or not used
        self.pending = {}
        found, self.rows = self.rows, []
        self.earlier, self.now = self.earlier | self.now, {}
        if not self.has_told:
            self.has_told = True
            for text in complaints(found, [recipe.name for recipe in self.recipes], model, step):
                warnings.warn(f"record: {text}", stacklevel=4)
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


def terms_of(node: fx.Node, recipe: Recipe, prefix: str) -> Terms:
    """What a recipe does to a product, by its own rules."""
    found = gemm_at(node, recipe, prefix)
    loss = recipe.loss_scale
    log2 = DYNAMIC_LOSS_LOG2 if loss == "dynamic" else round(math.log2(float(loss or 1)))
    if found is None:
        by = multiplied(node, recipe, None, prefix=prefix)
        return Terms(recipe, None, FULL_PRECISION if by is None else str(by), log2)
    formats = formats_at(node, found, "emulated")
    taken = operands(node, rule_of(node))
    form = layer_of(node, *map(example, taken)) if len(taken) == 2 else None
    if form is not None:
        return Terms(recipe, formats.crossed() if form.is_crossed else formats, "", log2)
    texts = [str(operand) if operand.rounds else None for operand in operands_at(node, found)]
    return Terms(recipe, formats._replace(x_output=texts[0], w_output=texts[-1]), "", log2)


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


def complaints(
    rows: Sequence[Mapping[str, Any]], recipes: Sequence[str], model: str, step: int
) -> Iterator[str]:
    """What a step has nothing to say about, in words: no product, or none that a recipe rounds."""
    if not rows:
        yield (
            f"what_if: no product of this {model} was seen at step {step}, so nothing is known of "
            f"{', '.join(recipes)}"
        )
        return
    for name in recipes:
        whys = [row["recipes"][name].get("why") for row in rows]
        if all(why is not None for why in whys):
            yield (
                f"what_if: recipe {name!r} rounds none of the {len(rows)} products of this "
                f"{model}; of {rows[0]['what_if']!r}: {whys[0]}"
            )


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


def runner(node: fx.Node, taken: Sequence[fx.Node], called: Any) -> Callable[..., Tensor]:
    """A node as a function of its operands, the other arguments as they were in the step.

    What it adds to the product is zero, and nothing is dropped out.
    """
    args, kwargs = called
    rule = rule_of(node)
    added = argument(node, rule.additive) if rule.additive else None

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(taken, values, strict=True))

        def resolve(own: Any, actual: Any) -> Any:
            if isinstance(own, fx.Node):
                if own in given:
                    return given[own]
                is_float = isinstance(actual, Tensor) and actual.is_floating_point()
                actual = actual.detach().to(values[0].dtype) if is_float else actual
                return torch.zeros_like(actual) if own is added else actual
            if isinstance(own, list | tuple) and not isinstance(own, torch.Size):
                return type(own)(map(resolve, own, actual))
            return own

        own_kwargs = {k: resolve(v, kwargs.get(k)) for k, v in node.kwargs.items()}
        own_args = [resolve(a, b) for a, b in zip(node.args, args, strict=False)]
        if rule.kind == "attention" and len(own_args) > 4:
            own_args[4] = 0.0
        elif "dropout_p" in own_kwargs:
            own_kwargs["dropout_p"] = 0.0
        if node.op == "call_method":
            found: Tensor = getattr(own_args[0], str(node.target))(*own_args[1:], **own_kwargs)
            return found
        result: Tensor = node.target(*own_args, **own_kwargs)  # type: ignore[operator]
        return result

    return run


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
