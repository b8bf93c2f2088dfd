import math
from dataclasses import replace

import pytest

from bert_equivalence import MEASURES, judge

LOSS = MEASURES["mlm"]
POINTS = MEASURES["gloss"]


def test_the_interval_is_that_of_90_percent():
    # Three values: the 95 % quantile of t with 2 degrees of freedom is 2.919986.
    verdict = judge([0.0, 0.01, 0.02], LOSS)
    assert verdict.mean == pytest.approx(0.01)
    assert verdict.half == pytest.approx(2.919986 * 0.01 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.001, 0.002, 0.003], "equivalent"),
        ([0.0, 0.04, 0.08], "cannot tell"),  # no difference is found, and none excluded
        ([0.2, 0.201, 0.202], "worse"),
        ([-0.2, -0.201, -0.202], "better"),
        ([0.049, 0.05, 0.051], "cannot tell"),
        ([0.001], "cannot tell"),
        ([], "cannot tell"),
        ([0.001, math.nan, 0.002], "worse"),
        ([math.inf, 0.0], "worse"),
    ],
)
def test_verdicts(differences, word):
    assert judge(differences, LOSS).word == word


def test_a_higher_accuracy_is_better_and_a_higher_loss_worse():
    assert judge([5.0, 5.1, 5.2], POINTS).word == "better"
    assert judge([-5.0, -5.1, -5.2], POINTS).word == "worse"
    assert judge([5.0, 5.1, 5.2], replace(POINTS, higher_is_better=False)).word == "worse"


def test_a_verdict_has_its_figures_in_a_line():
    assert str(judge([0.001, 0.002, 0.003], LOSS)) == "+0.002 ± 0.002: equivalent"
    assert str(judge([], LOSS)) == "no run"
