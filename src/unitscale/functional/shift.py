"""Shifting a sequence, so that what is predicted at a position comes from those before it."""

import torch
from torch import Tensor

from unitscale.functional.arguments import check_floating, shape
from unitscale.scaling import scale_bwd
from unitscale.scaling.factors import parameter_grad_scale


def pad_and_shift(input: Tensor, pad: Tensor) -> Tensor:
    """Every position takes the value of the one before it, and the first takes `pad`.

    The factors of the sequence are 1 (the last position is left out, and so has no gradient). Those
    of the pad, which the whole batch shares, are 1 and `batch^-1/2`.

    Args:
        input: [batch, time, features].
        pad: [features].
    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: other shapes.
    Source: the demo of Blake et al. 2023, which shifts the scores of its read-out.
    """
    check_floating("pad_and_shift", input=input, pad=pad)
    if input.dim() != 3 or pad.shape != input.shape[-1:]:
        raise ValueError(
            f"pad_and_shift: input has shape {shape(input)} and pad {shape(pad)}, expected "
            "[batch, time, features] and [features]."
        )
    batch, time, features = input.shape
    first = scale_bwd(pad, parameter_grad_scale(batch)).expand(batch, 1, features)
    return torch.cat((first, input), 1)[:, :time]
