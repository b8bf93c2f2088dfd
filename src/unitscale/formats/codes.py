"""Values to the codes that are stored, and back, for formats of 8 bits and fewer."""

import torch
from torch import Generator, Tensor

from unitscale.formats import fused
from unitscale.formats.catalogue import FP32
from unitscale.formats.dtypes import TORCH_DTYPES, carrier
from unitscale.formats.format import FloatFormat
from unitscale.formats.kernel import Bits, Rounding, codes_of, is_plain
from unitscale.formats.rounding import in_pieces, in_rows, is_large, is_traced, prepare, round_to
from unitscale.formats.traced import as_constant


def encode(
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
    """The codes of `round_to` with the same arguments: uint8, of x's shape, unused top bits zero.

    NaN becomes a NaN code, or in a format without NaN the code of -0. With `compiled=True` rounding
    and packing are one loop, under the conditions of `round_to`.

    Args:
        x: float64, float32, bfloat16 or float16.
        out: uint8 of x's shape; receives the codes and is returned.
    Raises:
        TypeError: x has another dtype.
        ValueError: the format has more than 8 bits; `out` of another shape or dtype; or what
            `round_to` raises.
    """
    fmt = as_constant(fmt)
    _check_width(fmt, "encode")
    if out is not None and (out.shape != x.shape or out.dtype != torch.uint8):
        raise ValueError(
            f"encode: out is {out.dtype} {tuple(out.shape)}; expected uint8 {tuple(x.shape)}"
        )
    if not _is_packed_by_bits(fmt):
        y = round_to(
            x, fmt, rounding, saturate, generator, seed=seed, inv_scale=inv_scale, compiled=compiled
        )
        codes = _look_up(y, fmt)
        return codes if out is None else out.copy_(codes)
    law, bits, scale = prepare(
        "encode", x, fmt, rounding, saturate, generator, seed, inv_scale, compiled
    )

    def pack(part: Tensor, bits: Bits) -> Tensor:
        return codes_of(law.rounded(part, bits, scale).float(), fmt)

    x = x.detach()
    if is_traced(x):
        codes = in_rows(x, lambda part: pack(part, bits), rounding)
        return codes if out is None else out.copy_(codes)
    is_fused = compiled and fused.serves(x, out)
    if is_fused or is_large(x, out):
        codes = torch.empty_like(x, dtype=torch.uint8) if out is None else out
        if is_fused:
            return fused.apply(law, x, bits.keys, scale, codes, encode=True)
        return in_pieces(x, bits, pack, codes)
    codes = pack(x, bits)
    return codes if out is None else out.copy_(codes)


def decode(codes: Tensor, fmt: FloatFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """The value of each code, exactly; NaN and Inf codes give NaN and Inf.

    Args:
        codes: uint8, any shape, each below `2**fmt.bits` (else torch raises an index error).
        dtype: float64, float32, bfloat16 or float16, if it holds every value of the format.
    Raises:
        TypeError: codes are not uint8; dtype is another one.
        ValueError: the format has more than 8 bits, or values that `dtype` does not.
    """
    fmt = as_constant(fmt)
    _check_width(fmt, "decode")
    if codes.dtype != torch.uint8:
        raise TypeError(f"decode: codes are {codes.dtype}; expected uint8")
    if not fmt.fits_in(carrier(dtype, "decode")):
        raise ValueError(f"decode: {dtype} does not hold every value of {fmt}; use float32")
    if fmt in TORCH_DTYPES:
        return codes.view(TORCH_DTYPES[fmt]).to(dtype)
    return torch.tensor(fmt.values(), dtype=dtype, device=codes.device)[codes.long()]


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, faster where torch's own cast from E4M3FN is slow: in eager code on a CPU.

    The values, shape and strides are those of `x.to(dtype)`. Seen in torch 2.13: the cast of a
    million elements takes 5 ms, the same values from a table 2 ms.
    """
    if x.dtype != torch.float8_e4m3fn or x.device.type != "cpu" or is_traced(x):
        return x.to(dtype)
    table = torch.arange(256, dtype=torch.uint8).view(x.dtype).to(dtype)
    values = torch.empty_like(x, dtype=dtype)
    return torch.take(table, x.view(torch.uint8).long(), out=values)


def _is_packed_by_bits(fmt: FloatFormat) -> bool:
    """Whether `codes_of` serves: not for E8M0FNU, which has no zero."""
    return is_plain(fmt, torch.float32) and fmt.max_exponent < FP32.max_exponent


def _look_up(y: Tensor, fmt: FloatFormat) -> Tensor:
    if fmt in TORCH_DTYPES:
        return y.to(TORCH_DTYPES[fmt]).view(torch.uint8)
    # From 0 to max or Inf the codes count up with their values, so a code is a position among them.
    sign_code = 1 << (fmt.bits - 1)
    not_negative = [
        value for value in fmt.values()[: sign_code if fmt.is_signed else None] if value >= 0
    ]
    ascending = torch.tensor(not_negative, dtype=torch.float64, device=y.device)
    code = torch.searchsorted(ascending, y.abs().double().contiguous())
    code = torch.where(y.signbit(), code + sign_code, code) if fmt.is_signed else code
    nan_code = sign_code if fmt.nan_code is None else fmt.nan_code
    return torch.where(y.isnan(), nan_code, code).to(torch.uint8)


def _check_width(fmt: FloatFormat, caller: str) -> None:
    if fmt.bits > 8:
        raise ValueError(f"{caller}: {fmt} has {fmt.bits} bits; expected a format of 8 or fewer")
