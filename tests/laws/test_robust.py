import numpy as np
import pytest

from unitscale.laws.robust import best_of, huber, minimize

X = np.linspace(0, 1, 20)
FREE = (np.full(2, -100.0), np.full(2, 100.0))


def line(target):
    slopes = np.stack([np.ones_like(X), X], axis=1)
    return lambda vector: (slopes @ vector - target, slopes)


def solve(target, delta, limits=FREE, weights=None):
    weights = np.ones(len(X)) if weights is None else weights
    return minimize(line(target), np.zeros(2), weights=weights, delta=delta, limits=limits)


def test_line_is_found():
    found = solve(1 + 2 * X, 10.0)
    assert found.vector == pytest.approx([1, 2], abs=1e-6)
    assert found.objective == pytest.approx(0, abs=1e-12)


def test_outlier_moves_huber_little_and_squares_much():
    target = 1 + 2 * X
    target[-1] += 50
    assert solve(target, 1e-3).vector == pytest.approx([1, 2], abs=1e-3)
    assert abs(solve(target, 1e3).vector[1] - 2) > 5


def test_weight_zero_is_no_row():
    target = 1 + 2 * X
    target[-1] += 50
    weights = np.ones(len(X))
    weights[-1] = 0
    assert solve(target, 1e3, weights=weights).vector == pytest.approx([1, 2], abs=1e-6)


def test_limits_hold_and_the_rest_goes_on():
    limits = (np.array([-100.0, -100.0]), np.array([100.0, 1.5]))
    found = solve(1 + 2 * X, 10.0, limits)
    assert found.vector[1] == 1.5
    # With the slope at 1.5 the least squares have the intercept 1 + 0.5 * mean(x).
    assert found.vector[0] == pytest.approx(1 + 0.5 * X.mean(), abs=1e-6)


def test_objective_is_the_sum_of_both_branches():
    found = huber(np.array([0.5, -3.0]), np.array([1.0, 2.0]), 1.0)
    assert found == pytest.approx(0.125 + 2 * (3.0 - 0.5))


def test_best_of_several_starts_is_taken():
    def wave(vector):
        return np.array([np.cos(vector[0]) + 1.1, 0.1 * vector[0] - 0.3]), np.array(
            [[-np.sin(vector[0])], [0.1]]
        )

    limits = (np.array([-20.0]), np.array([20.0]))
    args = {"weights": np.ones(2), "delta": 100.0, "limits": limits}
    far = minimize(wave, np.array([-9.0]), **args)
    both = best_of(wave, [np.array([-9.0]), np.array([3.0])], **args)
    assert both.objective < far.objective
    assert both.vector[0] == pytest.approx(np.pi, abs=0.3)
