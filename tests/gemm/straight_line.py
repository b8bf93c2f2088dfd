"""A layer's three products written out: what the products of every recipe are compared with.

Each of the six operands is rounded by its own line from the tensor itself, along the axis that its
product contracts, and multiplied in plain float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unitscale.formats import FORMATS, BlockFormat, Codec, round_to
from unitscale.gemm import ProductFormats
from unitscale.gemm.hadamard import rotation
from unitscale.recipes import Cast, Constant, Current, Unit, parse_operand

SPREAD = 6
"""Binades up and down: scales that are powers of two show only where something is lost below."""

SMALLEST = 2.0**-14
"""With this FP16 holds sums of products."""

Taken = Callable[[Tensor, str | None, int], Tensor]
"""A tensor as a product takes it: by an operand's text, contracted along an axis."""

SMALLER = {"output": 2.0**-4, "grad_input": 2.0**-4, "grad_weight": 2.0**-6}
"""At unit scale FP16 results are rounded smaller by this, see `gemm.rounded`."""


def drawn(*shape: int) -> Tensor:
    """Eight bits a value, with rows and columns of other sizes: granularities show.

    Sums over a run that is turned are exact, in any order.
    """
    x = (torch.randn(shape) * 64).round().clamp(-127, 127) * SMALLEST
    for axis in (-1, -2):
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        x = x * 2.0 ** torch.randint(-SPREAD, SPREAD + 1, sizes)
    return x


def taken(x: Tensor, text: str | None, axis: int) -> Tensor:
    """The values that an operand's product multiplies.

    With a transform they come in turned runs of the contraction, filled up with zeros.
    """
    if text is None:
        return x
    operand = parse_operand(text)
    fmt, scale = operand.format, operand.scale
    y = x if axis == -1 else x.mT
    if operand.transform is not None:
        y = turned(y, operand.transform.size)
    if isinstance(scale, Cast | Unit) and not isinstance(fmt, BlockFormat):
        y = round_to(y, fmt, operand.rounding, saturate=fmt.bits <= 8)
    else:
        current = scale if isinstance(scale, Current) else Current()
        codec = Codec(
            format=fmt,
            granularity=operand.granularity,
            power_of_two=current.power_of_two,
            margin=current.margin,
            rounding=operand.rounding,
        )
        two_levels = isinstance(fmt, BlockFormat) and fmt.has_tensor_scale
        given = {
            Constant: lambda: {"scale": 2.0**scale.log2},
            Unit: lambda: {"tensor_scale": 1.0} if two_levels else {},
        }.get(type(scale), dict)()
        y = codec.round(y, **given)
    return y if axis == -1 else y.mT


def turned(y: Tensor, size: int) -> Tensor:
    """Runs of the last axis times random signs and a Hadamard matrix, entry by entry.

    An entry of Sylvester's matrix is -1 to the number of bits that row and column share.
    """
    y = F.pad(y, (0, -y.shape[-1] % size))
    signs = rotation(size, y)[:, 0].sign()
    parity = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    runs = y.reshape(*y.shape[:-1], -1, size) * signs
    return (runs @ torch.tensor(parity) / size**0.5).reshape(y.shape)


def result(product: Tensor, formats: ProductFormats, name: str) -> Tensor:
    """A product as the recipe leaves it."""
    if formats.result is None:
        return product
    factor = SMALLER[name] if formats.at_units and formats.result == "FP16" else 1.0
    return round_to(product * factor, FORMATS[formats.result], saturate=False) / factor


def linear_products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    formats: ProductFormats,
    take: Taken = taken,
) -> list[Tensor]:
    """The three products of a linear layer: x [m, k], weight [n, k], grad [m, n]."""
    output = take(x, formats.x_output, -1) @ take(weight, formats.w_output, -1).mT
    output = output if bias is None else output + bias
    grad_x = take(grad, formats.g_grad_input, -1) @ take(weight, formats.w_grad_input, -2)
    grad_weight = take(grad, formats.g_grad_weight, -2).mT @ take(x, formats.x_grad_weight, -2)
    found = {"output": output, "grad_input": grad_x, "grad_weight": grad_weight}
    return [result(product, formats, name) for name, product in found.items()]


def matmul_products(
    a: Tensor, b: Tensor, grad: Tensor, formats: ProductFormats, take: Taken = taken
) -> list[Tensor]:
    """Those of `a @ b`: a [..., m, k] is the input, b [..., k, n] the weight."""
    output = take(a, formats.x_output, -1) @ take(b, formats.w_output, -2)
    grad_a = take(grad, formats.g_grad_input, -1) @ take(b, formats.w_grad_input, -1).mT
    grad_b = take(a, formats.x_grad_weight, -2).mT @ take(grad, formats.g_grad_weight, -2)
    found = {"output": output, "grad_input": grad_a, "grad_weight": grad_b}
    return [result(product, formats, name) for name, product in found.items()]


def magnitude(x: Tensor, text: str | None, axis: int) -> Tensor:
    """`taken` without signs: products of these bound what their sums add up."""
    return taken(x, text, axis).abs()


def assert_products(
    got: list[Tensor], want: list[Tensor], sums: list[Tensor], terms: list[int], result: str | None
) -> None:
    """Equal but for the order of float32 sums, then by one spacing of the format of results.

    A sum of n terms in any order is off by n 2^-24 of the `sums` of their magnitudes; four more
    roundings are those of the scales, of a bias and of what is summed.
    """
    fmt = None if result is None else FORMATS[result]
    spacing = 0.0 if fmt is None else 2.0**-fmt.mantissa_bits
    least = 0.0 if fmt is None else fmt.min_subnormal / SMALLER["grad_weight"]
    for index, (a, b, most, n) in enumerate(zip(got, want, sums, terms, strict=True)):
        assert a.shape == b.shape, index
        allowed = (n + 4) * 2.0**-24 * most.abs() + spacing * b.abs() + least
        off = (a - b).abs()
        assert (off <= allowed).all(), f"product {index}: {(off / allowed).max():.1f} times allowed"
