"""Tensors in block formats: the shared scale from the block's amax, then the elements.

A block is a run of `size` elements along one dimension; the last one may be shorter.

Scale in E8M0FNU (MX): `2**(floor(log2(amax)) - element.max_exponent)`, at least `2**-127`, which is
also that of zeros. Elements are `x / scale` rounded and saturated: up to `2**(max_exponent + 1)`
may have to fit, so the block's largest values saturate where E4M3FN ends at `1.75 * 2**8`.
Scale in E4M3FN (NVFP4): `amax / (element.max * tensor_scale)` rounded to nearest, where
`tensor_scale = amax of the tensor / (element.max * 448)`; elements are `x / (scale * tensor_scale)`
rounded and saturated. A scale that rounds to zero makes the block zeros.

A block with NaN or Inf in it gets a NaN scale, so all of it is NaN; other blocks are as they were.
Signs of zeros are kept.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitscale.formats import fused
from unitscale.formats.batched import is_batched
from unitscale.formats.block import BlockFormat
from unitscale.formats.block_kernel import (
    BlockLaw,
    ElementRounding,
    Formula,
    codes_and_scales,
    decoded,
    values,
)
from unitscale.formats.grouping import amax_within, keep_whole
from unitscale.formats.hashing import draw_seed, keys_of, lane_numbers
from unitscale.formats.kernel import MAGNITUDES, Bits
from unitscale.formats.rounding import is_traced, piece_size
from unitscale.formats.traced import as_constant

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A tensor in a block format; `dequantize_blocks` gives the values.

    codes: of the elements, uint8, the shape of the tensor; unused top bits zero.
    scales: codes of the scales, uint8, the same shape with dimension `dim` divided by the block
        size, rounded up.
    tensor_scale: float32, 0-dim, or None.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None
    fmt: BlockFormat
    dim: int


def round_to_blocks(
    x: Tensor,
    fmt: BlockFormat,
    dim: int = -1,
    rounding: ElementRounding = "nearest",
    out: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    tensor_scale: float | Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """`dequantize_blocks(quantize_blocks(x, ...), x.dtype)` without the codes: x's shape, dtype.

    Args:
        x, dim, rounding, seed, tensor_scale: as for `quantize_blocks`.
        out: receives the result and is returned; may be `x` itself.
        compiled: one pass over contiguous x, if dim is its last and a multiple of the block size;
            see `round_to` for when and how long it compiles.
    Raises:
        TypeError, ValueError: as `quantize_blocks`; `out` of another shape or dtype than x.
    """
    fmt = as_constant(fmt)
    _check_out("round_to_blocks", out, x.shape, x.dtype)
    given = _prepare("round_to_blocks", x, fmt, dim, rounding, seed, tensor_scale)
    return _run_into(values, given, x.detach(), out, compiled)


def quantize_blocks(
    x: Tensor,
    fmt: BlockFormat,
    dim: int = -1,
    rounding: ElementRounding = "nearest",
    *,
    seed: int | Tensor | None = None,
    tensor_scale: float | Tensor | None = None,
    compiled: bool = False,
) -> BlockTensor:
    """Codes and scales of x, blocks along `dim`; the rules are at the top of this module.

    Args:
        x: float32, bfloat16 or float16, of one dimension or more, any strides.
        rounding: of the elements. "stochastic" is that of `round_to` with a seed; the index counts
            elements row by row with `dim` last and its last block filled up.
        seed: for "stochastic"; without one it is drawn from torch's global generator.
        tensor_scale: for a format that has one: positive, one element. Without it, it is measured
            on the finite elements of x in a pass of its own (1 if they are zero).
        compiled: amax, scale, rounding and packing in one pass, as for `round_to_blocks`.
    Raises:
        TypeError: x has another dtype.
        ValueError: x is 0-dim; dim is out of range; unknown rounding; a seed for one that is not
            stochastic; a tensor_scale of several elements or for a format without.
    """
    fmt = as_constant(fmt)
    given = _prepare("quantize_blocks", x, fmt, dim, rounding, seed, tensor_scale)
    rows = given.rows(x.detach())
    codes, scales = _run(codes_and_scales, given, rows, (None, None), compiled)
    count = -(-x.shape[given.dim] // fmt.size)
    shape = [*x.shape[: given.dim], *x.shape[given.dim + 1 :], count]
    return BlockTensor(
        codes=given.unrows(codes, x.shape),
        scales=scales.view(shape).movedim(-1, given.dim),
        tensor_scale=given.tensor_scale,
        fmt=fmt,
        dim=given.dim,
    )


def dequantize_blocks(
    q: BlockTensor,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """`element * scale`, or `element * (scale * tensor_scale)`, in float32, then in `dtype`.

    Args:
        dtype: float32, bfloat16 or float16. The last two may not hold the value: it is rounded.
        out: of the codes' shape and that dtype; receives the values and is returned.
        compiled: in one pass, as for `round_to_blocks`.
    Raises:
        TypeError: another dtype.
        ValueError: `out` of another shape or dtype.
    """
    if dtype not in _DTYPES:
        raise TypeError(f"dequantize_blocks: dtype is {dtype}; expected one of {_DTYPES}")
    _check_out("dequantize_blocks", out, q.codes.shape, dtype)
    given = BlockLaw(fmt=as_constant(q.fmt), dim=q.dim, dtype=dtype, tensor_scale=q.tensor_scale)
    scales = q.scales.movedim(q.dim, -1).reshape(-1, 1)
    return _run_into(decoded, given, q.codes, out, compiled, scales)


def _run_into(
    formula: Formula,
    given: BlockLaw,
    x: Tensor,
    out: Tensor | None,
    compiled: bool,
    scales: Tensor | None = None,
) -> Tensor:
    """Values straight to `out` where its blocks lie in rows as those of x do, else copied there."""
    compiled = compiled and not (out is not None and out.requires_grad)
    rows = given.rows(x)
    if out is not None and given.is_in_rows(x) and out.is_contiguous():
        _run(formula, given, rows, (out.view(rows.shape),), compiled, scales)
        return out
    (y,) = _run(formula, given, rows, (None,), compiled, scales)
    y = given.unrows(y, x.shape)
    return y if out is None else out.copy_(y)


def _check_out(caller: str, out: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> None:
    if out is not None and (out.shape != shape or out.dtype != dtype):
        raise ValueError(
            f"{caller}: out is {out.dtype} {tuple(out.shape)}; expected {dtype} {tuple(shape)}"
        )


def _prepare(
    caller: str,
    x: Tensor,
    fmt: BlockFormat,
    dim: int,
    rounding: ElementRounding,
    seed: int | Tensor | None,
    tensor_scale: float | Tensor | None,
) -> BlockLaw:
    if x.dtype not in _DTYPES:
        raise TypeError(f"{caller}: dtype is {x.dtype}; expected one of {_DTYPES}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{caller}: dim is {dim}; x has {x.dim()} dimensions")
    if rounding not in MAGNITUDES:
        raise ValueError(f"{caller}: rounding is {rounding!r}; expected one of {tuple(MAGNITUDES)}")
    if seed is not None and rounding != "stochastic":
        raise ValueError(f"{caller}: a seed is of no use for rounding={rounding!r}; leave it out")
    if tensor_scale is not None and not fmt.has_tensor_scale:
        raise ValueError(f"{caller}: {fmt} has no tensor_scale; leave it out")
    keys = scale = None
    if rounding == "stochastic":
        keys = keys_of(draw_seed(x.device) if seed is None else seed, x.device)
    if tensor_scale is not None:
        scale = torch.as_tensor(tensor_scale, dtype=torch.float32, device=x.device).detach()
        if scale.numel() != 1:
            raise ValueError(
                f"{caller}: tensor_scale has shape {tuple(scale.shape)}; expected one element"
            )
        scale = scale.reshape(())
    elif fmt.has_tensor_scale:
        scale = measured_tensor_scale(x.detach(), fmt)
    return BlockLaw(
        fmt=fmt,
        dim=dim % x.dim(),
        dtype=x.dtype,
        rounding=rounding,
        keys=keys,
        tensor_scale=scale,
    )


def measured_tensor_scale(x: Tensor, fmt: BlockFormat) -> Tensor:
    """Tensor scale that puts the largest block scale at the largest value of its format."""
    if x.numel() == 0:
        return torch.ones((), device=x.device)
    amax = amax_within(x, ())
    if is_traced(x) or is_batched(x) or x.device.type != "cpu" or not amax.isfinite():
        amax = amax_within(torch.where(x.isfinite(), x, 0), ())
    amax = amax.float()
    scale = amax / (fmt.element.max * fmt.scale.max)
    return torch.where(scale > 0, scale, 1.0)


# How they are run: as they are, in pieces, or compiled.


OVERWRITES = torch.__version__ >= "2.13"
"""Whether Inductor compiles blocks written over what they are made of; before 2.13 it fails."""


def _run(
    formula: Formula,
    given: BlockLaw,
    rows: Tensor,
    outs: tuple[Tensor | None, ...],
    compiled: bool,
    scales: Tensor | None = None,
) -> tuple[Tensor, ...]:
    is_graph = is_traced(rows)
    is_fused = not is_graph and compiled and rows.numel() >= fused.SMALLEST
    is_large = not is_graph and rows.device.type == "cpu" and rows.numel() > piece_size()
    if not (is_large or is_fused):
        results = formula(rows, given, Bits(given.keys), scales)
        if is_graph:
            results = (keep_whole(results[0], 1), *results[1:])
        return tuple(
            y if out is None else out.copy_(y) for y, out in zip(results, outs, strict=True)
        )
    outs = tuple(
        torch.empty(shape, dtype=dtype, device=rows.device) if out is None else out
        for out, (shape, dtype) in zip(outs, _results(formula, given, rows), strict=True)
    )
    if is_fused:
        width = rows.shape[1]
        lanes = None if given.keys is None else lane_numbers(rows.device, width)
        is_in_place = outs[0].data_ptr() == rows.data_ptr()  # type: ignore[union-attr]
        if is_in_place and not OVERWRITES:
            (y,) = _run(formula, given, rows, (None,), compiled, scales)
            return (rows.copy_(y),)
        arrays = [rows, scales, *outs] if not is_in_place else [rows, scales]
        for array in arrays:
            if array is not None:
                torch._dynamo.mark_dynamic(array, 0)
        law = (given.fmt, given.dtype, given.rounding)
        kernel = _kernel(formula, law, is_in_place)
        kernel(given.keys, lanes, given.tensor_scale, *arrays)
        return outs  # type: ignore[return-value]
    step = piece_size() // rows.shape[1]
    for start in range(0, rows.shape[0], step):
        piece = slice(start, start + step)
        bits = Bits(given.keys, start=start * rows.shape[1])
        results = formula(rows[piece], given, bits, None if scales is None else scales[piece])
        for y, out in zip(results, outs, strict=True):
            out[piece].copy_(y)  # type: ignore[index]
    return outs  # type: ignore[return-value]


def _results(
    formula: Formula, given: BlockLaw, rows: Tensor
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of what a formula gives."""
    if formula is codes_and_scales:
        return [(tuple(rows.shape), torch.uint8), ((rows.shape[0], 1), torch.uint8)]
    return [(tuple(rows.shape), given.dtype)]


@functools.cache
def _kernel(
    formula: Formula, law: tuple[BlockFormat, torch.dtype, ElementRounding], in_place: bool
) -> Callable[..., Any]:
    fmt, dtype, rounding = law

    def kernel(
        keys: Tensor | None,
        lanes: Tensor | None,
        tensor_scale: Tensor | None,
        rows: Tensor,
        scales: Tensor | None,
        *outs: Tensor,
    ) -> None:
        given = BlockLaw(fmt=fmt, dim=1, dtype=dtype, rounding=rounding, tensor_scale=tensor_scale)
        results = formula(rows, given, Bits(keys, lanes=lanes), scales)
        for y, out in zip(results, (rows,) if in_place else outs, strict=True):
            out.copy_(y)

    return fused.compiled(kernel)
