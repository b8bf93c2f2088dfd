"""An operand on its grid: the formulas, as eager code runs them and a graph for a GPU inlines them.

`gemm.opaque` has the same as one node each, `gemm.operand` chooses.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unitscale.formats import BlockFormat, Codec, Encoded, FloatFormat, round_to
from unitscale.formats.batched import is_batched
from unitscale.formats.rounding import is_traced
from unitscale.formats.scale_rule import exact_scale
from unitscale.gemm.formats import Parsed, operand_of
from unitscale.gemm.hadamard import turned
from unitscale.recipes import Constant, Current, Delayed, Operand, Unit, parse_operand

__all__ = ["Given", "Use", "amax_of", "codec_of", "decoded", "grid", "wide"]


class Use(NamedTuple):
    """How a product takes a tensor.

    Args:
        text: of the operand; None takes it as it is.
        along: the axis of the contraction, -1 or -2.
    """

    text: str | None
    along: int = -1

    @property
    def operand(self) -> Operand:
        """What the text says."""
        return operand_of(self.text or "as is")

    @property
    def is_turned(self) -> bool:
        """Whether the encoded tensor has its last two axes swapped: its contraction is last."""
        return self.along == -2 and not self.operand.is_shared

    def shares(self, other: "Use") -> bool:
        """Whether both take the same values of a tensor."""
        return self.text == other.text and (self.operand.is_shared or self.along == other.along)


class Given(NamedTuple):
    """The amax of a tensor, and the scale that earlier steps gave it: 0 where there were none."""

    amax: Tensor
    scale: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a scale meets a tensor of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saturates(fmt: FloatFormat) -> bool:
    """Whether a cast to this format clamps: yes up to eight bits, no for FP16, BF16 and wider."""
    return fmt.bits <= 8


def amax_of(x: Tensor) -> Tensor:
    """The largest magnitude, in float32; 0 of an empty tensor."""
    return x.abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)


CODECS = Parsed()


def codec_of(text: str) -> Codec:
    """The codec of an operand with a scale."""
    make_codec(text)
    codec: Codec = getattr(CODECS, text)
    return codec


@torch.compiler.assume_constant_result
def make_codec(text: str) -> None:
    """Have the codec of an operand's text among those that are known."""
    if hasattr(CODECS, text):
        return
    operand = parse_operand(text)
    assert operand.format is not None
    scale = operand.scale if isinstance(operand.scale, Current) else Current()
    rule = scale.power_of_two
    if isinstance(operand.format, BlockFormat) and not operand.format.has_tensor_scale:
        rule = rule or "floor"
    codec = Codec(
        format=operand.format,
        granularity=operand.granularity,
        power_of_two=rule,
        margin=scale.margin,
        rounding=operand.rounding,
    )
    setattr(CODECS, text, codec)


def grid(x: Tensor, use: Use, given: Given | None = None, seed: Tensor | None = None) -> Encoded:
    """`x` rounded as a product takes it, see `operand.encode`.

    Args:
        given: amax and scale, of an operand whose scale comes from earlier steps.
        seed: for an operand that has a scale and is rounded stochastically; else one is drawn.
    """
    operand = use.operand
    if operand.format is None:
        return Encoded(x, None)
    if use.is_turned:
        x = x.mT
    if operand.transform is not None:
        x = turned(x.to(wide(x.dtype)), operand.transform.size)
    if isinstance(operand.format, FloatFormat) and not isinstance(operand.scale, Current):
        return at_given_scale(x, use, operand, given)
    assert use.text is not None
    codec, scale = codec_of(use.text), operand.scale
    if isinstance(operand.format, BlockFormat):
        is_unit = isinstance(scale, Unit) and operand.format.has_tensor_scale
        return codec.grid(x, tensor_scale=1.0 if is_unit else None, seed=seed)
    return codec.grid(x, seed=seed)


def at_given_scale(x: Tensor, use: Use, operand: Operand, given: Given | None) -> Encoded:
    """A tensor at a scale that is known before it, or at none: what is not finite stays so.

    Inf becomes NaN, where a cast that saturates would hide an overflow from a `GradScaler`. A
    format without NaN has it in the scale: then the whole tensor is NaN, as a block would be.
    """
    fmt, rule, scale = operand.format, operand.scale, None
    assert isinstance(fmt, FloatFormat)
    assert use.text is not None
    if isinstance(rule, Constant):
        scale = torch.full((), 2.0**rule.log2, dtype=torch.float32, device=x.device)
    elif isinstance(rule, Delayed):
        amax = amax_of(x) if given is None else given.amax
        scale = exact_scale(amax, fmt, rule.margin)
        scale = scale if given is None else torch.where(given.scale > 0, given.scale, scale)
    if not fmt.has_nan:
        amax = amax_of(x) if given is None else given.amax
        scale = torch.ones_like(amax) if scale is None else scale
        scale = torch.where(amax.isfinite(), scale, torch.nan)
    elif saturates(fmt):
        x = nan_for_inf(x, given)
    if scale is not None:
        return codec_of(use.text).grid(x, scale=scale)
    return Encoded(round_to(x, fmt, operand.rounding, saturate=saturates(fmt)), None)


def nan_for_inf(x: Tensor, given: Given | None) -> Tensor:
    """`x` with NaN where it is Inf. On a CPU a sum tells first whether any is: a short pass."""
    if not (is_traced(x) or is_batched(x) or x.device.type != "cpu"):
        told = x.sum(dtype=wide(x.dtype)) if given is None else given.amax
        if math.isfinite(told.item()):
            return x
    # x - 0 is x, -0 too; Inf - Inf is NaN. `where` and `nan_to_num` are more ops in a graph, and
    # a partitioner then keeps a float32 tensor for backward that it computes again of this.
    return x - (x - x)


def decoded(encoded: Encoded, text: str, dtype: torch.dtype) -> Tensor:
    """The values of what `grid` gave, packed or not, of an operand with a scale."""
    return codec_of(text).decode(encoded, dtype)
