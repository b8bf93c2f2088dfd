"""The magnitudes of a tensor over many batches, in bounded memory, and where to clip them."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from unitscale.deploy.scheme import Scheme
from unitscale.formats import BlockFormat, Codec

__all__ = ["CLIPS", "FRACTIONS", "Clip", "Histogram", "check_clip", "check_use", "scale_of"]

Clip = Literal["amax", "percentile", "mse"]
CLIPS: tuple[str, ...] = get_args(Clip)

BINS = 2048
FRACTIONS = torch.linspace(0.2, 1.0, 33)
"""Of the amax: the clips that "mse" tries."""


def check_clip(clip: str, percentile: float) -> None:
    """Refuse an unknown way to clip.

    Raises:
        ValueError: there is no such way, or the percentile is none.
    """
    if clip not in CLIPS:
        raise ValueError(f"quantize: clip is {clip!r}; expected one of {', '.join(CLIPS)}")
    if not isinstance(percentile, int | float) or not 50 < percentile <= 100:
        raise ValueError(
            f"quantize: percentile is {percentile!r}; expected above 50 and at most 100, as 99.99"
        )


def check_use(clip: str, scheme: Scheme) -> None:
    """Refuse a way to clip that a scheme has no scale for, and which so would do nothing.

    Raises:
        ValueError: its scales follow their blocks, or each input.
    """
    static = scheme.input if scheme.is_static else None
    if clip == "mse" and isinstance((static or scheme.weight).format, BlockFormat):
        raise ValueError(
            f"quantize: clip='mse' chooses one scale for a tensor or row, and {scheme.name!r} has "
            "blocks, whose scales follow their amax; leave clip out"
        )
    if clip == "percentile" and static is None:
        raise ValueError(
            f"quantize: clip='percentile' is of static scales for inputs, and {scheme.name!r} has "
            "none; leave clip out"
        )


class Histogram:
    """How often each magnitude came, in equal bins from 0; the range doubles when it must.

    So that no tensor is kept and none is read twice. A value is known to within `range / 2048`,
    and the range is less than twice the amax; the amax itself is exact.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.range = self.amax = 0.0
        self.is_finite = True

    def add(self, x: Tensor) -> None:
        """Count the values of one tensor."""
        magnitudes = x.detach().abs().float().flatten()
        if not magnitudes.numel():
            return
        top = float(magnitudes.max())
        self.is_finite &= math.isfinite(top)
        if not self.is_finite:
            return
        self.amax = max(self.amax, top)
        if self.range == 0:
            # Zeros that came before are in the first bin, whatever the range.
            self.range = top
        while self.range < top:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.range *= 2
        counted = torch.histc(magnitudes, BINS, 0, self.range or 1.0)
        self.counts += counted.cpu().double()

    def clip(self, how: Clip, percentile: float, codec: Codec) -> float:
        """The magnitude beyond which values saturate.

        Args:
            how: "amax"; "percentile" of the magnitudes; "mse", the one of 33 fractions of the amax
                at which the codec's squared error is least.
        """
        if how == "amax" or self.amax == 0:
            return self.amax
        if how == "percentile":
            wanted = float(self.counts.sum()) * percentile / 100
            index = int(torch.searchsorted(self.counts.cumsum(0), wanted))
            return min(self.amax, (index + 1) * self.range / BINS)
        centers = (torch.arange(BINS) + 0.5) * (self.range / BINS)
        clips = FRACTIONS * self.amax
        # The scales that the codec makes of them: a power of two is far from the quotient.
        scales = torch.stack([scale_of(float(clip), codec) for clip in clips])
        rounded = codec.round(centers.expand(len(clips), BINS).contiguous(), scale=scales)
        errors = ((rounded - centers).double().square() * self.counts).sum(1)
        return float(clips.flip(0)[errors.flip(0).argmin()])  # of equals the largest


def scale_of(clip: float, codec: Codec) -> Tensor:
    """The scale at which a magnitude is the largest value; of NVFP4 its second one. (1,)."""
    found = codec.grid(torch.tensor([clip], dtype=torch.float32))
    scale = found.tensor_scale if isinstance(codec.format, BlockFormat) else found.scale
    assert scale is not None
    return scale.reshape(1).float()
