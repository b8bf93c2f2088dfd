"""How many bits the products of a recipe take, from the recipe itself. Imports no torch."""

from unitscale.formats import BlockFormat, FloatFormat
from unitscale.recipes import parse

NOT_ROUNDED = 32.0
"""Bits of an operand that a recipe leaves as it is."""


def width_of(recipe: str) -> float | None:
    """The bits of the wider operand of the forward product of most layers; None if nobody knows it.

    What hardware multiplies is decided by the wider of the two.
    """
    try:
        known = parse(recipe)
    except ValueError:
        return None
    return max(bits_of(operand.format) for operand in known.main.output)


def bits_of(fmt: FloatFormat | BlockFormat | None) -> float:
    """The bits of an element; the scale of a block is not multiplied, and not counted."""
    if fmt is None:
        return NOT_ROUNDED
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    return float(element.bits)


def kind_of(recipe: str) -> str | None:
    """What a machine must multiply for a recipe: fp4, fp6, fp8, fp16, bf16 or fp32."""
    width = width_of(recipe)
    if width is None:
        return None
    formats = [operand.format for operand in parse(recipe).main.output]
    if any(fmt is not None and fmt.name == "BF16" for fmt in formats):
        return "bf16"
    return f"fp{width:g}"
