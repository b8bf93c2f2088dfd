import math

import pytest

from unitscale.scaling.maximum import maximum_mean, maximum_std


@pytest.mark.parametrize(
    ("count", "std", "mean"),
    [
        (3, 0.74798, 0.846),
        (4, 0.70122, 1.029),
        (8, 0.61065, 1.424),
        (9, 0.59779, 1.485),
        (16, 0.54315, 1.766),
        (25, 0.50844, 1.965),
        (49, 0.46559, 2.241),
        (64, 0.45109, 2.344),
    ],
)
def test_moments_of_the_maximum_match_order_statistics_tables(count, std, mean):
    assert maximum_std(count) == pytest.approx(std, abs=5e-6)
    assert maximum_mean(count) == pytest.approx(mean, abs=5e-4)


def test_small_counts_have_closed_forms():
    assert maximum_std(1) == pytest.approx(1, abs=1e-14)
    assert maximum_mean(1) == pytest.approx(0, abs=1e-14)
    assert maximum_mean(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-14)
    assert maximum_std(2) == pytest.approx(math.sqrt(1 - 1 / math.pi), abs=1e-14)
    assert maximum_mean(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-14)


def test_maximum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="the maximum of 0 numbers"):
        maximum_std(0)
