"""Least Huber loss of a function with known derivatives: damped Gauss-Newton, within limits.

The losses of runs have outliers (a run that nearly diverged), and the square of one of them would
move every parameter; beyond `delta` the Huber loss grows only linearly. Written in numpy: a fit of
some hundred rows and ten parameters takes a tenth of a second, and needs no other package.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from unitscale.laws.form import Array

Function = Callable[[Array], tuple[Array, Array]]
"""From parameters to residuals and their derivatives, a row for each residual."""

MOST_STEPS = 400
NEARLY = 1e-9
"""A share of the objective: steps that gain less, `PATIENCE` times in a row, are the end."""

PATIENCE = 6
FIRST_DAMPING, MOST_DAMPING, LEAST_DAMPING = 1e-2, 1e12, 1e-9


@dataclass(frozen=True)
class Minimum:
    """Where a search ended, and the objective there."""

    vector: Array
    objective: float


def huber(residuals: Array, weights: Array, delta: float) -> float:
    """The sum of `w * r^2 / 2` up to `delta`, of `w * delta * (|r| - delta / 2)` beyond it."""
    size = np.abs(residuals)
    inside = size <= delta
    loss = np.where(inside, residuals**2 / 2, delta * (size - delta / 2))
    return float(np.sum(weights * loss))


def minimize(
    function: Function,
    start: Array,
    *,
    weights: Array,
    delta: float,
    limits: tuple[Array, Array],
    most_steps: int = MOST_STEPS,
) -> Minimum:
    """The nearest minimum of the Huber loss, by Levenberg-Marquardt steps.

    Each step solves the least squares in which a residual beyond `delta` counts `delta / |r|`;
    that lowers the Huber loss itself, and a step that does not is not taken.
    """
    low, high = limits
    vector = np.clip(start, low, high)
    residuals, slopes = function(vector)
    best = huber(residuals, weights, delta)
    damping, quiet = FIRST_DAMPING, 0
    for _ in range(most_steps):
        counts = weights * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        squares = slopes.T @ (counts[:, None] * slopes)
        pull = slopes.T @ (counts * residuals)
        # A parameter at its limit that would be pushed beyond it is held there.
        is_held = ((vector <= low) & (pull > 0)) | ((vector >= high) & (pull < 0))
        free = np.flatnonzero(~is_held)
        scale = np.maximum(np.diag(squares)[free], 1e-12 * max(np.diag(squares).max(), 1e-300))
        own = squares[np.ix_(free, free)]
        while damping <= MOST_DAMPING:
            step = np.zeros_like(vector)
            step[free] = -np.linalg.solve(own + np.diag(damping * scale), pull[free])
            candidate = np.clip(vector + step, low, high)
            new_residuals, new_slopes = function(candidate)
            value = huber(new_residuals, weights, delta)
            if value < best:
                break
            damping *= 4
        else:
            break
        quiet = quiet + 1 if best - value <= NEARLY * best else 0
        vector, residuals, slopes, best = candidate, new_residuals, new_slopes, value
        damping = max(damping / 3, LEAST_DAMPING)
        if quiet >= PATIENCE:
            break
    return Minimum(vector, best)


def best_of(
    function: Function,
    starts: Iterable[Array],
    *,
    weights: Array,
    delta: float,
    limits: tuple[Array, Array],
    most_steps: int = MOST_STEPS,
) -> Minimum:
    """The lowest minimum from several starts. About half of them reach it."""
    found = [
        minimize(
            function, start, weights=weights, delta=delta, limits=limits, most_steps=most_steps
        )
        for start in starts
    ]
    return min(found, key=lambda minimum: minimum.objective)
