"""Whether a gradient came in 8 bits: it has few mantissa bits. A hook that does nothing fails."""

import torch
from torch import Tensor, nn

from unitscale.formats import FloatFormat

__all__ = ["assert_few_bits", "gradients", "relative_error"]


def assert_few_bits(x: Tensor, fmt: FloatFormat) -> None:
    """Fail unless the significand of each element, scaled by powers of two, is one of the format.

    A power of two as the scale changes no significand. Subnormals have even fewer bits.
    """
    significand, _ = torch.frexp(x.double())
    steps = significand * 2 ** (fmt.mantissa_bits + 1)
    off = (steps != steps.round()).sum().item()
    assert off == 0, f"{off} of {x.numel()} elements have more bits than {fmt}"
    assert x.any(), "all elements are zero, which says nothing"


def gradients(model: nn.Module) -> Tensor:
    """All gradients of a model in one vector; NaN where there is none."""
    return torch.cat(
        [
            (p.new_full((p.numel(),), torch.nan) if p.grad is None else p.grad.detach().flatten())
            for p in model.parameters()
        ]
    )


def relative_error(x: Tensor, reference: Tensor) -> float:
    """The Frobenius norm of the difference over that of the reference."""
    return float((x - reference).norm() / reference.norm())
