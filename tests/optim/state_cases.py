"""What the tests of states share: parameters of every kind of shape, and gradients for them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unitscale import optim

BF16 = torch.bfloat16
FP32 = torch.float32

PAIRS = [
    ("fp32", FP32),
    ("fp32", BF16),
    ("fp32", torch.float16),
    ("fp8-lm", FP32),
    ("fp8-lm", BF16),
    ("fp8-lm", torch.float16),
    ("coat", FP32),
    ("coat", BF16),
    ("coat", torch.float16),
    ("bf16-stochastic", BF16),
    ("master24", BF16),
]
"""All states, with all dtypes of a parameter that they hold."""

CODED = [pair for pair in PAIRS if pair[0] != "fp32"]

Named = list[tuple[str, nn.Parameter]]


def parameters(dtype: torch.dtype = FP32) -> Named:
    """Matrices, filters, tiny and empty ones, and some whose memory is not in order."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    made = {
        "matrix": draw(9, 130),
        "wide": draw(2, 500),
        "filter": draw(4, 16, 3, 3),
        "narrow": draw(40, 2),
        "vector": draw(33),
        "one": draw(1),
        "number": draw(),
        "empty": draw(0, 4),
        "turned": draw(70, 9).t(),
        "sliced": draw(20, 40)[:, ::2],
        "channels_last": draw(4, 16, 3, 3).to(memory_format=torch.channels_last),
    }
    return [(name, nn.Parameter(value)) for name, value in made.items()]


def copies(named: Named) -> Named:
    """New parameters of the same values, layouts and names."""
    return [(name, nn.Parameter(value.detach().clone())) for name, value in named]


def adamw(named: Iterable[Any], states: str, **options: Any) -> Any:
    """AdamW with torch's semantics."""
    return optim.AdamW(named, options.pop("lr", 1e-2), rules=None, states=states, **options)


def fill(named: Named, step: int, scale: float = 1.0) -> None:
    """Gradients that depend on the step and on the position only, uneven in size."""
    for position, (_, parameter) in enumerate(named):
        generator = torch.Generator().manual_seed(1000 * step + position)
        grad = torch.randn(parameter.shape, generator=generator)
        size = torch.randn(parameter.shape, generator=generator).exp()
        parameter.grad = (scale * grad * size).to(parameter.dtype)


def run(optimizer: Any, named: Named, steps: Iterable[int]) -> None:
    """Steps with the gradients of `fill`."""
    for step in steps:
        fill(named, step)
        optimizer.step()


def snapshot(optimizer: Any, named: Named) -> list[Tensor]:
    """Copies of all parameters and of all tensors of the states, in order."""
    found = []
    for _, parameter in named:
        found.append(parameter.detach().clone())
        state = optimizer.state.get(parameter, {})
        found += [state[key].clone() for key in sorted(state)]
    return found


def assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    """Equal in every bit; NaN equals NaN of the same bits."""
    assert len(left) == len(right), f"{len(left)} tensors and {len(right)}"
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"tensor {number}"
        same = torch.equal(
            a.detach().contiguous().view(-1).view(torch.uint8),
            b.detach().contiguous().view(-1).view(torch.uint8),
        )
        assert same, f"tensor {number} of shape {tuple(a.shape)} differs"


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of Frobenius norms, in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
