"""`ProductFormats`: what one product of a graph is told of its operands, as texts."""

from functools import cache
from typing import NamedTuple

import torch

from unitscale.formats import BlockFormat
from unitscale.recipes import Cast, Gemm, Operand, Unit, parse_operand

__all__ = ["ProductFormats"]


class ProductFormats(NamedTuple):
    """The six operands of the three products of a layer, by their texts; None leaves one as it is.

    x is the input, w the weight, g the gradient of the output; then the product it is taken by.
    `result` is a format by name, to which each of output, grad_input and grad_weight is rounded.
    `executor` says how the product runs, see `gemm.executor`.
    Texts and not objects, so that a printed graph can be read (and re-executed).
    """

    x_output: str | None = None
    w_output: str | None = None
    g_grad_input: str | None = None
    w_grad_input: str | None = None
    g_grad_weight: str | None = None
    x_grad_weight: str | None = None
    result: str | None = None
    executor: str = "emulated"

    @classmethod
    def of(
        cls,
        value: str | None = None,
        gradient: str | None = None,
        result: str | None = None,
        *,
        executor: str = "emulated",
    ) -> "ProductFormats":
        """Each tensor rounded alike in both of its products: input and weight by `value`."""
        return cls(value, value, gradient, value, gradient, value, result, executor)

    @classmethod
    def from_gemm(cls, gemm: Gemm, executor: str) -> "ProductFormats":
        """The texts of a recipe's products."""
        (x, w), (g, w_back), (g_back, x_back) = gemm.output, gemm.grad_input, gemm.grad_weight
        rounded = (x, w, g, w_back, g_back, x_back)
        first, second, third, fourth, fifth, sixth = (str(o) if o.rounds else None for o in rounded)
        result = gemm.results.name if gemm.results else None
        return cls(first, second, third, fourth, fifth, sixth, result, executor)

    def crossed(self) -> "ProductFormats":
        """The same of a product whose operands change places: x^T is the weight of `w^T x^T`."""
        x, w, g, w_back, g_back, x_back = self.texts
        return ProductFormats(w, x, g_back, x_back, g, w_back, self.result, self.executor)

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The six operands."""
        return self[:6]

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Those that are rounded."""
        return tuple(operand_of(text) for text in self.texts if text is not None)

    @property
    def is_scaled(self) -> bool:
        """Whether some operand has a scale beside its data; see `gemm.operand`."""
        return is_scaled(self.texts)

    @property
    def at_units(self) -> bool:
        """Whether operands are at unit scale, so that sums of them are rounded smaller."""
        return any(isinstance(operand.scale, Unit) for operand in self.operands)

    def __str__(self) -> str:
        """The operands in short: value and gradient, or the three products where they differ."""
        x, w, g, w_back, g_back, x_back = (text or "as is" for text in self.texts)
        result = f" -> {self.result}" if self.result else ""
        if (x, g) == (x_back, g_back) and x == w == w_back:
            return f"{x}, gradients {g}{result}"
        parts = (
            f"output {x} @ {w}",
            f"grad_input {g} @ {w_back}",
            f"grad_weight {g_back} @ {x_back}",
        )
        return "; ".join(parts) + result


class Parsed:
    """What texts mean, each an attribute named by its text.

    Dynamo warns of `functools.cache`, and loses what a function returns that it does not trace;
    an attribute of an object it reads as it is. Seen in torch 2.13.
    """


OPERANDS = Parsed()


def operand_of(text: str) -> Operand:
    """The operand of a text, also where Dynamo traces a product."""
    parse_into(text)
    operand: Operand = getattr(OPERANDS, text)
    return operand


@torch.compiler.assume_constant_result
def parse_into(text: str) -> None:
    """Have the operand of a text among those that are known."""
    if not hasattr(OPERANDS, text):
        setattr(OPERANDS, text, parse_operand(text))


@torch.compiler.assume_constant_result
def is_scaled(texts: tuple[str | None, ...]) -> bool:
    """Whether one of some operands has a scale of its own."""
    return any_scaled(texts)


@cache
def any_scaled(texts: tuple[str | None, ...]) -> bool:
    """`is_scaled`, found once."""
    return any(has_scale(parse_operand(text)) for text in texts if text is not None)


def has_scale(operand: Operand) -> bool:
    """Whether an operand is data and a scale: of a block format, or with one that is no unit."""
    return isinstance(operand.format, BlockFormat) or not isinstance(operand.scale, Cast | Unit)
