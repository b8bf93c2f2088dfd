"""One step of Adam, AdamW and SGD on a piece: float32 in place, the operations of torch in order.

So the bits are those of torch's optimizers with `foreach=False`: `b1 * m + (1 - b1) * g` instead of
`lerp_` would change 45 % of the first moments after one step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Values(NamedTuple):
    """Float32 pieces of a parameter and of its moments, those that the optimizer has."""

    weight: Tensor
    moments: tuple[Tensor, ...]


def adam(values: Values, grad: Tensor, group: dict[str, Any], step: float) -> None:
    """Adam or, with decoupled decay, AdamW; `step` counts from 1."""
    weight, (first, second) = values
    lr, decay = float(group["lr"]), group["weight_decay"]
    beta1, beta2 = group["betas"]
    if group["maximize"]:
        grad = -grad
    if decay != 0:
        if group["decoupled_weight_decay"]:
            weight.mul_(1 - lr * decay)
        else:
            grad = grad.add(weight, alpha=decay)
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominator = (second.sqrt() / correction2**0.5).add_(group["eps"])
    weight.addcdiv_(first, denominator, value=-(lr / correction1))


def sgd(values: Values, grad: Tensor, group: dict[str, Any], step: float) -> None:
    """SGD with or without momentum; the first step takes the gradient as the momentum."""
    weight, moments = values
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] != 0:
        grad = grad.add(weight, alpha=group["weight_decay"])
    if group["momentum"] != 0:
        (momentum,) = moments
        if step == 1:
            momentum.copy_(grad)
        else:
            momentum.mul_(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
        grad = grad.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
    weight.add_(grad, alpha=-float(group["lr"]))


def amax_of(x: Tensor) -> Tensor:
    """The largest finite magnitude, 0-dim float32; 0 of none."""
    if not x.numel():
        return x.new_zeros((), dtype=torch.float32)
    return x.abs().nan_to_num_(0.0, 0.0, 0.0).amax().float()
