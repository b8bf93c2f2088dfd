"""Factors of an einsum, read off its equation."""

import re
from collections.abc import Sequence

from unitscale.scaling.constant import evaluated_once
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
    terms, output = einsum_terms(equation, tuple(len(shape) for shape in shapes))
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, size in zip(term, shape, strict=True):
            known = sizes.get(index, 1)
            if index in sizes and known != size and not (index.isdigit() and 1 in (known, size)):
                raise ValueError(
                    f"einsum {equation!r}: index {index!r} has sizes {known} and {size}; "
                    f"shapes are {[tuple(shape) for shape in shapes]}."
                )
            sizes[index] = size if known == 1 else known  # only "..." dimensions broadcast
    return EinsumFactors(
        output_scale=lacking(sizes, {index: sizes[index] for index in output}),
        grad_input_scales=tuple(
            lacking(sizes, dict(zip(term, shape, strict=True)))
            for term, shape in zip(terms, shapes, strict=True)
        ),
    )


def lacking(sizes: dict[str, int], own: dict[str, int]) -> float:
    """The factor for a sum over every index that a tensor lacks, or has once for all."""
    terms = 1
    for index, size in sizes.items():
        if own.get(index, 1) == 1:
            terms = terms * size
    return count_scale(terms)


@evaluated_once
def einsum_terms(equation: str, ndims: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    """Indices of the operands and of the output; the dimensions of "..." become digits."""
    compact = equation.replace(" ", "")
    if not re.fullmatch(r"[a-zA-Z.,]*(->[a-zA-Z.]*)?", compact):
        raise ValueError(f"einsum: cannot read {equation!r}; expected indices like 'bij,bjk->bik'.")
    left, arrow, output = compact.partition("->")
    named = left.split(",")
    if len(named) != len(ndims):
        raise ValueError(
            f"einsum {equation!r} has {len(named)} operand(s), got {len(ndims)} shape(s)."
        )
    terms = tuple(expand(term, ndim, equation) for term, ndim in zip(named, ndims, strict=True))
    dots = max(("".join(filter(str.isdigit, term)) for term in terms), key=len)
    if arrow:
        return terms, output.replace("...", dots)
    letters = sorted({index for term in terms for index in term if index.isalpha()})
    once = [index for index in letters if sum(term.count(index) for term in terms) == 1]
    return terms, dots + "".join(once)


def expand(term: str, ndim: int, equation: str) -> str:
    """Number the dimensions of "..." from the right: "...i" of three dimensions is "10i"."""
    named = len(term.replace("...", ""))
    extra = ndim - named
    if extra < 0 or (extra > 0 and "..." not in term):
        raise ValueError(
            f"einsum {equation!r}: operand {term!r} names {named} dimension(s), "
            f"its shape has {ndim}."
        )
    return term.replace("...", "".join(str(place) for place in reversed(range(extra))))
