"""What a law was fitted to, and how well it did on a part that it had not seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a law was fitted to.

    Args:
        rows: how many. sizes, tokens: the least and the most. n_sizes, n_tokens: how many of each.
        bits: least and most of each tensor with a curve. recipes: rows of each recipe.
        post_bits: least and most after training, if any.
    """

    rows: int
    sizes: tuple[float, float]
    tokens: tuple[float, float]
    n_sizes: int
    n_tokens: int
    bits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    recipes: Mapping[str, int] = field(default_factory=dict)
    post_bits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Errors of losses of a size that the fit had not seen, as shares of the losses.

    Args:
        mean, worst: over all rows, each predicted by a law of the rows of the other sizes.
        sizes: how many were left out, one at a time.
    """

    mean: float
    worst: float
    sizes: int
