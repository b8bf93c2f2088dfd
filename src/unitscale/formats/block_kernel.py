"""The formulas of block formats, on rows of one block each; run as they are or compiled.

The rules are at the top of `blockwise`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unitscale.formats.block import BlockFormat
from unitscale.formats.catalogue import E4M3FN, E8M0FNU, FP32
from unitscale.formats.kernel import (
    EXPONENT,
    MAGNITUDE,
    MAGNITUDES,
    SIGN,
    Bits,
    codes_of,
    float32_bits,
    magnitude_nearest,
    values_of,
)

ElementRounding = Literal["nearest", "stochastic"]

NAN = 0x7FC00000
NAN_SCALE = {E8M0FNU: 0xFF, E4M3FN: 0x7F}


@dataclass(frozen=True, kw_only=True)
class BlockLaw:
    """What a call asks for, checked."""

    fmt: BlockFormat
    dim: int
    dtype: torch.dtype
    rounding: ElementRounding = "nearest"
    keys: Tensor | None = None
    tensor_scale: Tensor | None = None

    def is_in_rows(self, x: Tensor) -> bool:
        """Whether the blocks of x lie one after another, whole, in memory."""
        is_last = self.dim == x.dim() - 1
        return is_last and x.is_contiguous() and x.shape[-1] % self.fmt.size == 0

    def rows(self, x: Tensor) -> Tensor:
        """One block per row; a short one is filled up with zeros, which no amax sees."""
        x = x.movedim(self.dim, -1)
        if missing := -x.shape[-1] % self.fmt.size:
            x = torch.cat([x, x.new_zeros(*x.shape[:-1], missing)], -1)
        return x.reshape(-1, self.fmt.size)

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Back to the shape it came from."""
        length = shape[self.dim]
        other = [*shape[: self.dim], *shape[self.dim + 1 :]]
        whole = length + -length % self.fmt.size
        return rows.view(*other, whole)[..., :length].movedim(-1, self.dim).contiguous()


Formula = Callable[[Tensor, BlockLaw, Bits, Any], tuple[Tensor, ...]]


def _scales(amax: Tensor, given: BlockLaw) -> tuple[Tensor, Tensor]:
    """The scale (float32) and its code (int32) of each amax."""
    is_special = (amax.view(torch.int32) & EXPONENT) == EXPONENT
    if given.fmt.scale == E8M0FNU:
        field = (amax.view(torch.int32) & EXPONENT) >> FP32.mantissa_bits
        code = (field - given.fmt.element.max_exponent).clamp(min=0)
        pattern = code << FP32.mantissa_bits
        scale = pattern.clamp(min=float32_bits(2.0**-127))  # the one that is subnormal
    else:
        assert given.tensor_scale is not None
        ratio = amax / (given.fmt.element.max * given.tensor_scale)
        inside = ratio.view(torch.int32).clamp(max=float32_bits(E4M3FN.max))
        stored = magnitude_nearest(inside, E4M3FN)
        code = codes_of(stored, E4M3FN).to(torch.int32)
        scale = (stored * given.tensor_scale).view(torch.int32)
    scale = torch.where(is_special, NAN, scale).view(torch.float32)
    return scale, torch.where(is_special, NAN_SCALE[given.fmt.scale], code)


def _elements(x: Tensor, given: BlockLaw, bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded elements in units of the scale, the scale of each row, and its code."""
    x = x.float()
    scale, code = _scales(x.abs().amax(-1, keepdim=True), given)
    if given.fmt.scale == E8M0FNU:
        inverse = (254 - code) << FP32.mantissa_bits  # 2**(127 - code), exact
        steps = x * inverse.view(torch.float32)
    else:
        steps = x / torch.where(scale == 0, torch.inf, scale)
    pattern = steps.view(torch.int32)
    inside = (pattern & MAGNITUDE).clamp(max=float32_bits(given.fmt.element.max))
    y = MAGNITUDES[given.rounding](inside, given.fmt.element, bits).view(torch.int32)
    y |= pattern & SIGN
    y = y.view(torch.float32)
    return y, scale, code


def values(x: Tensor, given: BlockLaw, bits: Bits, scales: None) -> tuple[Tensor, ...]:
    """Rows rounded."""
    y, scale, _ = _elements(x, given, bits)
    return (y.mul_(scale).to(given.dtype),)


def codes_and_scales(x: Tensor, given: BlockLaw, bits: Bits, scales: None) -> tuple[Tensor, ...]:
    """Rows quantized: uint8 codes of the elements, and of the scales."""
    y, _, code = _elements(x, given, bits)
    return codes_of(y, given.fmt.element), code.to(torch.uint8)


def decoded(codes: Tensor, given: BlockLaw, bits: Bits, scales: Tensor) -> tuple[Tensor, ...]:
    """Rows of codes, and the codes of their scales, as values."""
    if given.fmt.scale == E8M0FNU:
        code = scales.to(torch.int32)
        pattern = (code << FP32.mantissa_bits).clamp(min=float32_bits(2.0**-127))
        scale = torch.where(code == NAN_SCALE[E8M0FNU], NAN, pattern).view(torch.float32)
    else:
        assert given.tensor_scale is not None
        scale = values_of(scales, E4M3FN) * given.tensor_scale
    return ((values_of(codes, given.fmt.element) * scale).to(given.dtype),)
