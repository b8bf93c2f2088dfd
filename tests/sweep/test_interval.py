"""Student's intervals, against the tables."""

import math

import pytest

from unitscale.sweep.interval import Interval, t_quantile


@pytest.mark.parametrize(
    ("freedom", "t"),
    # Abramowitz and Stegun, table 26.10, and NIST's handbook, 1.3.6.7.2: two-sided 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (100, 1.984)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=0.0005)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert t_quantile(20_000) == pytest.approx(1.95996, abs=2e-4)
    assert t_quantile(5, level=0.99) == pytest.approx(4.032, abs=0.0005)


def test_interval_of_three_values() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert str(found) == "2.0000 ± 2.4841"


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    assert Interval.of([1.5]) == Interval(mean=1.5, half=None, n=1)
    assert str(Interval.of([1.5])) == "1.5000"
    with pytest.raises(ValueError, match="an interval of 0 values"):
        Interval.of([])
