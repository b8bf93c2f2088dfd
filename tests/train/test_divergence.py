"""Divergence: which loss curves count as failed."""

import math

import pytest

from unitscale.train.divergence import FINAL_WINDOW, WINDOW, final_loss, has_diverged, has_exploded

FALLING = [6.0 - 0.02 * i for i in range(200)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_explodes(value: float) -> None:
    assert has_exploded([value])
    assert has_exploded([*FALLING, value])


def test_falling_loss_is_sound() -> None:
    assert not any(has_exploded(FALLING[: i + 1]) for i in range(200))
    assert not has_diverged(FALLING)


def test_loss_far_above_the_first_explodes_and_one_spike_does_not() -> None:
    assert has_exploded(FALLING + [7.1] * WINDOW)
    assert not has_exploded([*FALLING, 15.0])


def test_first_steps_are_given_time_to_settle() -> None:
    assert not has_exploded([5.0, *[9.0] * (WINDOW - 1)])


@pytest.mark.parametrize(("rise", "diverged"), [(0.4, False), (0.7, True)])
def test_run_that_ends_far_above_its_best_has_diverged(rise: float, diverged: bool) -> None:
    best = sum(FALLING[-WINDOW:]) / WINDOW
    assert has_diverged(FALLING + [best + rise] * WINDOW) == diverged


def test_run_that_recovers_has_not_diverged() -> None:
    assert not has_diverged(FALLING + [5.0] * 30 + [2.0] * WINDOW)


def test_final_loss_is_the_mean_of_the_last_twentieth() -> None:
    assert final_loss(list(range(100))) == 97.0
    assert FINAL_WINDOW == 20
    assert final_loss([3.0, 2.0]) == 2.0
