"""The three products of a layer, and the rules that say which products of a model are which.

For a linear layer `y = x w^T` and the gradient g of y:

    output      = x   @ w^T       contraction over the features that come in
    grad_input  = g   @ w         over the features that go out
    grad_weight = g^T @ x         over the rows: tokens, pixels, samples

Each tensor is an operand twice. Where both operands are the same function of it, one copy is kept;
where scales follow the contraction (rows, blocks) there are two, and they differ. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from unitscale.formats import FloatFormat
from unitscale.recipes.operand import AS_IS, Delayed, Operand, Unit

__all__ = ["OPS", "PRODUCTS", "Gemm", "Op", "Rule"]

Op = Literal[
    "*", "linear", "layer", "readout", "matmul", "attention", "convolution", "grouped", "other"
]
OPS: tuple[str, ...] = get_args(Op)
"""Kinds of products: `linear` is a matrix product with a parameter; it includes `layer`, that of a
module of the class `Linear`, which is what servers round; `readout`, that of a
`unitscale.nn.LinearReadout`; and `grouped`, which multiplies each group of rows by the matrix of an
expert. `matmul` has no parameter, `attention` is fused, `other` is einsum, bilinear and so on.
"""

INCLUDED_IN_LINEAR = ("layer", "readout", "grouped")

Pair = tuple[Operand, Operand]
PRODUCTS = {
    "output": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
"""The operands of the three products, in order."""


@dataclass(frozen=True)
class Gemm:
    """The six operands of a layer's three products, and the format of the three results.

    Args:
        output: input and weight.
        grad_input: gradient of the output, and weight.
        grad_weight: gradient of the output, and input.
        results: what each result is rounded to; None leaves it in the model's dtype.
    Raises:
        TypeError: a product is no pair of operands, or results no FloatFormat.
        ValueError: one operand of a product is turned by a Hadamard matrix and the other is not; a
            tensor with a delayed scale is taken in two ways, of which it has one history.
    """

    output: Pair = (AS_IS, AS_IS)
    grad_input: Pair = (AS_IS, AS_IS)
    grad_weight: Pair = (AS_IS, AS_IS)
    results: FloatFormat | None = None

    def __post_init__(self) -> None:
        for name, pair in self.pairs():
            is_pair = isinstance(pair, tuple) and len(pair) == len(PRODUCTS[name])
            if not (is_pair and all(isinstance(operand, Operand) for operand in pair)):
                has_text = isinstance(pair, tuple) and any(isinstance(x, str) for x in pair)
                hint = "; unitscale.recipes.parse_operand makes one of a text" if has_text else ""
                raise TypeError(
                    f"Gemm: {name} is {pair!r}; expected a pair of operands, "
                    f"({', '.join(PRODUCTS[name])}){hint}"
                )
        if not isinstance(self.results, FloatFormat | None):
            raise TypeError(f"Gemm: results is {self.results!r}; expected a FloatFormat or None")
        for tensor, (one, other) in self.taken_twice():
            delayed = any(isinstance(operand.scale, Delayed) for operand in (one, other))
            if delayed and one != other:
                raise ValueError(
                    f"Gemm: the {tensor} is taken as {one} and as {other}; a delayed scale has one "
                    "history for each tensor, so take it alike in both products"
                )
        for name, (left, right) in self.pairs():
            if left.transform != right.transform:
                raise ValueError(
                    f"Gemm: the two operands of {name} are turned by {left.transform} and "
                    f"{right.transform}; the product is right only if both are turned alike"
                )

    @classmethod
    def of(
        cls,
        value: Operand,
        gradient: Operand | None = None,
        *,
        weight: Operand | None = None,
        results: FloatFormat | None = None,
    ) -> "Gemm":
        """Each tensor rounded alike in both of its products.

        Args:
            value: of the input, and of the weight unless that is given.
            gradient: of the output's gradient; None is `value`.
        Raises:
            TypeError: one of them is no Operand.
        """
        for name, given in (("value", value), ("gradient", gradient), ("weight", weight)):
            if not isinstance(given, Operand) and (name == "value" or given is not None):
                hint = f"; write parse_operand({given!r})" if isinstance(given, str) else ""
                raise TypeError(f"Gemm.of: {name} is {given!r}; expected an Operand{hint}")
        weight = value if weight is None else weight
        gradient = value if gradient is None else gradient
        return cls((value, weight), (gradient, weight), (gradient, value), results)

    def pairs(self) -> Iterator[tuple[str, Pair]]:
        """The products by name, with their two operands."""
        yield "output", self.output
        yield "grad_input", self.grad_input
        yield "grad_weight", self.grad_weight

    def taken_twice(self) -> Iterator[tuple[str, Pair]]:
        """The tensors by name, with the operands that they are in their two products."""
        yield "input", (self.output[0], self.grad_weight[1])
        yield "weight", (self.output[1], self.grad_input[1])
        yield "gradient of the output", (self.grad_input[0], self.grad_weight[0])

    @property
    def operands(self) -> tuple[Operand, ...]:
        """All six, in the order of the products."""
        return tuple(operand for _, pair in self.pairs() for operand in pair)

    @property
    def rounds(self) -> bool:
        """Whether it changes any product."""
        return self.results is not None or any(operand.rounds for operand in self.operands)

    @property
    def is_per_tensor(self) -> bool:
        """Whether every tensor is rounded once, with one scale: what every kind of product has.

        By chance too: both products then take the same draws.
        """
        return all(operand.is_per_tensor for operand in self.operands) and all(
            one == other for _, (one, other) in self.taken_twice()
        )

    @property
    def unit_scaled(self) -> bool:
        """Whether operands are at the units of their tensors."""
        return any(isinstance(operand.scale, Unit) for operand in self.operands)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The three products as rows (product, left operand, right operand, result)."""
        result = "as is" if self.results is None else self.results.name
        return [(name, str(left), str(right), result) for name, (left, right) in self.pairs()]


@dataclass(frozen=True)
class Rule:
    """Which products are multiplied how; of several that match, the first counts.

    Args:
        path: a pattern of module paths, as in fnmatch; it matches what is inside of a module too.
        op: the kind of product, see `OPS`.
        gemm: None keeps these products in full precision.
    Raises:
        TypeError: path is no string, or gemm no Gemm. ValueError: an unknown op, an empty path.
    """

    path: str = "*"
    op: Op = "*"
    gemm: Gemm | None = field(default=None)

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"Rule: op is {self.op!r}; expected one of {', '.join(OPS)}")
        if not isinstance(self.path, str):
            raise TypeError(f"Rule: path is {self.path!r}; expected a pattern, as '*.mlp'")
        if not isinstance(self.gemm, Gemm | None):
            raise TypeError(
                f"Rule: gemm is {self.gemm!r}; expected a Gemm, or None for full precision"
            )
        if not self.path:
            raise ValueError("Rule: path is empty; expected a pattern of module paths, as '*.mlp'")

    def covers(self, op: Op) -> bool:
        """Whether it is for a product of this kind."""
        return self.op in ("*", op) or (self.op == "linear" and op in INCLUDED_IN_LINEAR)
