"""What is checked of a batch of a stream before anything is done with it."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_images", "check_kept", "check_mode", "logits_of"]


def check_images(images: Any, caller: str, like: tuple[int, ...] | None = None) -> Tensor:
    """A batch of images that can be adapted to.

    Args:
        like: (channels, height, width) of the images that were seen first; None takes any.
    Raises:
        TypeError: not a floating-point tensor. ValueError: not (images, channels, height, width),
            no image, another size, or a value that is NaN or infinite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{caller}: the batch is {got}; expected a floating-point tensor (images, channels, "
            "height, width), normalized as in training."
        )
    shape = tuple(images.shape)
    if images.ndim != 4:
        raise ValueError(
            f"{caller}: the batch has the shape {shape}; expected (images, channels, height, "
            "width); for one image use images[None]."
        )
    if not images.numel():
        raise ValueError(
            f"{caller}: the batch is empty, its shape is {shape}; expected at least one image; "
            "leave it out."
        )
    if like is not None and shape[1:] != tuple(like):
        raise ValueError(
            f"{caller}: the images have the size {shape[1:]}; expected that of the source, "
            f"{tuple(like)}; resize them."
        )
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{caller}: {len(bad)} of {len(images)} images hold NaN or infinity, the first is "
            f"number {bad[0]}; leave those out."
        )
    return images


def check_mode(model: nn.Module, caller: str) -> None:
    """Refuse a model that would drop activations or move its buffers.

    Raises:
        ValueError: the model is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise ValueError(
            f"{caller}: {type(model).__name__} is in training mode; expected a model that serves; "
            "call model.eval() first."
        )


def logits_of(model: nn.Module, answer: Any, caller: str) -> Tensor:
    """The logits in what a model returned.

    Raises:
        TypeError: there are none.
    """
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{caller}: {type(model).__name__} returns a {type(answer).__name__}; expected logits, "
            "or an object that has them as .logits."
        )
    return logits


def check_kept(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of a state of `FOA` that images would be answered with.

    Raises:
        ValueError: another shape, or a value that is NaN or infinite.
    """
    if value is None:
        return
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if got != shape:
        raise ValueError(
            f"FOA: {name} of the state is {got}; expected a tensor of shape {shape}; this is the "
            "state of another model."
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"FOA: {name} of the state holds NaN or infinity; expected finite numbers; go on from "
            "an earlier state."
        )
