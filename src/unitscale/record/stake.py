"""What is at stake in a product: how far the loss moves if a result of it is wrong."""

from torch import Tensor

from unitscale.numerics.rounding_error import norm
from unitscale.record.operand import Subject

__all__ = ["stake"]


def stake(result: Tensor, count: int, other: Subject) -> Tensor:
    """How far the loss moves, to first order, if a result is off by as much as it is large.

    The other tensor is the one whose inner product with the result is a change of the loss: that of
    an output is its gradient, that of a gradient is the tensor it is of. Errors of many elements,
    each of a sign of its own, add up as a random walk does:

        4,096 elements with an RMS of 1, gradients with one of 2^-10: 2^-10 * sqrt(4096) = 2^-4

    Args:
        count: of elements; the result may be a part of them.
    """
    return norm(result) * (count / max(result.numel(), 1)) ** 0.5 * other.rms
