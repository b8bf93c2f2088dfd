"""The byte-level model with linear layers that round to integers: a ruler for what formats cost.

Weights per output channel, inputs per tensor, symmetric by the largest value, round to nearest, in
the forward pass alone; gradients pass straight through. That is the quantizer of Kumar et al.,
arXiv 2411.04330, on the model that experiments/laws_grid.toml trains under recipes.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unitscale.models import CharLM, CharLMConfig


def build(
    width: int = 32,
    weight_bits: int = 8,
    input_bits: int = 0,
    depth: int = 2,
    heads: int = 2,
    context: int = 64,
) -> nn.Module:
    """The model; 0 bits leave weights or inputs as they are."""
    model = CharLM(CharLMConfig(width=width, depth=depth, heads=heads, context=context))
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            if weight_bits:
                parametrize.register_parametrization(module, "weight", Rounded(weight_bits))
            if input_bits:
                module.register_forward_pre_hook(rounding(input_bits))
    return model


class Rounded(nn.Module):
    """A weight as integers of so many bits, a scale for each row."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return through(weight, to_integers(weight, self.bits, rows=True))


def rounding(bits: int):
    """A hook that rounds the input of a module."""
    return lambda module, args: (through(args[0], to_integers(args[0], bits)), *args[1:])


def to_integers(x: Tensor, bits: int, *, rows: bool = False) -> Tensor:
    """The values of `x` nearest to a grid of `2^bits` equal steps, its largest one on it."""
    with torch.no_grad():
        most = 2 ** (bits - 1) - 1
        amax = x.abs().amax(dim=-1, keepdim=True) if rows else x.abs().amax()
        scale = amax.clamp_min(1e-30) / most
        return (x / scale).round().clamp(-most - 1, most) * scale


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `x`."""
    return x + (rounded - x).detach()
