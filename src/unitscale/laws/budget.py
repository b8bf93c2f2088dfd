"""The best split of a budget between parameters and tokens, at one precision and over several.

A run costs `C = 6 N D * (P / 16)` floating-point operations of 16 bits: its cost is linear in the
bits of its products. Source: Kumar et al., arXiv 2411.04330, section 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL_WIDTH = 16.0
"""Bits at which a product costs what the budget counts."""

FLAT = 0.005
"""Within this share of the best loss an optimum counts as flat: runs differ as much by chance."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The loss over size and tokens at one precision: `a N^-alpha + b D^-beta + e`."""

    a: float
    b: float
    e: float
    alpha: float
    beta: float

    def loss(self, size: float, tokens: float) -> float:
        """Nats a token."""
        return float(self.a * size**-self.alpha + self.b * tokens**-self.beta + self.e)

    def best_size(self, product: float) -> float:
        """The size that is best where `N * D = product`: both terms then fall equally fast.

        `N^(alpha + beta) = alpha a product^beta / (beta b)`.
        """
        log = np.log(self.alpha * self.a) - np.log(self.beta * self.b)
        return float(np.exp((log + self.beta * np.log(product)) / (self.alpha + self.beta)))

    def flat_sizes(self, product: float, center: float) -> tuple[float, float]:
        """The sizes around the best one with a loss within `FLAT` of its loss."""
        most = self.loss(center, product / center) * (1 + FLAT)
        ends = []
        for direction in (-1.0, 1.0):
            near, far = 0.0, 0.1
            while self.loss(*split(center, far * direction, product)) <= most and far < 50:
                near, far = far, far * 2
            for _ in range(60):
                middle = (near + far) / 2
                is_flat = self.loss(*split(center, middle * direction, product)) <= most
                near, far = (middle, far) if is_flat else (near, middle)
            ends.append(center * float(np.exp(near * direction)))
        return ends[0], ends[1]


def split(center: float, shift: float, product: float) -> tuple[float, float]:
    """A size so many e-folds from a center, and its tokens."""
    size = center * float(np.exp(shift))
    return size, product / size


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One precision, and the best that the budget reaches with it.

    Args:
        precision: name of the recipe, or the bits. width: bits that its products cost.
        factor: share of the parameters that count, N_eff / N.
    """

    precision: str
    width: float
    factor: float
    size: float
    tokens: float
    loss: float


def choose(
    precision: str,
    width: float,
    factor: float,
    surface: Surface,
    *,
    flops: float,
    size: float | None,
    tokens: float | None,
) -> Choice:
    """What a precision reaches: with a size or a number of tokens fixed, or with neither."""
    product = products_of(flops, width)
    if size is None:
        size = surface.best_size(product) if tokens is None else product / tokens
    tokens = product / size
    return Choice(
        precision=precision,
        width=width,
        factor=factor,
        size=size,
        tokens=tokens,
        loss=surface.loss(size, tokens),
    )


def products_of(flops: float, width: float) -> float:
    """The N * D that a budget buys at a width."""
    return flops * FULL_WIDTH / (6.0 * width)


def best_choice(choices: Sequence[Choice]) -> Choice:
    """The one with the lowest loss, the cheapest of several."""
    return min(choices, key=lambda choice: (choice.loss, choice.width))


def flat_choices(choices: Sequence[Choice], best: Choice) -> tuple[Choice, ...]:
    """Those within `FLAT` of the best one, itself included."""
    return tuple(choice for choice in choices if choice.loss <= best.loss * (1 + FLAT))
