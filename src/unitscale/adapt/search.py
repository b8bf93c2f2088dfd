"""The search for prompts: CMA-ES, from the package `cma`."""

import warnings
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL", "Search", "default_population"]

FULL = 5000
"""From this many dimensions on the covariance is kept diagonal: decomposing it costs their cube."""

Vector = NDArray[np.float64]


def default_population(dimensions: int) -> int:
    """Candidates a generation: 4 + 3 ln n, as in the authors' code (27 for 2304)."""
    return 4 + int(3 * np.log(dimensions))


class Search:
    """CMA-ES over a vector that starts at zero, with randomness of its own.

    Args:
        dimensions: length of the vector.
        population: candidates a generation.
        sigma: step size at the start.
        seed: of its random numbers; numpy's global state is not touched.
    Raises:
        ModuleNotFoundError: `cma` is not installed.
    """

    def __init__(
        self,
        dimensions: int,
        *,
        population: int,
        sigma: float,
        seed: int,
        mean: Vector | None = None,
    ) -> None:
        self.random = np.random.default_rng(seed)
        options = {
            "popsize": population,
            "verbose": -9,
            "seed": np.nan,  # or it would seed numpy for the whole process
            "randn": self.normal,
            "CMA_diagonal": dimensions >= FULL,
        }
        start = np.zeros(dimensions) if mean is None else mean
        self.evolution = cma_module().CMAEvolutionStrategy(start, sigma, options)

    def normal(self, *shape: int) -> Any:
        """Random numbers, in the form of `numpy.random.randn`."""
        return self.random.standard_normal(shape or None)

    def ask(self) -> list[Vector]:
        """The candidates of the next generation."""
        return [np.asarray(x, dtype=np.float64) for x in self.evolution.ask()]

    def tell(self, candidates: list[Vector], fitness: list[float]) -> None:
        """Move toward the candidates of low fitness; those that were not asked for count too."""
        self.evolution.tell(candidates, fitness)

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands: mean, step size and random numbers, not the covariance.

        What it has of those depends on the version of `cma`, which keeps them to itself. In the few
        dozen generations of a stream the covariance learns little: its rate is about 2 / n^2.
        """
        return {
            "mean": self.evolution.mean.tolist(),
            "sigma": float(self.evolution.sigma),
            "random": self.random.bit_generator.state,
        }


def cma_module() -> Any:
    """The package `cma`.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that of plots, if matplotlib is not there
            return import_module("cma")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cma":
            raise
        raise ModuleNotFoundError(
            "FOA needs cma, which is not installed; run: pip install 'unitscale[lifecycle]'",
            name="cma",
        ) from None
