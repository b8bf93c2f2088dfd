"""What every operation checks of its arguments, and how it tells the caller."""

import torch
from torch import Tensor


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """Refuse what has no gradient and so no scale; an optional argument may be None.

    Raises:
        TypeError: an argument is not a tensor, or not of a floating-point dtype.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{op}: {name} is a {type(tensor).__name__}, expected a floating-point tensor; "
                f"make it one with torch.as_tensor."
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}, expected a floating-point dtype; "
                f"convert it first, for example with {name}.float()."
            )


def broadcast_numel(op: str, input: Tensor, other: Tensor) -> int:
    """Number of elements of what two tensors broadcast to.

    Raises:
        ValueError: they do not broadcast.
    """
    try:
        return torch.broadcast_shapes(input.shape, other.shape).numel()
    except RuntimeError:
        raise ValueError(
            f"{op}: input has shape {shape(input)} and other {shape(other)}, "
            "expected shapes that broadcast."
        ) from None


def shape(tensor: Tensor) -> str:
    """The shape as a caller writes it: `[8, 3]`."""
    return str(list(tensor.shape))
