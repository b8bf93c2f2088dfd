"""The random Hadamard transform: runs of values turned, so that an outlier is spread over its run.

For a run v of 16 values, `v @ (diag(signs) @ H)` with H the Hadamard matrix over 4 = sqrt(16): an
orthogonal matrix, so the inner product of two runs that are turned alike is what it was. A run
(16, 0, ..., 0) becomes sixteen values of magnitude 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rotation", "turned"]

SEED = 16
"""Of the signs: drawn once and for good, as NVIDIA's recipe does for all layers and all steps."""


@torch.compiler.assume_constant_result
def entries(size: int) -> tuple[tuple[float, ...], ...]:
    """The rows of `diag(signs) @ H / sqrt(size)`.

    Sylvester's construction: H of twice the size is [[H, H], [H, -H]].
    """
    rows = [[1.0]]
    while len(rows) < size:
        rows = [row + row for row in rows] + [row + [-x for x in row] for row in rows]
    # A linear congruential generator (Numerical Recipes): the same signs on every machine.
    state, signs = SEED, []
    for _ in range(size):
        state = (1664525 * state + 1013904223) % 2**32
        signs.append(1.0 if state >> 31 else -1.0)
    return tuple(tuple(s * x * size**-0.5 for x in row) for s, row in zip(signs, rows, strict=True))


def rotation(size: int, like: Tensor) -> Tensor:
    """The orthogonal matrix [size, size], in the dtype and on the device of `like`."""
    return torch.tensor(entries(size), dtype=like.dtype, device=like.device)


def turned(x: Tensor, size: int) -> Tensor:
    """x [..., n] with each run of `size` along the last axis turned; n is filled up with zeros.

    Shape [..., n rounded up to a multiple of size]. Zeros at the end of both operands of a product
    add nothing to it.
    """
    missing = -x.shape[-1] % size
    x = F.pad(x, (0, missing)) if missing else x
    runs = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    return (runs @ rotation(size, x)).reshape(x.shape)
