"""One factor on the loss: what mixed-precision training does where unit scaling is not used."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from unitscale.optim.parts import local

INITIAL_SCALE = 65536.0
GROWTH = 2.0
BACKOFF = 0.5
GROWTH_INTERVAL = 2000


@dataclass(kw_only=True)
class LossScale:
    """The loss is multiplied by `scale` before backward and every gradient divided by it after.

    A dynamic scale halves whenever a gradient is not finite, and that step is skipped; it doubles
    after 2,000 steps in a row without one (`torch.amp.GradScaler`'s rule and constants). A static
    scale never skips: an overflow reaches the parameters, and the run diverges for all to see.
    """

    scale: float = 1.0
    is_dynamic: bool = False
    clean_steps: int = 0

    @classmethod
    def of(cls, loss_scale: float | str | None) -> "LossScale":
        """From a recipe's `loss_scale`: None (a scale of 1), a number, or "dynamic"."""
        if loss_scale == "dynamic":
            return cls(scale=INITIAL_SCALE, is_dynamic=True)
        return cls(scale=1.0 if loss_scale is None else float(loss_scale))

    @torch.no_grad()
    def unscale_(self, parameters: Iterable[torch.nn.Parameter], factor: float = 1.0) -> bool:
        """Divide the gradients by the scale in place; whether the optimizer may step on them.

        Of gradients that ranks hold parts of, the answer is that for the parts of this one.

        Args:
            factor: multiplies the gradients as well.
        """
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        if (factor := factor / self.scale) != 1.0:
            for grad in grads:
                grad.mul_(factor)
        return not self.is_dynamic or all(bool(grad.isfinite().all()) for grad in grads)

    def update(self, *, is_finite: bool) -> None:
        """Adapt the scale to whether this step's gradients were finite."""
        if not self.is_dynamic:
            return
        self.clean_steps = self.clean_steps + 1 if is_finite else 0
        if not is_finite:
            self.scale *= BACKOFF
        elif self.clean_steps == GROWTH_INTERVAL:
            self.clean_steps = 0
            if math.isfinite(torch.tensor(self.scale * GROWTH).item()):
                self.scale *= GROWTH
