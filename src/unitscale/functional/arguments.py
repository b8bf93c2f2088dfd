"""What every operation checks of its arguments, and how it tells the caller."""

import math

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


def check_mult(owner: str, **multipliers: float) -> None:
    """Raise ValueError, with the name of the multiplier, unless each is a positive number."""
    for name, mult in multipliers.items():
        is_number = isinstance(mult, int | float) and not isinstance(mult, bool)
        if not (is_number and 0 < mult < math.inf):
            raise ValueError(
                f"{owner}: {name} is {mult!r}; expected a positive number, and 1 changes nothing."
            )


def broadcast_copies(
    op: str, input: Tensor, other: Tensor, *, matrices: bool = False
) -> tuple[int, int]:
    """How often broadcasting repeats each of two operands, whose gradients sum over the copies.

    Args:
        matrices: only the axes before the last two broadcast, as in a matrix product.
    Raises:
        ValueError: they do not broadcast.
    """
    left, right = (x.shape[:-2] if matrices else x.shape for x in (input, other))
    try:
        numel = torch.broadcast_shapes(left, right).numel()
    except RuntimeError:
        raise ValueError(
            f"{op}: input has shape {shape(input)} and other {shape(other)}, expected "
            f"{'batch axes' if matrices else 'shapes'} that broadcast."
        ) from None
    return numel // max(left.numel(), 1), numel // max(right.numel(), 1)


def axis_size(input: Tensor, dim: int) -> int:
    """The size of an axis; a 0-dim tensor has one entry, as in torch.

    Raises:
        IndexError: torch's, if there is no such axis; for a 0-dim tensor the caller's op raises it.
    """
    return input.size(dim) if input.dim() else 1


def num_rows(input: Tensor, size: int) -> int:
    """How many rows of `size` entries the tensor has; 0 if it is empty."""
    return input.numel() // max(size, 1)


def shape(tensor: Tensor) -> str:
    """The shape as a caller writes it: `[8, 3]`."""
    return str(list(tensor.shape))
