"""TENT: gradient steps on the entropy, of the gains and biases of norms alone.

Source: Wang et al. 2021, arXiv 2006.10726.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unitscale.adapt.score import entropy
from unitscale.adapt.stream import check_images, check_mode

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
        if not lr > 0 or not math.isfinite(lr):
            raise ValueError(f"TENT: lr is {lr!r}; expected a number above 0.")
        if not 0 <= momentum < 1:
            raise ValueError(f"TENT: momentum is {momentum!r}; expected a number in [0, 1).")
        self.parameters = [
            p
            for module in model.modules()
            if type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))
            for p in module.parameters(recurse=False)
        ]
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
            TypeError, ValueError: as `FOA`, or a loss that is not finite. Nothing was changed.
        """
        check_mode(self.model, "TENT")
        check_images(images, "TENT", self.size)
        with self._norms_alone(), torch.enable_grad():
            answer = self.model(images)
            logits: Tensor = getattr(answer, "logits", answer)
            loss = entropy(logits).mean()
            if not math.isfinite(float(loss.detach())):
                raise ValueError(
                    f"TENT: the entropy of {type(self.model).__name__} is {float(loss.detach())} "
                    "for this batch; expected a finite one; does it classify without adaptation?"
                )
            torch.autograd.backward(loss)
            self.optimizer.step()
        self.size = tuple(images.shape[1:])
        return logits.detach()

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
