"""How a moment is stored: rows of float32 values to a few fields in few bits, and back.

A moment has the rows of its parameter: of shape (d0, d1, ...) there are d0 of d1 * ... values.
Blocks lie inside a row and never cross two, so states can be cut between any two rows, which is how
FSDP2 cuts parameters. The worked example is a row of 300 values, in blocks of 128:

    field          layout     shape    bytes
    exp_avg        element    (300,)   300     one code each
    exp_avg_amax   block      (3,)      12     of the values 0-127, 128-255, 256-299
    exp_avg_k      block      (3,)      12

Every field that is zero in all its bits stands for values that are zero: that is how states begin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unitscale.formats import E4M3FN, Codec, Encoded, FloatFormat, decode, encode, torch_dtype
from unitscale.formats.scale_rule import power_of_two_scale

Layout = Literal["element", "block", "tensor"]

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
LARGEST_K = 1e4
"""A block of equal values would have an infinite exponent."""


class Field(NamedTuple):
    """One tensor of a stored state: what its name adds to the state's, its dtype and its layout."""

    suffix: str
    dtype: torch.dtype
    layout: Layout


class MomentCodec(Protocol):
    """A way to store a moment."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """What is stored; the first has one element for each value."""
        ...

    @property
    def block(self) -> int:
        """How many values of a row share what has the layout "block"; 1 if nothing has."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether `encode` needs the amax of the whole tensor."""
        ...

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """The fields of float32 rows (n, w), w a multiple of `block` or the end of the rows."""
        ...

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """The float32 values of the fields of some rows."""
        ...


@dataclass(frozen=True)
class Float32:
    """As it is."""

    fields: tuple[Field, ...] = (Field("", torch.float32, "element"),)
    block: int = 1
    is_whole: bool = False

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """The values themselves."""
        return (x,)

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """The values themselves, not a copy."""
        return stored[0]


@dataclass(frozen=True, kw_only=True)
class TensorScaled:
    """A format with one scale for the whole tensor, `2**ceil(log2(amax / max))`.

    NaN stays NaN. Inf stays Inf in FP16 and is NaN in E4M3FN; the amax is that of finite values.

    Args:
        format: E4M3FN or FP16.
        is_positive: a value above zero becomes the smallest one rather than zero.
    Source: FP8-LM, arXiv 2310.18313, section 2.2; MS-AMP 0.4.0, `ScalingMeta`.
    """

    format: FloatFormat
    is_positive: bool = False
    block: int = 1
    is_whole: bool = True

    @property
    def fields(self) -> tuple[Field, ...]:
        """Codes as uint8, since collectives on a CPU know no float8; FP16 as float16."""
        dtype = torch.uint8 if self.format.bits <= 8 else torch.float16
        return Field("", dtype, "element"), Field("_scale", torch.float32, "tensor")

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """Data and the scale that `amax` gives."""
        assert amax is not None
        scale, _ = power_of_two_scale(amax.clamp(min=SMALLEST_NORMAL), self.format, "rceil", 0)
        if not self.format.has_inf:
            x = without_inf(x)
        data = Codec(format=self.format).encode(x, scale=scale).data
        if self.format.bits <= 8:
            data = data.view(torch.uint8)
        if self.is_positive:
            codes = data.view(torch.uint8 if self.format.bits <= 8 else torch.int16)
            data = never_zero(codes, x).view(data.dtype)
        return data, scale

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """Data times scale."""
        data, scale = stored
        if self.format.bits <= 8:
            dtype = torch_dtype(self.format)
            assert dtype is not None
            data = data.view(dtype)
        return Codec(format=self.format).decode(Encoded(data, scale))


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """E4M3FN in blocks, each stretched to the whole range of the format: COAT.

    With `n = |x| / amax` of a block, `|q| = n**k * 448`, where k puts the smallest magnitude above
    zero at the smallest subnormal, 2**-9: `k = ln(448 / 2**-9) / ln(amax / amin)`. Moments of a
    block span much less than the format's 17.8 binades, so k is above 1, and codes are finer.
    A relative error e of q is an error e / k of the value.

    NaN and Inf are NaN, alone in their block.

    Args:
        is_positive: a value above zero becomes the smallest one rather than zero.
    Source: COAT, arXiv 2410.19313, section 4.2. Its kernel centers by the geometric mean and rounds
        k down to sixteenths; here values are normalized by the amax, which needs one number less.
    """

    is_positive: bool = False
    block: int = 128
    is_whole: bool = False
    fields: tuple[Field, ...] = (
        Field("", torch.uint8, "element"),
        Field("_amax", torch.float32, "block"),
        Field("_k", torch.float32, "block"),
    )

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """Codes, and the amax and k of each block."""
        blocks = in_blocks(without_inf(x), self.block)
        magnitude = blocks.abs()
        known = magnitude.nan_to_num(0.0)
        largest = known.amax(-1, keepdim=True)
        smallest = torch.where(known > 0, known, torch.inf).amin(-1, keepdim=True)
        k = expansion(largest, smallest)
        unit = magnitude / torch.where(largest > 0, largest, 1.0)
        codes = encode((unit.pow(k) * E4M3FN.max).copysign_(blocks), E4M3FN)
        if self.is_positive:
            codes = never_zero(codes, blocks)
        return out_of_blocks(codes, x), largest.squeeze(-1), k.squeeze(-1)

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """`sign(q) (|q| / 448)**(1 / k) amax`; k is 0 only where all is."""
        codes, amax, k = stored
        values = in_blocks(decode(codes, E4M3FN), self.block)
        unit = (values.abs() / E4M3FN.max).pow(1 / k.unsqueeze(-1))
        return out_of_blocks((unit * amax.unsqueeze(-1)).copysign_(values), codes)


def expansion(largest: Tensor, smallest: Tensor) -> Tensor:
    """COAT's exponent k of blocks with these magnitudes; 1 where there is none above zero."""
    spread = math.log(E4M3FN.max / E4M3FN.min_subnormal)
    k = spread / (largest.log() - smallest.log()).clamp(min=spread / LARGEST_K)
    return torch.where(largest > 0, k, 1.0)


@dataclass(frozen=True, kw_only=True)
class Companded:
    """Eight bits in even steps, after a function that spends more of them on small values.

    A signed moment, `n = x / amax` of its block: `y = 2 n / (1 + |n|)`, int8 `floor(127 y + 1/2)`.
    A positive one: uint8 `floor(255 sqrt(x / amax) + 1/2)`, and at least 1 above zero. What is kept
    for a block is the amax, or its root, in float32: in FP16 it is zero for gradients near 1e-8,
    and in BF16 the largest second moment of a block never shrinks at beta2 = 0.999.

    NaN or Inf makes its block NaN.

    Args:
        is_positive: of values >= 0, such as a second moment.
    Source: FlashOptim, arXiv 2602.23349, with the scale in another format.
    """

    is_positive: bool = False
    block: int = 64
    is_whole: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Codes and the largest magnitude, or its root."""
        dtype = torch.uint8 if self.is_positive else torch.int8
        return Field("", dtype, "element"), Field("_largest", torch.float32, "block")

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """Codes, and what is kept of each block."""
        blocks = in_blocks(x, self.block)
        values = blocks.sqrt() if self.is_positive else blocks
        largest = values.abs().amax(-1, keepdim=True)
        largest = torch.where(largest.isfinite(), largest, torch.nan)
        n = (values / torch.where(largest == 0, 1.0, largest)).nan_to_num_(0.0)
        if self.is_positive:
            codes = never_zero(n.mul_(255).add_(0.5).floor_().to(torch.uint8), blocks)
        else:
            codes = (n * 254 / (1 + n.abs())).add_(0.5).floor_().to(torch.int8)
        return out_of_blocks(codes, x), largest.squeeze(-1)

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """The function undone."""
        codes, largest = stored
        q = in_blocks(codes.float(), self.block)
        if self.is_positive:
            return out_of_blocks((q / 255 * largest.unsqueeze(-1)).square_(), codes)
        y = q / 127
        return out_of_blocks(y / (2 - y.abs()) * largest.unsqueeze(-1), codes)


def in_blocks(x: Tensor, block: int) -> Tensor:
    """Rows (n, w) as (n, blocks, block), the last block filled up with zeros."""
    if missing := -x.shape[1] % block:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.reshape(x.shape[0], x.shape[1] // block, block)


def out_of_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """Rows of the width of `like`, without what was filled in."""
    return blocks.flatten(1)[:, : like.shape[1]]


def without_inf(x: Tensor) -> Tensor:
    """NaN for Inf: a format without Inf would hide it as its largest value."""
    return x.nan_to_num(torch.nan, torch.nan, torch.nan)


def never_zero(codes: Tensor, x: Tensor) -> Tensor:
    """The smallest code where it is zero and x is above zero.

    A second moment of zero beside a first that is not makes a step of m / eps.
    """
    return torch.where((codes == 0) & (x > 0), 1, codes).to(codes.dtype)
