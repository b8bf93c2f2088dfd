"""TENT: gradient steps on the entropy, of the gains and biases of norms alone.

Source: Wang et al. 2021, arXiv 2006.10726.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.adapt.argument import check_number
from unitscale.adapt.score import entropy
from unitscale.adapt.stream import check_images, check_mode, logits_of

__all__ = ["TENT"]


class TENT:
    """Adapts a model by one gradient step a batch: `logits = tent(images)`; it changes the model.

    It is here to compare with: it needs gradients, so the activations of a training step, and a
    recipe rounds its backward pass too. The answer is that before the step. `reset` gives the model
    its own gains and biases back. Gradients that parameters have, and what needs one, stay as they
    were.

    Args:
        model: in evaluation mode; any classifier with norms that have parameters.
        lr: learning rate of SGD. momentum: of it.
    Raises:
        TypeError, ValueError: not a module, one in training mode or without such norms, a rate that
            is not above 0, a momentum outside [0, 1).
    """

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, momentum: float = 0.9) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"TENT: got {type(model).__name__}; expected a torch.nn.Module.")
        check_mode(model, "TENT")
        check_number("TENT", "lr", lr, above=True)
        check_number("TENT", "momentum", momentum, 0, 1, below=True)
        own = {
            id(p): p  # once, though norms share it
            for module in model.modules()
            if type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))
            for p in module.parameters(recurse=False)
        }
        self.parameters = list(own.values())
        if not self.parameters:
            raise ValueError(
                f"TENT: {type(model).__name__} has no norm with parameters, and TENT trains those "
                "alone; expected LayerNorm or the like."
            )
        self.model, self.lr, self.momentum = model, lr, momentum
        self.original = [p.detach().clone() for p in self.parameters]
        self.reset()

    def reset(self) -> None:
        """Give the model its own gains and biases back, and forget the stream."""
        with torch.no_grad():
            for p, original in zip(self.parameters, self.original, strict=True):
                p.copy_(original)
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.lr, momentum=self.momentum)
        self.size: tuple[int, ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, and a step.

        Raises:
            TypeError, ValueError: as `FOA`; a loss or a gradient that is not finite, or none: a
                single class, or norms that the output does not depend on. Nothing was changed.
        """
        check_mode(self.model, "TENT")
        check_images(images, "TENT", self.size)
        with torch.inference_mode(False), self._norms_alone(), torch.enable_grad():
            # What was made in inference mode cannot be kept for a backward pass.
            given = images.clone() if images.is_inference() else images
            logits = logits_of(self.model, self.model(given), "TENT")
            if logits.ndim < 2 or logits.shape[1] < 2:
                raise ValueError(
                    f"TENT: the logits of {type(self.model).__name__} are {tuple(logits.shape)}; "
                    "expected two classes or more: one has no entropy to lower."
                )
            loss = entropy(logits).mean()
            if not math.isfinite(float(loss.detach())):
                raise ValueError(
                    f"TENT: the entropy of {type(self.model).__name__} is {float(loss.detach())} "
                    "for this batch; expected a finite one; does it classify without adaptation?"
                )
            if not loss.requires_grad:
                raise ValueError(
                    f"TENT: the output of {type(self.model).__name__} depends on no gain or bias "
                    "of its norms; expected norms that it runs, with gradients through them."
                )
            torch.autograd.backward(loss)
            if not all(bool(torch.isfinite(p.grad).all()) for p in self._reached()):
                raise ValueError(
                    f"TENT: a gradient of {type(self.model).__name__} is NaN or infinite for this "
                    "batch; expected finite ones; adapt it in BF16 or FP32."
                )
            self.optimizer.step()
        self.size = tuple(images.shape[1:])
        return logits.detach()

    def _reached(self) -> list[Any]:
        """The gains and biases that got a gradient."""
        return [p for p in self.parameters if p.grad is not None]

    @contextmanager
    def _norms_alone(self) -> Iterator[None]:
        """Have only the norms' parameters need gradients, for one step."""
        kept = [(p, p.requires_grad, p.grad) for p in self.model.parameters()]
        own = {id(p) for p in self.parameters}
        for p, _, _ in kept:
            p.grad = None
            p.requires_grad_(id(p) in own)
        try:
            yield
        finally:
            for p, needed, grad in kept:
                p.requires_grad_(needed)
                p.grad = grad
