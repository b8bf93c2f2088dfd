"""Scales that a caller gives to a codec, checked."""

import math

import torch
from torch import Tensor

from unitscale.formats.batched import is_batched
from unitscale.formats.block import BlockFormat
from unitscale.formats.format import FloatFormat
from unitscale.formats.grouping import Grouping
from unitscale.formats.rounding import is_traced, round_to


def given_scale(
    scale: float | Tensor, x: Tensor, groups: Grouping, fmt: FloatFormat | BlockFormat
) -> Tensor:
    """The scale in float32 on x's device; of blocks and tiles, expanded to one for each.

    Raises:
        ValueError: it does not broadcast; it is a number that is not positive; or in a block format
            some scale is no value of the scale format. Tensors in graphs, and those on other
            devices than a CPU, are not read.
    """
    given = _positive("scale", scale, x)
    target = groups.scale_shape if groups.runs else groups.shape
    offset = len(target) - given.dim()
    if offset < 0 or any(
        size not in (1, wanted) for size, wanted in zip(given.shape, target[offset:], strict=True)
    ):
        raise ValueError(
            f"Codec: scale has shape {tuple(given.shape)}; expected one that broadcasts to "
            f"{target}, for x of shape {groups.shape} by {groups.granularity}"
        )
    if isinstance(fmt, BlockFormat) and not (is_traced(given) or is_batched(given)):
        _check_stored(given, fmt)
    return given.expand(target) if groups.runs else given


def given_tensor_scale(
    tensor_scale: float | Tensor, x: Tensor, fmt: FloatFormat | BlockFormat
) -> Tensor:
    """The tensor scale, float32 and 0-dim, on x's device.

    Raises:
        ValueError: the format has none; it has several elements; it is a number that is not
            positive.
    """
    if not (isinstance(fmt, BlockFormat) and fmt.has_tensor_scale):
        raise ValueError(f"Codec: {fmt} has no tensor_scale; leave it out")
    given = _positive("tensor_scale", tensor_scale, x)
    if given.numel() != 1:
        raise ValueError(
            f"Codec: tensor_scale has shape {tuple(given.shape)}; expected one element"
        )
    return given.reshape(())


def divisor(scale: Tensor) -> Tensor:
    """A scale to divide by: one that is zero makes zeros, as it does when it multiplies."""
    return torch.where(scale == 0, torch.inf, scale)


def _positive(name: str, given: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().to(device=x.device, dtype=torch.float32)
    if not 0 < given < math.inf:  # `math.isfinite` takes no symbol of Dynamo
        raise ValueError(f"Codec: {name} is {given}; expected a positive number")
    return x.new_full((), given, dtype=torch.float32)


def _check_stored(given: Tensor, fmt: BlockFormat) -> None:
    if given.device.type != "cpu":
        return
    stored = round_to(given, fmt.scale)
    is_other = (given != stored) & ~given.isnan()
    if is_other.any():
        raise ValueError(
            f"Codec: scale is {given[is_other].flatten()[0].item()}; expected a value of "
            f"{fmt.scale}, in which {fmt} stores its scales"
        )
