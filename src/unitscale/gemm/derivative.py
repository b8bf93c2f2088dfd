"""`first_order`: the backward of a function that has a first derivative and no second one.

Rounding passes its gradient straight through, which is no function that could be differentiated
again. torch's `once_differentiable` says so only at the second derivative, and not at all where the
gradient that comes in needs none, as after a sum: there a penalty would go missing in silence.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unitscale.formats.rounding import is_traced

__all__ = ["first_order"]


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A `backward` that refuses at once to be differentiated, which is what `create_graph` asks.

    While a graph is traced it says nothing: what is compiled refuses by itself.

    Raises:
        RuntimeError: at a backward pass with `create_graph=True`.
    """
    once = once_differentiable(backward)
    name = backward.__qualname__.removesuffix(".backward")

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> Any:
        is_recorded = torch.is_grad_enabled()  # gradients of gradients are wanted
        if is_recorded and not any(g is not None and is_traced(g) for g in grads):
            raise RuntimeError(
                f"{name}: create_graph=True asks for a second derivative of what is in low "
                "precision, and rounding has none; compute the part of the loss that needs it in "
                "full precision, inside `with us.full_precision(model):`, or leave its modules "
                "out with `skip=[...]`."
            )
        return once(ctx, *grads)

    return checked
