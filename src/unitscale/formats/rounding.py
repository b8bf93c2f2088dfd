"""`round_to`: which way a tensor is rounded. The formulas are in `kernel`, compiled in `fused`.

Outside of graphs, torch's own cast is used where it gives the same bits faster, and a large tensor
is rounded piece by piece, each small enough to stay in the cache from the first pass to the last.
"""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from unitscale.formats import fused, stochastic
from unitscale.formats.batched import is_batched, over_lanes
from unitscale.formats.catalogue import BF16, E4M3FN, E5M2, FP16, FP32
from unitscale.formats.dtypes import TORCH_DTYPES, carrier
from unitscale.formats.format import FloatFormat
from unitscale.formats.hashing import LANES, draw_seed, keys_of
from unitscale.formats.kernel import Bits, Law, Rounding
from unitscale.formats.traced import as_constant

PIECE = 2**17
"""Elements of a piece for each thread. Measured best in float32: smaller ones cost dispatch, larger
ones cache, of which each core has its own."""

Write = Callable[[Tensor, Bits], Tensor]


def round_to(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: Generator | None = None,
    out: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    inv_scale: float | Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """Round every element of `x` to a value of `fmt`; dtype and shape stay.

    "nearest": the closest value; ties go to the even mantissa, or to the larger magnitude where
    there is no mantissa bit (E8M0FNU). "toward_zero": the closest value of no larger magnitude.
    "stochastic": of the two neighbours `lo <= |x| <= hi` the upper one with probability
    `(|x| - lo) / (hi - lo)`, and values of the format never move. The probability is exact for
    float32 and narrower inputs at the format's normals; below them, where it needs more bits than
    there are, it is rounded to the nearest of `2**-n`, so the mean of the result is `x` to within
    `2**-(n + 1)` of the spacing. There are `n = 23 - mantissa_bits` random bits (20 for E4M3FN, 21
    for E5M2, 13 for FP16), and 23 of them with a generator, for float64 and for E8M0FNU.

    The random bits of the element at (row-major) index i are a hash of the seed and i, the same in
    eager code, in graphs and compiled; indices count modulo 2**32. Without a seed one is drawn from
    torch's global generator. With a generator all bits come from it one by one, in eager code only.

    A magnitude that rounds past the largest value, Inf among them, becomes the largest value
    (`saturate`), or else Inf, or NaN if the format has no Inf; if it has neither, it saturates in
    any case. Toward zero, only Inf is past the largest value. NaN stays NaN, even in a format
    without. Zero, and what rounds to zero, keeps its sign unless the format has no -0. An unsigned
    format turns negative values into NaN. In E8M0FNU, which has no zero, positive values below the
    smallest become the smallest; zero becomes the smallest (`saturate`) or NaN.

    The result is a value of `x.dtype` too: the largest of FP16 within bfloat16 is 65280.
    It has no autograd history. `x` counts as a constant: no straight-through gradient is implied.

    Compiled, one loop does it all at about the speed of a copy. Nothing is compiled unless asked
    for with `compiled=True`, and then only for contiguous tensors of 2**16 elements and more;
    others are rounded in eager code, to the same bits. The first call for a format, mode and dtype
    compiles: about 10 seconds for the first one on a machine, 1 to 2 for others. Inside
    `torch.compile` the argument changes nothing.

    Args:
        x: float64, float32, bfloat16 or float16; any shape and strides.
        generator: random bits for "stochastic", on x's device.
        out: receives the result and is returned; may be `x` itself.
        seed: of the hash, for "stochastic": an int or 0-dim integer tensor of up to 64 bits.
        inv_scale: x is multiplied by it first, in the same pass: a number or a tensor of one
            element. The product is rounded to float32 (of float64: to float64), so exact for a
            power of two. Requires that x.dtype holds every value of `fmt`.
    Raises:
        TypeError: x has another dtype.
        ValueError: unknown `rounding`; a generator or seed for a rounding that is not stochastic,
            both of them, or a generator with `compiled`; `out` of another shape or dtype than x;
            an `inv_scale` of several elements, or for a format that x.dtype does not hold.
    """
    if rounding == "nearest" and out is None and inv_scale is None and is_batched(x):
        return over_lanes(lambda lanes: round_to(lanes, fmt, saturate=saturate), x)
    fmt = as_constant(fmt)
    law, bits, scale = prepare(
        "round_to", x, fmt, rounding, saturate, generator, seed, inv_scale, compiled
    )
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype):
        raise ValueError(
            f"round_to: out is {out.dtype} {tuple(out.shape)}; "
            f"expected {x.dtype} {tuple(x.shape)}, as x"
        )
    x = x.detach()
    if is_traced(x):
        y = in_rows(x, lambda part: law.rounded(part, bits, scale), rounding)
        if out is not None:
            return out.copy_(y)
        # No `to` that does nothing: an autograd.Function that ends in one has zero gradients under
        # Dynamo of torch 2.11.
        return y.clone() if y is x else y if y.dtype == x.dtype else y.to(x.dtype)
    if compiled and fused.serves(x, out):
        out = torch.empty_like(x) if out is None else out
        return fused.apply(law, x, bits.keys, scale, out, encode=False)
    if stochastic.serves(law, x, bits) and (out is None or out.is_contiguous()):
        out = torch.empty_like(x) if out is None else out
        return stochastic.apply(law, x, bits, scale, out)

    write: Write = lambda part, bits: law.rounded(part, bits, scale)
    if scale is None and rounding == "nearest" and _cast_is_exact(x, fmt, saturate):
        limit = fmt.max_within(carrier(x.dtype, "round_to"))
        dtype = TORCH_DTYPES[fmt]
        write = lambda part, bits: (part.clamp(-limit, limit) if saturate else part).to(dtype)
    if is_large(x, out):
        out = torch.empty_like(x) if out is None else out
        return in_pieces(x, bits, write, out)
    y = write(x, bits)
    if out is not None:
        return out.copy_(y)
    return y.clone() if y is x else y.to(x.dtype)


def prepare(
    caller: str,
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding,
    saturate: bool,
    generator: Generator | None,
    seed: int | Tensor | None,
    inv_scale: float | Tensor | None,
    compiled: bool,
) -> tuple[Law, Bits, Tensor | None]:
    """Arguments checked: what to do, random bits for it, and the inverse scale on x's device.

    Raises as `round_to` does; `caller` opens some of the messages.
    """
    held = carrier(x.dtype, "round_to")
    if rounding not in get_args(Rounding):
        raise ValueError(
            f"round_to: rounding is {rounding!r}; expected one of {get_args(Rounding)}"
        )
    for name, value in (("generator", generator), ("seed", seed)):
        if value is not None and rounding != "stochastic":
            raise ValueError(
                f"round_to: a {name} is of no use for rounding={rounding!r}; leave it out"
            )
    if generator is not None and (seed is not None or compiled):
        other = "a seed" if seed is not None else "compiled=True"
        raise ValueError(f"{caller}: a generator and {other} exclude each other; pass one of them")
    bits = Bits(generator=generator)
    if rounding == "stochastic" and generator is None:
        bits = Bits(keys_of(draw_seed(x.device) if seed is None else seed, x.device))
    scale = None
    if inv_scale is not None:
        if not fmt.fits_in(held):
            raise ValueError(
                f"{caller}: inv_scale with {fmt}, whose values {x.dtype} does not hold; "
                "convert x to float32 first"
            )
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = torch.as_tensor(inv_scale, dtype=work, device=x.device).detach()
        if scale.numel() != 1:
            raise ValueError(
                f"{caller}: inv_scale has shape {tuple(scale.shape)}; expected one element"
            )
        scale = scale.reshape(())
    return Law(fmt=fmt, rounding=rounding, saturate=saturate, dtype=x.dtype), bits, scale


def piece_size() -> int:
    """Elements of a piece for all threads together."""
    return PIECE * torch.get_num_threads()


def is_large(x: Tensor, out: Tensor | None) -> bool:
    """Whether a tensor is better rounded in pieces: on a CPU, contiguous and past the cache."""
    return (
        x.numel() > piece_size()
        and x.device.type == "cpu"
        and x.is_contiguous()
        and (out is None or out.is_contiguous())
    )


def in_pieces(x: Tensor, bits: Bits, write: Write, out: Tensor) -> Tensor:
    """Fill `out` piece by piece with what `write` makes of x."""
    size = piece_size()
    pieces = zip(x.view(-1).split(size), out.view(-1).split(size), strict=True)
    for number, (part, part_out) in enumerate(pieces):
        part_out.copy_(write(part, Bits(bits.keys, bits.generator, number * size)))
    return out


def in_rows(x: Tensor, write: Callable[[Tensor], Tensor], rounding: Rounding) -> Tensor:
    """Stochastic in a graph: in the rows that make the index cheap, if the size is known to fit."""
    count = x.numel()
    if rounding != "stochastic" or not isinstance(count, int) or count % LANES:
        return write(x)
    return write(x.reshape(-1, LANES)).view(x.shape)


def is_traced(x: Tensor) -> bool:
    """Whether x belongs to a graph in the making."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter)


def _cast_is_exact(x: Tensor, fmt: FloatFormat, saturate: bool) -> bool:
    """Whether torch's cast of the clamped `x` gives the same bits, and is the faster way."""
    if x.dtype == torch.float64:
        return False  # its casts go through float32, rounding twice
    if is_traced(x):
        # In a graph the formula is one fused loop. And Inductor drops float32 -> float16 -> float32
        # as superfluous (seen in torch 2.13), so that such a cast would round nothing.
        return False
    if fmt == E4M3FN:
        # Past the largest value the cast depends on torch's version. On a CPU the way back is slow.
        return saturate and x.device.type != "cpu"
    return fmt in (E5M2, BF16, FP16, FP32)
