"""A product of one step, multiplied anew as any recipe would, beside what FP32 makes of it.

A matrix product is brought to the form of a linear layer, the three products of which are

    output = x @ w^T        grad_x = g @ w        grad_w = g^T @ x

with a leading axis where it has a batch. Of a large one some rows, and some features on either
side, are compared: the same in every recipe and at every step. What is rounded is always the whole
tensor. Any other op (attention, convolutions, einsum) runs as it is on rounded operands.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx

from unitscale import gemm
from unitscale.gemm import ProductFormats
from unitscale.gemm.operand import Use
from unitscale.gemm.rounded import SUM_OVER_FEATURES, SUM_OVER_ROWS, round_sum
from unitscale.numerics.rounding_error import sizes
from unitscale.record.operand import Rounded, Subject
from unitscale.record.stake import stake
from unitscale.units.ops import GEMM, argument, rule_of
from unitscale.units.products import fits_gemm, is_weight

__all__ = ["Layer", "Numbers", "Other", "Product", "layer_names", "layer_of", "roles_of", "runner"]

ROWS = 256
"""Rows, and features on either side, in which the results of a product are compared."""

BATCHES = 16
"""Matrices of a batch in which they are compared."""

SEED = 0
"""Of the choice of rows."""


@dataclass
class Numbers:
    """What one recipe makes of a product; the tensors are small and still on their device.

    Args:
        operands: by product and operand, the four numbers of `numerics.lost_by` and the count of
            elements; none of what is taken as it is.
        results: norms of each result in FP32, and of its error.
    """

    operands: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)


class Product(Protocol):
    """A product of one step."""

    @property
    def sampled(self) -> list[int] | None:
        """Matrices, rows and features on either side that are compared; None is all."""

    @property
    def stakes(self) -> Mapping[str, Tensor]:
        """By result, how far the loss moves if it is off by as much as it is large."""

    def measure(self, formats: ProductFormats, loss_log2: int) -> Numbers:
        """What a recipe makes of it."""


class Part(NamedTuple):
    """The part of a factor that is compared: of its batch, and of one of its axes."""

    batch: Tensor | None
    kept: Tensor | None
    axis: int

    def of(self, x: Tensor) -> Tensor:
        """That part of a tensor."""
        x = x if self.batch is None else x.index_select(0, self.batch)
        return x if self.kept is None else x.index_select(self.axis, self.kept)


@cache
def chosen(size: int, most: int) -> tuple[int, ...] | None:
    """At most so many of the indices of an axis, in order; None is all of them."""
    if size <= most:
        return None
    generator = torch.Generator().manual_seed(SEED)
    return tuple(sorted(torch.randperm(size, generator=generator)[:most].tolist()))


FACTORS = {"output": ("x", "w"), "grad_x": ("g", "w"), "grad_w": ("g", "x")}
"""The two factors of each product."""


class Layer:
    """A matrix product in the form of a linear layer.

    Args:
        subjects: x [m, k], w [n, k] and, if a gradient came, g [m, n]; or each with a batch axis.
        names: of the three products and their factors, as a person calls them.
        wanted: which of the products the step makes.
    """

    def __init__(
        self, subjects: Mapping[str, Subject], names: Mapping[str, str], wanted: Sequence[str]
    ) -> None:
        self.subjects, self.names = subjects, names
        x, w = subjects["x"].x, subjects["w"].x

        def some(size: int, most: int) -> Tensor | None:
            found = chosen(size, most)
            return None if found is None else torch.tensor(found, device=x.device)

        (m, k), n = x.shape[-2:], w.shape[-2]
        batches = x.shape[0] if x.dim() > 2 else 1
        batch, rows, columns, inner = some(batches, BATCHES), *(some(i, ROWS) for i in (m, n, k))
        counts = zip((batches, m, n, k), (batch, rows, columns, inner), strict=True)
        parts = [size if part is None else part.numel() for size, part in counts]
        self.sampled = None if parts == [batches, m, n, k] else parts
        self.parts = {
            ("output", "x"): Part(batch, rows, -2),
            ("output", "w"): Part(batch, columns, -2),
            ("grad_x", "g"): Part(batch, rows, -2),
            ("grad_x", "w"): Part(batch, inner, -1),
            ("grad_w", "g"): Part(batch, columns, -1),
            ("grad_w", "x"): Part(batch, inner, -1),
        }
        self.products = [p for p in wanted if set(FACTORS[p]) <= subjects.keys()]
        self.rounded: dict[Any, dict[str, Rounded]] = {}
        self.measured: dict[Any, Numbers] = {}
        as_is = Use(None)
        self.references = {
            p: multiplied(p, *(self.factor(p, which, as_is, 0).values for which in FACTORS[p]))
            for p in self.products
        }

    @property
    def stakes(self) -> Mapping[str, Tensor]:
        """By result, how far the loss moves if it is off by as much as it is large."""
        found: dict[str, Tensor] = {}
        for product, result in self.references.items():
            other = {"output": "g", "grad_x": "x", "grad_w": "w"}[product]
            if other in self.subjects:
                left, right = (self.subjects[which].x for which in FACTORS[product])
                rows = left.shape[-1 if product == "grad_w" else -2]
                columns = right.shape[-2 if product == "output" else -1]
                count = rows * columns * math.prod(left.shape[:-2])
                found[self.names[product]] = stake(result, count, self.subjects[other])
        return found

    def factor(self, product: str, which: str, use: Use, loss_log2: int) -> Rounded:
        """The part of a factor that is compared, rounded as `use` says."""
        is_shared = use.operand.is_shared
        key = (which, use.text, is_shared or use.along, loss_log2)
        if key not in self.rounded:
            values, lost, log2 = self.subjects[which].rounded(use, loss_log2)
            takers = [p for p in FACTORS if which in FACTORS[p]] if is_shared else [product]
            self.rounded[key] = {
                p: Rounded(self.parts[p, which].of(values), lost, log2) for p in takers
            }
        return self.rounded[key][product]

    def measure(self, formats: ProductFormats, loss_log2: int) -> Numbers:
        """What a recipe makes of it."""
        key = (formats, loss_log2)
        if key not in self.measured:
            self.measured[key] = self.measure_anew(formats, loss_log2)
        return self.measured[key]

    def measure_anew(self, formats: ProductFormats, loss_log2: int) -> Numbers:
        """The same, which no recipe before has asked for."""
        uses = {
            "output": (Use(formats.x_output), Use(formats.w_output)),
            "grad_x": (Use(formats.g_grad_input), Use(formats.w_grad_input, -2)),
            "grad_w": (Use(formats.g_grad_weight, -2), Use(formats.x_grad_weight, -2)),
        }
        found = Numbers()
        for product in self.products:
            pairs = list(zip(FACTORS[product], uses[product], strict=True))
            factors = [self.factor(product, which, use, loss_log2) for which, use in pairs]
            for (which, _), factor in zip(pairs, factors, strict=True):
                if factor.lost is not None:
                    name = f"{self.names[product]}.{self.names[which]}"
                    found.operands[name] = (factor.lost, self.subjects[which].x.numel())
            sums = SUM_OVER_ROWS if product == "grad_w" else SUM_OVER_FEATURES
            result = round_sum(multiplied(product, *(f.values for f in factors)), formats, sums)
            log2 = sum(factor.log2 for factor in factors)
            result = result if log2 == 0 else result * 2.0**log2
            reference = self.references[product]
            found.results[self.names[product]] = sizes(reference, result - reference)
        return found


def multiplied(product: str, left: Tensor, right: Tensor) -> Tensor:
    """One of the three products of its two factors."""
    if product == "output":
        return left @ right.mT
    return left @ right if product == "grad_x" else left.mT @ right


class LayerForm(NamedTuple):
    """How the operands of a node become x and w of a linear layer.

    Args:
        is_crossed: the second operand is x, so that the layer computes the transpose of the output.
        is_transposed: the second operand is [k, n].
        is_column: the second operand is a vector [k], which stands for [k, 1]. A vector that is
            the first one stands for the row [1, k].
    """

    is_crossed: bool
    is_transposed: bool
    is_column: bool = False

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """x and w."""
        b = b.unsqueeze(-1) if self.is_column else b
        x, w = (b.mT, a) if self.is_crossed else (a, b.mT if self.is_transposed else b)
        return self.flat(x, w), w.flatten(0, -3) if w.dim() > 2 else w

    def gradient(self, grad: Tensor, w: Tensor) -> Tensor:
        """g, from the gradient of the output."""
        grad = grad.unsqueeze(-1) if self.is_column else grad
        return self.flat(grad.mT if self.is_crossed else grad, w)

    @staticmethod
    def flat(x: Tensor, w: Tensor) -> Tensor:
        """x or g with its leading axes as one: they are rows if w is a matrix, else a batch."""
        if x.dim() == 1:
            return x.unsqueeze(0)
        return x.flatten(0, -2 if w.dim() == 2 else -3) if x.dim() > 2 else x


def layer_of(node: fx.Node, a: Tensor, b: Tensor) -> LayerForm | None:
    """The form of a product that `gemm` computes as a linear layer or as many; None of others."""
    function = GEMM.get(node.target) if fits_gemm(node) else None
    if function is gemm.linear and b.dim() == 2:
        return LayerForm(is_crossed=False, is_transposed=False)
    if function not in (gemm.matmul, gemm.addmm) or (a.dim() == 1 and b.dim() > 2):
        return None
    if b.dim() <= 2 or (a.dim() > 2 and a.shape[:-2] == b.shape[:-2]):
        return LayerForm(is_crossed=False, is_transposed=True, is_column=b.dim() == 1)
    return LayerForm(is_crossed=True, is_transposed=False) if a.dim() == 2 else None


def roles_of(node: fx.Node, taken: Sequence[fx.Node]) -> list[str]:
    """How a person calls the operands of a node."""
    if rule_of(node).kind == "attention":
        return ["query", "key", "value"][: len(taken)]
    weights = [is_weight(x) for x in taken]
    if len(taken) == 2:
        return ["weight", "input"] if weights == [True, False] else ["input", "weight"]
    names: list[str] = []
    for is_one in weights:
        name = "weight" if is_one else "input"
        count = sum(other.split()[0] == name for other in names)
        names.append(f"{name} {count + 1}" if count else name)
    return names


def layer_names(roles: Sequence[str]) -> dict[str, str]:
    """The names of the products and factors of a `Layer` whose x and w have these roles."""
    x, w = roles
    return {
        "output": "output",
        "grad_x": f"grad_{x}",
        "grad_w": f"grad_{w}",
        "x": x,
        "w": w,
        "g": "grad_output",
    }


class Other:
    """A product that is no matrix product: run again, forward and backward, on rounded operands.

    Args:
        subjects: the operands by role, and `grad_output` if a gradient came.
        run: the op as a function of its operands.
        wanted: the operands whose gradients the step makes.
    """

    sampled = None

    def __init__(self, subjects: Mapping[str, Subject], run: Any, wanted: Sequence[str]) -> None:
        self.subjects, self.run = subjects, run
        self.roles = [role for role in subjects if role != "grad_output"]
        self.wanted = [role for role in wanted if "grad_output" in subjects]
        self.measured: dict[Any, Numbers] = {}
        self.references = self.results({role: subjects[role].x for role in subjects})

    @property
    def stakes(self) -> Mapping[str, Tensor]:
        """By result, how far the loss moves if it is off by as much as it is large."""
        others = {name: name.removeprefix("grad_") for name in self.references}
        others["output"] = "grad_output"
        return {
            name: stake(result, result.numel(), self.subjects[others[name]])
            for name, result in self.references.items()
            if others[name] in self.subjects
        }

    def results(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The output and the gradients that are wanted."""
        with torch.enable_grad():
            leaves = [values[role].detach().requires_grad_() for role in self.roles]
            output = self.run(*leaves)
            wanted = [leaf for leaf, r in zip(leaves, self.roles, strict=True) if r in self.wanted]
            grads: Sequence[Tensor | None] = ()
            if wanted:
                grad = values["grad_output"]
                grads = torch.autograd.grad(output, wanted, grad, allow_unused=True)
        names = [f"grad_{role}" for role in self.roles if role in self.wanted]
        found = {name: g for name, g in zip(names, grads, strict=True) if g is not None}
        return {"output": output.detach()} | found

    def measure(self, formats: ProductFormats, loss_log2: int) -> Numbers:
        """What a recipe makes of it."""
        key = (formats, loss_log2)
        if key not in self.measured:
            self.measured[key] = self.measure_anew(formats, loss_log2)
        return self.measured[key]

    def measure_anew(self, formats: ProductFormats, loss_log2: int) -> Numbers:
        """The same, which no recipe before has asked for."""
        found = Numbers()
        values: dict[str, Tensor] = {}
        for index, (role, subject) in enumerate(self.subjects.items()):
            is_gradient = role == "grad_output"
            text = formats.x_output if index == 0 else formats.w_output
            rounded = subject.rounded(Use(formats.g_grad_input if is_gradient else text), loss_log2)
            values[role] = rounded.values * 2.0**rounded.log2
            if rounded.lost is not None:
                where = "backward" if is_gradient else "output"
                found.operands[f"{where}.{role}"] = (rounded.lost, subject.x.numel())
        for name, result in self.results(values).items():
            reference = self.references[name]
            found.results[name] = sizes(reference, at_unit(result, formats) - reference)
        return found


def at_unit(result: Tensor, formats: ProductFormats) -> Tensor:
    """A result on the grid of the recipe's results; of a recipe with units, held near an RMS of 1.

    What `gemm` knows from the units is measured here.
    """
    if formats.result is None:
        return result
    size = float(result.square().mean().sqrt()) if result.numel() else 0.0
    unit = 2.0 ** round(torch.tensor(size).log2().item()) if formats.at_units and size else 1.0
    return round_sum(result / unit, formats) * unit


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
