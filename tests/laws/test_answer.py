"""How answers are worded: intervals that are none, and numbers of tokens that there are not."""

import math

import pytest

from laws.synthetic import recipe_rows
from unitscale.laws import fit
from unitscale.laws.answer import NO_WIDTH, Critical, interval_text, span_text


@pytest.mark.parametrize(
    ("low", "high", "shown", "words"),
    [
        (1.0, 2.0, ".3f", "1.000 to 2.000"),
        (1.0, 1.0, ".3f", NO_WIDTH),
        (1.0, 1.0 + 1e-9, ".3f", NO_WIDTH),
        (1.0, 1.001, ".3f", "1.000 to 1.001"),
        (3e7, math.inf, ".3g", "3e+07 to inf"),
    ],
)
def test_a_point_is_called_one(low, high, shown, words):
    assert span_text(low, high, shown) == words


def test_an_interval_of_a_large_number_has_its_digits():
    assert interval_text(2e6, 1e6, 3e6) == "2e+06 (1e+06 to 3e+06)"
    assert interval_text(2.0, None, None) == "2.0000"
    assert interval_text(2.0, 2.0, 2.0) == f"2.0000 ({NO_WIDTH})"


def test_no_number_of_tokens_is_said_in_words():
    found = str(Critical(tokens=math.inf, low=None, high=None))
    assert found == "no number of tokens: more never hurt"
    assert str(Critical(tokens=2e9, low=1e9, high=3e9)) == "2e+09 tokens (1e+09 to 3e+09)"


def test_rows_without_scatter_give_intervals_that_are_named():
    law = fit(recipe_rows(noise=0.0), draws=2)
    assert any(note.startswith("the interval of alpha has no width") for note in law.notes)
    assert any("of 2 resampled fits; fewer than 20" in note for note in law.notes)
    assert NO_WIDTH in str(law.predict(size=5e4, tokens=2e5, recipe="fp32"))
    assert not any("no width" in note for note in fit(recipe_rows(), draws=20).notes)
