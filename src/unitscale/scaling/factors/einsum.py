"""Factors of an einsum, read off its equation."""

import re
from collections.abc import Sequence
from math import prod

from unitscale.scaling.factors.result import EinsumFactors, count_scale

__all__ = ["einsum_factors"]


def einsum_factors(equation: str, *shapes: Sequence[int]) -> EinsumFactors:
    """Factors of `einsum(equation, *operands)` for operands of the given shapes.

    Output: the number of terms summed into an entry is the product of the sizes of the indices that
    the output lacks. Gradient of an operand: the product of those that this operand lacks.

    Args:
        equation: torch's syntax, with "..." and with or without "->".
        shapes: one per operand.
    Raises:
        ValueError: the equation does not fit the shapes, or an index has two sizes.
    Source: derived from independence of the operands and the output gradient.
    """
    terms, output = parse(equation, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, size in zip(term, shape, strict=True):
            # Broadcasting of "..." dimensions is the only case in which sizes may differ.
            if sizes.setdefault(index, size) == 1 and index.isdigit():
                sizes[index] = size
            elif size != sizes[index] and not (size == 1 and index.isdigit()):
                raise ValueError(
                    f"einsum {equation!r}: index {index!r} has sizes {sizes[index]} and {size}; "
                    f"shapes are {[tuple(shape) for shape in shapes]}."
                )

    def lacking(present: str) -> float:
        return count_scale(prod(size for index, size in sizes.items() if index not in present))

    return EinsumFactors(
        output_scale=lacking(output), grad_input_scales=tuple(lacking(term) for term in terms)
    )


def parse(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """Index strings of the operands and of the output; a "..." becomes digits, aligned right."""
    compact = equation.replace(" ", "")
    if not re.fullmatch(r"[a-zA-Z.,]*(->[a-zA-Z.]*)?", compact):
        raise ValueError(f"einsum: cannot read {equation!r}; expected indices like 'bij,bjk->bik'.")
    left, arrow, output = compact.partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ValueError(
            f"einsum {equation!r} has {len(terms)} operand(s), got {len(ndims)} shape(s)."
        )
    terms = [expand(term, ndim, equation) for term, ndim in zip(terms, ndims, strict=True)]
    dots = max(("".join(filter(str.isdigit, term)) for term in terms), key=len)
    if not arrow:
        letters = sorted({index for term in terms for index in term if index.isalpha()})
        once = [index for index in letters if sum(term.count(index) for term in terms) == 1]
        return terms, dots + "".join(once)
    return terms, output.replace("...", dots)


def expand(term: str, ndim: int, equation: str) -> str:
    """Write the dimensions under "..." as digits, counted from the right: "...i" to "210i"."""
    named = len(term.replace("...", ""))
    extra = ndim - named
    if extra < 0 or (extra > 0 and "..." not in term):
        raise ValueError(
            f"einsum {equation!r}: operand {term!r} names {named} dimension(s), "
            f"its shape has {ndim}."
        )
    return term.replace("...", "".join(str(i) for i in reversed(range(extra))))
