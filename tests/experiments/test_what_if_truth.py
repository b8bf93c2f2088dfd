import pytest

import what_if_truth


def test_rank_correlation_of_known_ranks():
    # scipy.stats.spearmanr gives the same: 1 - 6 * 2 / (4 * 15) = 0.8, and 0.9486833 with a tie.
    assert what_if_truth.spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert what_if_truth.spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert what_if_truth.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_first_step_is_left_out():
    rows = [
        {"step": s, "what_if": "a", "recipes": {"r": {"errors": {"output": float(s)}}}}
        for s in (0, 1, 3)
    ]
    assert what_if_truth.errors_of(rows, "r") == {"a output": 2.0}
