"""The layers that mix positions (all causal), and the MLP that does not."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import CONV_GROUPS, CONV_KERNEL, CharLMConfig
from .parts import Ops


class Attention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, config: CharLMConfig, ops: Ops) -> None:
        super().__init__()
        self.ops, self.heads = ops, config.heads
        self.num_attended, self.mult = num_attended(config), config.attn_softmax_mult
        self.qkv = ops.linear(config.width, 3 * config.width, bias=config.bias)
        self.out = ops.linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        x = self.ops.causal_attention(rotate(q), rotate(k), v, self.num_attended, self.mult)
        return self.out(x.transpose(1, 2).flatten(2))


def num_attended(config: CharLMConfig) -> float:
    """Over how many values attention counts as an average, for its factor `num_attended**0.5`.

    The values along a sequence are neither independent (an average of n has `n**-0.5` of their
    scale) nor equal (it has their scale): it is the geometric mean of n and 1. Where nothing
    normalizes what attention amplifies before it comes back to attention, it is 1. A constant of
    the model, for a prefix must not be computed otherwise than the whole.
    """
    if config.norm == "none":
        return 1.0
    # The harmonic mean of the number of keys that the queries see.
    seen = config.context / sum(1 / n for n in range(1, config.context + 1))
    return math.sqrt(seen)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: turn pair i of position t by `t * 10000^(-2 i / size)`; keeps unit scale.

    Args:
        x: [..., time, size], size even. Source: RoFormer, in the half-split layout.
    """
    time, size = x.shape[-2:]
    # The angles are computed in float32: bfloat16 cannot count past 256.
    exponent = torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size
    position = torch.arange(time, device=x.device, dtype=torch.float32)
    angle = position[:, None] * 10000.0**-exponent
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Convolution(nn.Module):
    """A grouped convolution over the past, and an activation."""

    def __init__(self, config: CharLMConfig, ops: Ops) -> None:
        super().__init__()
        self.conv = ops.conv1d(
            config.width, config.width, CONV_KERNEL, groups=CONV_GROUPS, bias=config.bias
        )
        self.activation = ops.activation[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        past = F.pad(x.transpose(1, 2), (CONV_KERNEL - 1, 0))
        return self.activation(self.conv(past)).transpose(1, 2)


class RecurrentHighway(nn.Module):
    """The recurrent highway cell: `h = (1 - u) h + u c`, with `u = sigmoid(. - 1)`, `c = tanh(.)`.

    The state is plain (standard deviation about 0.26 at the start); the output is brought to unit
    scale outside the loop, where it cannot raise the loop's gain. Source: arXiv 1607.03474.
    """

    update_bias = -1.0
    output_factor = 3.9  # 1 / 0.258, the state's measured standard deviation

    def __init__(self, config: CharLMConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.input = ops.linear(config.width, 2 * config.width, bias=config.bias)
        self.hidden = ops.linear(config.width, 2 * config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, time, width]."""
        scaled, (batch, time, width) = self.ops.scaled, x.shape
        # Input and state are one operand of 2 * width columns, so each product has this factor.
        factor = (2 * width) ** -0.5
        # The weight is used at every step, with a state that is small by the output's factor.
        weight = scaled(self.hidden.weight, 1.0, self.output_factor * (batch * time) ** -0.5)
        update, candidate = scaled(self.input(x), 2**-0.5, 2**-0.5).chunk(2, -1)
        inputs = torch.cat((update + self.update_bias, candidate), -1)
        h, states = x.new_zeros(batch, width), []
        for step in inputs.unbind(1):
            product = scaled(F.linear(scaled(h, 1.0, factor), weight), factor, 1.0)
            update, candidate = (step + product).chunk(2, -1)
            h = torch.lerp(h, candidate.tanh(), update.sigmoid())
            states.append(h)
        return scaled(torch.stack(states, 1), self.output_factor, self.output_factor)


class MLP(nn.Module):
    """Up, activation, down."""

    def __init__(self, config: CharLMConfig, ops: Ops) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        self.up = ops.mirrored(config.width, hidden, bias=config.bias)
        mult = config.ffn_act_mult
        options = {} if mult == 1 else {"mult": mult}  # which the standard model does not have
        self.activation = ops.activation[config.activation](**options)
        self.down = ops.mirrored(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return self.down(self.activation(self.up(x)))


SEQUENCE_LAYERS = {"attention": Attention, "conv": Convolution, "rnn": RecurrentHighway}
