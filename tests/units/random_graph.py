"""Small models with random graphs, for tests of what must hold whatever the graph is.

A model is a list of ops over a pool of tensors of one shape. Every op takes earlier tensors of the
pool (the latest are the likeliest), so tensors with none, one, two and many consumers all occur.
"""

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LENGTH, WIDTH = 2, 3, 4
SHAPE = (BATCH, LENGTH, WIDTH)


def mutated_sum(model: "RandomModel", x: Tensor, y: Tensor) -> Tensor:
    """Written to in place after another op has read it."""
    total = x + y
    read = total * 3.0
    total.add_(y, alpha=0.5)
    return total + read


def mutated_view(model: "RandomModel", x: Tensor, y: Tensor) -> Tensor:
    """A view that is written to, which changes its base."""
    base = x.clone()
    first = base[:, :1]
    first.mul_(y[:, :1])
    return base


def assigned_index(model: "RandomModel", x: Tensor, y: Tensor) -> Tensor:
    base = x * 2.0
    base[:, 1] = y[:, 2]
    return base


def filled(model: "RandomModel", x: Tensor) -> Tensor:
    return (x * 0.5).masked_fill_(model.mask, 0.25)


def attended(model: "RandomModel", x: Tensor, y: Tensor) -> Tensor:
    q, k, v = model.qkv(x).chunk(3, dim=-1)
    heads = (t.view(BATCH, LENGTH, 2, 2).transpose(1, 2) for t in (q, k + y, v))
    output = F.scaled_dot_product_attention(*heads, is_causal=True)
    return output.transpose(1, 2).reshape(SHAPE)


def attended_by_hand(model: "RandomModel", x: Tensor, y: Tensor) -> Tensor:
    """Softmax of products with a `finfo.min` mask, the last row of it fully masked."""
    scores = torch.matmul(x, y.transpose(-1, -2)) / math.sqrt(WIDTH) + model.fill
    return torch.softmax(scores, dim=-1) @ y


def normalized(model: "RandomModel", x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), model.gain, model.shift)


def rms_normalized(model: "RandomModel", x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * model.gain


def halves(model: "RandomModel", x: Tensor) -> Tensor:
    left, right = torch.chunk(x, 2, dim=-1)
    return torch.cat([right * left, left], dim=-1)


def thirds(model: "RandomModel", x: Tensor) -> Tensor:
    """One element of the split is not used."""
    first, _, last = x.split(1, dim=1)
    return torch.stack([first, last, first], dim=1).squeeze(2)


def integers(model: "RandomModel", x: Tensor) -> Tensor:
    return x + model.index * model.mask + (x > 0)


def projected(model: "RandomModel", x: Tensor) -> Tensor:
    flat = x.reshape(-1, WIDTH)
    return torch.addmm(model.shift, flat, model.weights[0], alpha=0.5).view(*SHAPE)


def convolved(model: "RandomModel", x: Tensor) -> Tensor:
    return F.conv1d(x.mT, model.kernel, model.shift, padding=1).mT


OPS: dict[str, Callable[..., Tensor]] = {
    "linear": lambda m, x: F.linear(x, m.weights[0], m.shift),
    "other_linear": lambda m, x: F.linear(x, m.weights[1]),
    "projected": projected,
    "convolved": convolved,
    # Not of one tensor with itself: autograd sums within einsum in an order of its own.
    "einsum": lambda m, x, y: torch.einsum("btd,bsd,de->bte", x, -y, m.weights[1]),
    "bmm": lambda m, x, y: torch.bmm(torch.bmm(x, y.mT), y),
    "add": lambda m, x, y: x + y,
    "doubled": lambda m, x: x + x,
    "weighted_add": lambda m, x, y: torch.add(x, y, alpha=-0.75),
    "sub": lambda m, x, y: x - y,
    "shifted": lambda m, x: x - 0.5,
    "mul": lambda m, x, y: x * y,
    "gated": lambda m, x, y: F.silu(x) * y,
    "gain": lambda m, x: x * m.gain * m.temperature,
    "square": lambda m, x: x * x,
    "div": lambda m, x, y: x / (1.0 + y.square()),
    "maximum": lambda m, x, y: torch.maximum(x, y),
    "where": lambda m, x, y: torch.where(m.mask, x, y),
    "where_number": lambda m, x: torch.where(m.mask, x, 0.125),
    "gelu": lambda m, x: F.gelu(x),
    "relu": lambda m, x: F.relu(x),
    "leaky": lambda m, x: F.leaky_relu(x, 0.25),
    "relu_in_place": lambda m, x: (x * 2.0).relu_(),
    "dropout": lambda m, x: F.dropout(x, 0.25),
    "softmax": lambda m, x: torch.softmax(x, dim=-1),
    "centered": lambda m, x: x - x.mean(dim=1, keepdim=True),
    "pooled": lambda m, x: x.sum(dim=1, keepdim=True).expand(-1, LENGTH, -1),
    "cumsum": lambda m, x: x.cumsum(dim=1),
    "norm": lambda m, x: x / (1.0 + x.norm()),
    "rotated": lambda m, x: torch.cat((-x[..., 2:], x[..., :2]), dim=-1),
    "transposed": lambda m, x: x.transpose(0, 2).contiguous().permute(2, 1, 0),
    "detached": lambda m, x, y: x + y.detach(),
    "gathered": lambda m, x: x.gather(1, m.index),
    "embedded": lambda m, x: x + F.embedding(m.index[:, :, 0], m.weights[0]),
    "mutated_sum": mutated_sum,
    "mutated_view": mutated_view,
    "assigned_index": assigned_index,
    "filled": filled,
    "attended": attended,
    "attended_by_hand": attended_by_hand,
    "normalized": normalized,
    "rms_normalized": rms_normalized,
    "halves": halves,
    "thirds": thirds,
    "integers": integers,
}


class RandomModel(nn.Module):
    """`size` random ops; weights are tied wherever an op occurs more than once."""

    mask: Tensor
    index: Tensor
    fill: Tensor

    def __init__(self, seed: int, size: int = 12) -> None:
        super().__init__()
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.weights = nn.ParameterList(parameter(WIDTH, WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.kernel = parameter(WIDTH, WIDTH, 3)
        self.gain, self.shift, self.temperature = parameter(WIDTH), parameter(WIDTH), parameter()
        self.register_buffer("mask", torch.rand(SHAPE, generator=generator) > 0.5)
        self.register_buffer("index", torch.randint(LENGTH, SHAPE, generator=generator))
        fill = torch.zeros(LENGTH, LENGTH)
        fill[0, 1:] = fill[-1] = torch.finfo(torch.float32).min
        self.register_buffer("fill", fill)
        self.program = [self.instruction(draw, i) for i in range(size)]

    @staticmethod
    def instruction(draw: random.Random, position: int) -> tuple[str, list[int]]:
        """An op and which tensors of the pool it takes."""
        name = draw.choice(list(OPS))
        arity = OPS[name].__code__.co_argcount - 1
        recent = [max(0, position - int(draw.expovariate(0.5))) for _ in range(arity)]
        return name, recent

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss; the last tensor; and the last but one, without gradient."""
        pool = [x]
        for name, taken in self.program:
            # Bounded, so that no product of products leaves float32.
            pool.append(torch.tanh(OPS[name](self, *(pool[i] for i in taken)) * 0.5))
        loss = sum((i + 1) * (value * x).mean() for i, value in enumerate(pool[-3:]))
        return loss, pool[-1], pool[-2].detach()
