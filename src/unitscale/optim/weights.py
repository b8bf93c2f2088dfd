"""How a weight is kept while the optimizer adds small steps to it.

A step is often far below the spacing of the weight's own format: in BF16 updates below 2**-9 of the
weight are lost. Each codec here reads the weight as float32 and writes it back, and says what it
keeps beside the parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unitscale.formats import BF16
from unitscale.formats.kernel import Bits, Law

from .moments import Field, MomentCodec


class Written(NamedTuple):
    """What goes into the parameter, and into the fields."""

    weight: Tensor
    stored: Sequence[Tensor]


class WeightCodec(Protocol):
    """A way to keep a weight."""

    @property
    def slot(self) -> str:
        """The name of the state; the fields add their suffix to it."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]:
        """What is stored beside the parameter."""
        ...

    @property
    def block(self) -> int:
        """As a `MomentCodec`'s."""
        ...

    @property
    def is_whole(self) -> bool:
        """As a `MomentCodec`'s."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether writing what was read leaves the parameter as it was, even the first time."""
        ...

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """The float32 weight, of a piece of the parameter and its fields."""
        ...

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """The piece of the parameter, in `dtype`, and its fields."""
        ...


@dataclass(frozen=True)
class Own:
    """A float32 parameter is its own master."""

    slot: str = "master"
    fields: tuple[Field, ...] = ()
    block: int = 1
    is_whole: bool = False
    is_exact: bool = True

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """The parameter itself, not a copy."""
        return weight

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """As it is."""
        return Written(x, ())


@dataclass(frozen=True, kw_only=True)
class Master:
    """A master copy in the state, of which the parameter is the value in its own dtype.

    Where the parameter was changed by somebody else since (loaded, clipped, averaged), its value
    counts and not the master's.
    """

    codec: MomentCodec
    slot: str = "master"
    is_exact: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Those of the codec."""
        return self.codec.fields

    @property
    def block(self) -> int:
        """That of the codec."""
        return self.codec.block

    @property
    def is_whole(self) -> bool:
        """That of the codec."""
        return self.codec.is_whole

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """The master where the parameter is still its value, else the parameter."""
        master = self.codec.decode(stored)
        return torch.where(master.to(weight.dtype) == weight, master, weight.float())

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """The parameter is what the stored master says, so both always agree."""
        stored = self.codec.encode(x, amax)
        return Written(self.codec.decode(stored).to(dtype), stored)


@dataclass(frozen=True)
class Split:
    """The upper half of a float32 is the BF16 parameter, the lower half is kept beside it: exact.

    The upper half is rounded to nearest, ties upward in magnitude; so the lower half is signed. It
    is kept as two bytes, because neither gloo nor NCCL moves an int16.

    Source: TransformerEngine d0067d0, `fused_adam.py`, `store_param_remainders`.
    """

    slot: str = "remainder"
    fields: tuple[Field, ...] = (
        Field("", torch.uint8, "element"),
        Field("_high", torch.int8, "element"),
    )
    block: int = 1
    is_whole: bool = False
    is_exact: bool = True

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """Both halves joined."""
        low = stored[1].to(torch.int32) << 8 | stored[0].to(torch.int32)
        high = weight.contiguous().view(torch.int16).to(torch.int32) - (low < 0).int()
        return (high << 16 | low & 0xFFFF).view(torch.float32)

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """The two halves."""
        # Of NaN the one whose lower half is zero: rounding up 0x7FFFFFFF would give -0.
        pattern = x.contiguous().view(torch.int32).masked_fill(x.isnan(), 0x7FC00000)
        low = pattern.to(torch.int16)
        high = (pattern >> 16) + (low < 0)
        return Written(
            high.to(torch.int16).view(torch.bfloat16), ((low & 0xFF).byte(), (low >> 8).char())
        )


@dataclass(frozen=True)
class Corrected:
    """24 bits: a BF16 parameter w and eight bits of what rounding took from it.

    With h half the spacing of BF16 at w: `q = round((x - w) / h * 127)`, `x ~ w + q / 127 h`. The
    error is at most 0.004 spacings of BF16, never above that of BF16 alone, and zero where that is.
    What is read has w for its nearest BF16: written again it is the same in every bit. For that, a
    correction that reads as a tie with another w is one smaller.

    Source: FlashOptim, arXiv 2602.23349; databricks/flashoptim 8b2d966.
    """

    slot: str = "correction"
    fields: tuple[Field, ...] = (Field("", torch.int8, "element"),)
    block: int = 1
    is_whole: bool = False
    is_exact: bool = True

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """The corrected weight."""
        x = weight.float()
        first, second = half_spacing(x)
        return x + stored[0].float() / 127 * first * second

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """Nearest BF16, and the correction in 127ths of half a spacing, ties away from zero.

        At w = 1 the steps of BF16 are 2**-7 above and 2**-8 below, so x = 1 - 0.99 * 2**-9
        gives q = -63; -64 would be a value nearer to 1 - 2**-8.
        """
        weight = x.to(torch.bfloat16)
        rounded = weight.float()
        first, second = half_spacing(rounded)
        share = ((x - rounded) / first / second).clamp_(-1, 1).nan_to_num_(0.0) * 127
        q = (share.abs() + 0.5).floor_().copysign_(share)
        q -= q.sign() * (self.read(weight, (q,)).to(torch.bfloat16) != weight)
        return Written(weight, (q.to(torch.int8),))


def half_spacing(x: Tensor) -> tuple[Tensor, Tensor]:
    """Half the spacing of BF16 at values of BF16, as two factors: 2**-134 alone has no inverse."""
    exponent = ((x.view(torch.int32) >> 23) & 0xFF).clamp_(min=1) - 127 - 8
    first = exponent >> 1
    return _power_of_two(first), _power_of_two(exponent - first)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 127) << 23).view(torch.float32)


@dataclass(frozen=True)
class Stochastic:
    """A BF16 parameter and nothing beside it: rounded up or down so that the mean is right.

    The random bits are a hash of seed, parameter, step and element, so that every process that
    holds the element rounds it alike. Inf and NaN stay.
    """

    slot: str = "master"
    fields: tuple[Field, ...] = ()
    block: int = 1
    is_whole: bool = False
    is_exact: bool = True

    def read(self, weight: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """The parameter in float32."""
        return weight.float()

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """Rounded by the bits."""
        law = Law(fmt=BF16, rounding="stochastic", saturate=False, dtype=torch.float32)
        return Written(law.rounded(x, bits, None).to(torch.bfloat16), ())
