"""Training in each of the states: the good ones are as float32, and the wrong ones show."""

from functools import cache

import pytest

import optimizer_states as experiment
from optimizer_states import ARMS, WRONG, Point
from unitscale.optim.states import STATES

GOOD = [name for name in STATES if name != "fp32"]
QUICK_STEPS, STEPS = 80, 400

# Over 80 steps an arm that is right is within 0.003 of float32, and one that is wrong 0.008 above.
SHORT_APART = {"not: BF16 to nearest": 0.01, "not: v E4M3 of the tensor": 0.006}
LONG_APART = {
    "not: BF16 to nearest": 0.01,
    "not: v E4M3 of the tensor": 0.03,
    "not: master E4M3": 0.5,
    "not: even steps": 0.01,
}


@cache
def loss(states: str, seed: int, steps: int) -> float:
    return experiment.run(Point(states=states, seed=seed, steps=steps))["valid_loss"]


def apart(states: str, seed: int, steps: int) -> float:
    return loss(states, seed, steps) - loss("fp32", seed, steps)


@pytest.mark.parametrize("states", ["fp8-lm"])
def test_a_short_run_ends_where_float32_does(states):
    """The one whose ablations are below; the others are in the long run."""
    assert abs(apart(states, 0, QUICK_STEPS)) <= 0.005


@pytest.mark.parametrize("states", SHORT_APART)
def test_a_short_run_tells_what_is_wrong(states):
    assert apart(states, 0, QUICK_STEPS) > SHORT_APART[states]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("states", GOOD)
def test_a_run_ends_where_float32_does(states, seed):
    assert abs(apart(states, seed, STEPS)) <= 0.006


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("states", LONG_APART)
def test_a_run_tells_what_is_wrong(states, seed):
    assert apart(states, seed, STEPS) > LONG_APART[states]


def test_wrong_states_are_names_inside_of_the_experiment_only():
    assert set(ARMS) == {*STATES, *WRONG}
    with experiment.wrong_states():
        assert set(WRONG) < set(STATES)
    assert not set(WRONG) & set(STATES)


def test_a_report_has_a_row_for_each_arm():
    results = {
        Point(states=arm, seed=seed, steps=5): {
            "valid_loss": 2.0 + 0.5 * (arm == "coat") + seed,
            "bytes": 6.25,
            "ms": 1.0 + seed,
        }
        for arm in ("fp32", "coat")
        for seed in range(2)
    }
    rows = experiment.report(results).splitlines()
    assert rows[0].startswith("5 steps, 2 seeds. ")
    assert rows[4] == "| fp32 | 2.5000 ± 0.7071 | +0.0000, +0.0000 | 6.25 | 1.0 |"
    assert rows[5] == "| coat | 3.0000 ± 0.7071 | +0.5000, +0.5000 | 6.25 | 1.0 |"
