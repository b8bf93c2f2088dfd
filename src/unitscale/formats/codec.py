"""One way to store a tensor in few bits: `data * scale`, whatever shares a scale.

`Codec` serves the operands of products, what is saved for backward, optimizer states and exported
weights. Tensors scaled as a whole, by rows, by blocks or by tiles are the same type `Encoded`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from unitscale.formats.batched import is_batched
from unitscale.formats.block import BlockFormat
from unitscale.formats.blockwise import measured_tensor_scale
from unitscale.formats.catalogue import E4M3FN, E8M0FNU, FP32
from unitscale.formats.codes import widen
from unitscale.formats.dtypes import carrier, torch_dtype
from unitscale.formats.format import FloatFormat
from unitscale.formats.given_scale import divisor, given_scale, given_tensor_scale
from unitscale.formats.granularity import Granularity, PerBlock, PerTensor, PerTile
from unitscale.formats.grouping import amax_within, grouping, pieces
from unitscale.formats.kernel import Bits, codes_of, values_of
from unitscale.formats.rounding import in_pieces, is_large, is_traced, round_to
from unitscale.formats.scale_rule import (
    SMALLEST_AMAX,
    PowerOfTwo,
    exact_scale,
    power_of_two_code,
    power_of_two_scale,
    power_of_two_value,
)
from unitscale.formats.traced import as_constant

__all__ = ["Codec", "Encoded", "PowerOfTwo"]

LARGEST_MARGIN = 64
PER_TENSOR = PerTensor()


class Encoded(NamedTuple):
    """`x ~ data * scale`, in a block format with two levels `data * (scale * tensor_scale)`.

    data: the shape of the tensor. From `Codec.grid` values of the element format in float32 (of a
        float64 tensor in float64); from `Codec.pack` the format's own torch dtype, or where torch
        has none uint8 codes, one each.
    scale: `granularity.scale_shape(data.shape)`, or broadcast to it where it was given. float32;
        packed in a block format float8_e8m0fnu or float8_e4m3fn.
    tensor_scale: float32, 0-dim, or None.
    """

    data: Tensor
    scale: Tensor | None
    tensor_scale: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A number format with the rule for its scales.

    Guarantees `x ~ data * scale`. The scale, computed in float32 from the amax of its group, is
    `2**margin` times `amax / max`, or the power of two that `power_of_two` says (`scale_rule`). So
    an element is within half a spacing of the format, times the scale, of its value; below
    `scale * min_subnormal / 2` it is 0. Formats of 8 bits and fewer saturate; FP16 overflows to Inf
    at a scale that was given. FP32, BF16 and TF32 reach as far as float32, so their scale is
    `2**margin` and no amax is taken.

    Zeros stay, with their sign where the format has one: the amax counts as 1e-12 at least, and of
    a block format the scale as 2**-127. NaN in a group makes its scale NaN, so the whole group NaN;
    Inf makes the scale Inf, which the whole group is NaN by, too. (In a block format the scale is
    NaN in both cases.) Other groups are as they were. At a scale that was given, NaN stays NaN and
    Inf saturates.

    Args:
        format: a FloatFormat with sign and zero, or a BlockFormat.
        granularity: what shares a scale. In a BlockFormat the default means `PerBlock(size)`;
            another axis and `PerTile(size, size)` are the others that it allows.
        power_of_two: None is `amax / max` itself. MX formats have powers of two alone: None means
            "floor" there. In NVFP4 the scale is `amax / (6 * tensor_scale)`, rounded to E4M3FN.
        margin: binades left free above the amax, 0 to 64.
        rounding: of the elements. "stochastic" takes a seed; see `round_to`.
    Raises:
        TypeError: format or granularity is something else.
        ValueError: the fields do not fit together.
    Source: OCP Microscaling Formats v1.0; arXiv 2509.25149 (NVFP4).
    """

    format: FloatFormat | BlockFormat
    granularity: Granularity = PER_TENSOR
    power_of_two: PowerOfTwo | None = None
    margin: int = 0
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        if not isinstance(self.format, FloatFormat | BlockFormat):
            raise TypeError(
                f"Codec: format is {self.format!r}; expected a FloatFormat or a BlockFormat, such "
                "as unitscale.formats.E4M3FN"
            )
        if not isinstance(self.granularity, Granularity):
            raise TypeError(
                f"Codec: granularity is {self.granularity!r}; expected PerTensor, PerAxis, "
                "PerBlock or PerTile"
            )
        if self.power_of_two is not None and self.power_of_two not in get_args(PowerOfTwo):
            raise ValueError(
                f"Codec: power_of_two is {self.power_of_two!r}; expected None or one of "
                f"{get_args(PowerOfTwo)}"
            )
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(
                f"Codec: rounding is {self.rounding!r}; expected 'nearest' or 'stochastic'"
            )
        if type(self.margin) is not int or not 0 <= self.margin <= LARGEST_MARGIN:
            raise ValueError(
                f"Codec: margin is {self.margin!r}; expected an int from 0 to {LARGEST_MARGIN}"
            )
        if isinstance(self.format, BlockFormat):
            self._check_blocks(self.format)
        elif not (self.format.is_signed and self.format.has_zero):
            raise ValueError(f"Codec: {self.format} has no sign or no zero; expected one with both")

    def __str__(self) -> str:
        parts = [str(self.format), str(self.groups)]
        if self.rule is not None:
            parts.append(self.rule)
        if self.margin:
            parts.append(f"margin {self.margin}")
        if self.rounding != "nearest":
            parts.append(self.rounding)
        return " ".join(parts)

    @property
    def element(self) -> FloatFormat:
        """The format of the data."""
        return self.format.element if isinstance(self.format, BlockFormat) else self.format

    @property
    def groups(self) -> Granularity:
        """The granularity that is meant: a block format's own where the field is the default."""
        if isinstance(self.format, BlockFormat) and isinstance(self.granularity, PerTensor):
            return PerBlock(self.format.size)
        return self.granularity

    @property
    def rule(self) -> PowerOfTwo | None:
        """The power-of-two rule that is meant: "floor" in an MX format where the field is None."""
        is_mx = isinstance(self.format, BlockFormat) and self.format.scale == E8M0FNU
        return "floor" if is_mx and self.power_of_two is None else self.power_of_two

    def grid(
        self,
        x: Tensor,
        *,
        scale: float | Tensor | None = None,
        tensor_scale: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Encoded:
        """The rounded data of `x` in units of the scale, as float values, and the scale.

        Args:
            x: float64, float32, bfloat16 or float16; any shape that has the axes of `granularity`.
                It counts as a constant. 16 bits are widened to float32 before they meet a scale.
            scale: cast at this one and take no amax: positive, a number or a tensor. It broadcasts
                to x with PerTensor and PerAxis, with blocks and tiles to
                `granularity.scale_shape(x.shape)`. In a block format, a value of its scale format.
            tensor_scale: the second level of a format that has one, such as a unit; without it the
                amax of the finite elements of x over the largest values of both levels.
            seed: for "stochastic", as `round_to`; the index counts elements row by row, short
                blocks filled up.
        Raises:
            TypeError: x has another dtype.
            ValueError: x lacks an axis; a scale does not broadcast, or is a number that is not
                positive; a tensor_scale for a format without; a seed without "stochastic".
        """
        data, stored, outer = as_constant(self)._run(x, scale, tensor_scale, seed, None)
        return Encoded(data, stored, outer)

    def pack(self, e: Encoded) -> Encoded:
        """What `grid` gave, in as few bits as torch can hold; exact.

        The data is in the format's own torch dtype, or uint8 codes where torch has none for 8 bits
        and fewer, and the scales of block formats in float8_e8m0fnu or float8_e4m3fn. A format
        without NaN has none to store: such an element is -0, and only a scale of NaN tells.
        """
        return as_constant(self)._pack(e)

    def _pack(self, e: Encoded) -> Encoded:
        dtype, data, scale = torch_dtype(self.element), e.data, e.scale
        if dtype is not None:
            data = data.to(dtype)
        elif self.element.bits <= 8:
            data = _by_pieces(data, lambda part: codes_of(part.float(), self.element), torch.uint8)
        if isinstance(self.format, BlockFormat) and scale is not None:
            if self.format.scale == E8M0FNU:
                scale = power_of_two_code(scale).view(torch.float8_e8m0fnu)
            else:
                scale = scale.to(torch.float8_e4m3fn)
        return Encoded(data, scale, e.tensor_scale)

    def encode(
        self,
        x: Tensor,
        *,
        scale: float | Tensor | None = None,
        tensor_scale: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Encoded:
        """`pack(grid(x))`, with the arguments of `grid`."""
        return self.pack(self.grid(x, scale=scale, tensor_scale=tensor_scale, seed=seed))

    def decode(self, e: Encoded, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of what `grid` or `pack` gave.

        The scale is applied in float32, for float64 in float64; the product is then cast to
        `dtype`. Data of 8 bits and fewer saturates at the largest value of float16 or bfloat16.
        Elsewhere a product beyond `dtype` is Inf: of an amax just below 2**128, a rule other than
        "floor" may round up to 2**128.

        Raises:
            TypeError: dtype is none of float64, float32, bfloat16 and float16.
        """
        carrier(dtype, "Codec.decode")
        return as_constant(self)._decode(e, dtype)

    def _decode(self, e: Encoded, dtype: torch.dtype) -> Tensor:
        work = torch.float64 if dtype == torch.float64 else torch.float32
        data, scale = e.data, e.scale
        if data.dtype == torch.uint8:
            data = _by_pieces(data, lambda part: values_of(part, self.element), torch.float32)
        data = data if data.dtype == work else widen(data, work)
        if scale is None:
            return data.to(dtype)
        if scale.dtype == torch.float8_e8m0fnu:
            scale = power_of_two_value(scale.view(torch.uint8))
        scale = scale.float() if e.tensor_scale is None else scale.float() * e.tensor_scale
        groups = grouping(tuple(data.shape), self.groups)
        values = self._values(groups.split(data), groups.spread(scale), dtype)
        if is_traced(data):
            values = groups.keep_whole(values)
        return groups.join(values)

    def round(
        self,
        x: Tensor,
        *,
        scale: float | Tensor | None = None,
        tensor_scale: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """`decode(grid(x), x.dtype)`, with the arguments of `grid`."""
        values, _, _ = as_constant(self)._run(x, scale, tensor_scale, seed, x.dtype)
        return values

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape as `pack` would hold it, its scales included.

        Elements of 4 and 6 bits count as such, though torch holds each in a byte.

        Raises:
            ValueError: the shape lacks an axis of `granularity`.
        """
        dtype = torch_dtype(self.element)
        bits = self.element.bits if dtype or self.element.bits <= 8 else FP32.bits
        scales = math.prod(self.groups.scale_shape(tuple(shape)))
        scale_bits = self.format.scale.bits if isinstance(self.format, BlockFormat) else FP32.bits
        outer = isinstance(self.format, BlockFormat) and self.format.has_tensor_scale
        whole = math.prod(shape) * bits + scales * scale_bits + outer * FP32.bits
        return -(-whole // 8)

    def _check_blocks(self, fmt: BlockFormat) -> None:
        groups = self.groups
        is_block = isinstance(groups, PerBlock) and groups.size == fmt.size
        if not is_block and groups != PerTile(fmt.size, fmt.size):
            raise ValueError(
                f"Codec: granularity is {self.granularity!r} with {fmt}; expected "
                f"PerBlock({fmt.size}) along some axis or PerTile({fmt.size}, {fmt.size})"
            )
        if self.power_of_two is not None and fmt.scale != E8M0FNU:
            raise ValueError(
                f"Codec: power_of_two is {self.power_of_two!r} with {fmt}, whose scales are "
                f"{fmt.scale}; leave it out"
            )

    def _run(
        self,
        x: Tensor,
        scale: float | Tensor | None,
        tensor_scale: float | Tensor | None,
        seed: int | Tensor | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Data, or values in `dtype`; scale; tensor scale."""
        carrier(x.dtype, "Codec")
        x = x if is_batched(x) else x.detach()
        groups = grouping(tuple(x.shape), self.groups)
        outer = None
        if tensor_scale is not None:
            outer = given_tensor_scale(tensor_scale, x, self.format)
        elif isinstance(self.format, BlockFormat) and self.format.has_tensor_scale:
            outer = measured_tensor_scale(x, self.format) * 2.0**self.margin
        stored = None if scale is None else given_scale(scale, x, groups, self.format)
        given = None if stored is None else groups.spread(stored)

        def part(blocks: Tensor, given: Tensor | None, axes: tuple[int, ...]) -> list[Tensor]:
            steps, scale = self._steps(blocks, given, outer, axes)
            data = round_to(steps, self.element, self.rounding, self._saturates(given), seed=seed)
            if dtype is not None:
                data = self._values(data, scale if outer is None else scale * outer, dtype)
            return [data] if given is not None else [data, scale]

        blocks = groups.split(x)
        if self.rounding == "nearest" and not is_traced(x) and is_large(x, None):
            results = pieces(part, blocks, given, groups.within)
        else:
            results = part(blocks, given, groups.within)
        data = results[0]
        if is_traced(x):
            data = groups.keep_whole(data)
        if stored is None:
            stored = groups.unspread(results[1])
        return groups.join(data), stored, outer

    def _steps(
        self, blocks: Tensor, given: Tensor | None, outer: Tensor | None, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Elements in units of the scale, and the scale; of groups along `axes`."""
        amax = None
        if given is None and not self._is_wide:
            amax = amax_within(blocks, axes).float()
        blocks = blocks if blocks.dtype == torch.float64 else blocks.float()
        if given is not None:
            return blocks / divisor(given if outer is None else given * outer), given
        if amax is None:
            kept = [1 if axis in axes else size for axis, size in enumerate(blocks.shape)]
            shape = kept if axes else ()
            scale = blocks.new_full(shape, 2.0**self.margin, dtype=torch.float32)
            return blocks * 2.0**-self.margin, scale
        if self.rule is not None:
            if isinstance(self.format, BlockFormat):
                amax = torch.where(amax.isinf(), torch.nan, amax)
            else:
                amax = amax.clamp(min=SMALLEST_AMAX)
            scale, inverse = power_of_two_scale(amax, self.element, self.rule, self.margin)
            return blocks * inverse, scale
        if outer is None:
            scale = exact_scale(amax, self.element, self.margin)
            return blocks / scale, scale
        ratio = amax / (self.element.max * outer) * 2.0**self.margin
        scale = round_to(torch.where(amax.isfinite(), ratio, torch.nan), E4M3FN)
        return blocks / divisor(scale * outer), scale

    def _values(self, data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """`data * scale` in `dtype`, of data and scales that broadcast."""
        values = data * scale
        if values.dtype == dtype:
            return values
        if self.element.bits <= 8 and dtype in (torch.float16, torch.bfloat16):
            limit = torch.finfo(dtype).max
            values = values.clamp(-limit, limit)
        return values.to(dtype)

    @property
    def _is_wide(self) -> bool:
        """Whether the format reaches as far as float32, where nothing is to be scaled."""
        return self.element.max_exponent >= FP32.max_exponent

    def _saturates(self, given: Tensor | None) -> bool:
        return self.element.bits <= 8 or (given is None and not self._is_wide)


def _by_pieces(x: Tensor, write: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """What an element-wise function makes of x, piece by piece where x is large."""
    if is_traced(x) or not is_large(x, None):
        return write(x)
    return in_pieces(x, Bits(), lambda part, _: write(part), torch.empty_like(x, dtype=dtype))
