"""What a model's features are like on images of the kind that it was trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.adapt.parts import Found, Parts, find
from unitscale.adapt.probe import probe_of
from unitscale.adapt.stream import check_images, check_mode

__all__ = ["Source", "measure_source", "source_of"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Mean and deviation of the class token after each block, over source images.

    Args:
        mean: (blocks, width), float32.
        deviation: the same shape; with n - 1.
        spread: standard deviation of the tokens that go into the first block.
        images: how many were seen.
        size: (channels, height, width) of each.
    Raises:
        ValueError: shapes that differ, values that are not finite, fewer than 2 images.
    """

    mean: Tensor
    deviation: Tensor
    spread: float
    images: int
    size: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or self.mean.shape != self.deviation.shape:
            raise ValueError(
                f"Source: the mean is {tuple(self.mean.shape)} and the deviation "
                f"{tuple(self.deviation.shape)}; expected one shape (blocks, width) for both."
            )
        if self.images < 2:
            raise ValueError(
                f"Source: {self.images} image has no deviation; expected 2 or more, 32 do well."
            )
        if not bool(torch.isfinite(torch.stack([self.mean, self.deviation])).all()):
            raise ValueError(
                "Source: the features of source images hold NaN or infinity; does the model "
                "classify them?"
            )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for `torch.save`; `Source(**state)` reads them."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "spread": self.spread,
            "images": self.images,
            "size": tuple(self.size),
        }


Images = Tensor | Iterable[Tensor | tuple[Tensor, ...]]
"""One batch, or batches, of images; of a tuple the images are the first."""


def measure_source(model: nn.Module, images: Images, *, parts: Parts | None = None) -> Source:
    """The statistics of a model's features on source images, by one forward pass each.

    Labels are not needed: of a batch that is a tuple the first is taken. Measure with the recipe
    that will serve, since the statistics are those of the rounded model.

    Raises:
        TypeError, ValueError: no images or bad ones, a model without a class token or in training
            mode.
    """
    check_mode(model, "measure_source")
    found = find(model, parts, "measure_source")
    return _measured(model, found, images, "measure_source")


def source_of(
    model: nn.Module, found: Found, source: Source | Mapping[str, Any] | Images, caller: str
) -> Source:
    """Statistics from themselves, from their state or from images, checked against a model."""
    if isinstance(source, Mapping):
        names = ", ".join(map(str, source)) or "nothing"
        try:
            source = Source(**source)
        except TypeError:
            raise TypeError(
                f"{caller}: the source is a mapping of {names}; "
                "expected images, a Source, or its state_dict()."
            ) from None
    if not isinstance(source, Source):
        return _measured(model, found, source, caller)
    expected = (len(found.blocks), found.width)
    if tuple(source.mean.shape) != expected:
        raise ValueError(
            f"{caller}: the source statistics are those of {tuple(source.mean.shape)} blocks and "
            f"channels; this model has {expected}; measure them with this model."
        )
    return source


def _measured(model: nn.Module, found: Found, images: Images, caller: str) -> Source:
    if not isinstance(images, Iterable) or isinstance(images, str):
        raise TypeError(
            f"{caller}: the source is {type(images).__name__}; expected a batch of images, or "
            "several."
        )
    batches = [images] if isinstance(images, Tensor) else images
    count, size = 0, None
    spread = 0.0
    mean = square = torch.zeros(0)
    probe = probe_of(model)
    for batch in batches:
        taken = check_images(batch[0] if isinstance(batch, tuple | list) else batch, caller, size)
        size = tuple(taken.shape[1:])
        with torch.no_grad():
            got = probe.run(model, found, taken)
        # Chan's update of mean and squared distance: no loss of digits where the mean is large.
        features = got.features.double()
        own_mean = features.mean(dim=1)
        own_square = (features - own_mean[:, None]).square().sum(dim=1)
        n = len(taken)
        spread += float(got.spread) * n
        if not count:
            mean, square = own_mean, own_square
        else:
            distance = own_mean - mean
            square = square + own_square + distance.square() * (count * n / (count + n))
            mean = mean + distance * (n / (count + n))
        count += n
    if size is None:
        raise ValueError(
            f"{caller}: the source has no batch; expected 2 images or more, 32 do well."
        )
    return Source(
        mean=mean.float(),
        deviation=(square / max(count - 1, 1)).sqrt().float(),
        spread=spread / count,
        images=count,
        size=size,
    )
