"""Whether tensors hold values of FP16 alone."""

import torch
from torch import Tensor

from unitscale.recipes import Throughout

SMALLEST, NORMAL = 2.0**-24, 2.0**-14


def is_held(x: Tensor, how: Throughout) -> bool:
    """Whether all values are those of the format."""
    fits = torch.equal(x, x.half().float())
    return fits and (how.subnormals == "kept" or not ((x != 0) & (x.abs() < NORMAL)).any())


def assert_held(tensors: dict[str, Tensor], how: Throughout) -> None:
    assert tensors
    assert [name for name, x in tensors.items() if not is_held(x, how)] == []
