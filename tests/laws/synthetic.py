"""Runs whose law is known."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from unitscale.laws import Row, published

SIZES = (30e6, 60e6, 110e6, 220e6)
TOKENS = (1.5e9, 3e9, 6e9, 13e9, 26e9)
BITS = {"w": (3, 4, 5, 6, 8, 12, 16), "a": (4, 5, 6, 8, 12, 16), "kv": (4, 5, 6, 8, 12, 16)}


@cache
def published_rows(count: int = 460, *, noise: float = 0.003, seed: int = 0) -> tuple[Row, ...]:
    """Runs of the published law at random points of its grid, each loss off by so much."""
    rng, law = np.random.default_rng(seed), published()
    rows = []
    for _ in range(count):
        size, tokens = float(rng.choice(SIZES)), float(rng.choice(TOKENS))
        bits = {name: float(rng.choice(values)) for name, values in BITS.items()}
        loss = law.predict(size=size, tokens=tokens, bits=bits).loss
        loss *= float(np.exp(rng.normal() * noise))
        rows.append(Row(size=size, tokens=tokens, loss=loss, bits=bits))
    return tuple(rows)


FACTORS = {"fp32": 1.0, "fp8-e4m3": 0.8, "mxfp4": 0.4}


def recipe_loss(size: float, tokens: float, factor: float) -> float:
    """A law of small models: both terms and the floor are about equal in the middle."""
    return 40 * (factor * size) ** -0.4 + 150 * tokens**-0.4 + 1.2


def recipe_rows(
    *,
    noise: float = 0.002,
    seed: int = 0,
    factors: Mapping[str, float] = FACTORS,
    sizes: tuple[float, ...] = (4e3, 16e3, 64e3, 256e3),
    tokens: tuple[float, ...] = (3e4, 1e5, 3e5, 1e6),
) -> list[Row]:
    """A full grid of recipes."""
    rng = np.random.default_rng(seed)
    return [
        Row(
            size=size,
            tokens=count,
            loss=recipe_loss(size, count, factor) * float(np.exp(rng.normal() * noise)),
            recipe=recipe,
        )
        for size in sizes
        for count in tokens
        for recipe, factor in factors.items()
    ]
