"""The generators that a model's factory may draw from, seeded: the same call, the same model."""

import random

import numpy as np
import torch

__all__ = ["MOST_SEED", "seed_all"]

MOST_SEED = 2**32 - 1
"""The largest that numpy takes."""


def seed_all(seed: int) -> None:
    """Seed the generators of torch, numpy and Python, which are one each for the whole process.

    Args:
        seed: from 0 to `MOST_SEED`.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a factory that draws without a generator draws from this
    random.seed(seed)
