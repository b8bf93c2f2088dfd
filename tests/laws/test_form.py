import numpy as np
import pytest

from unitscale.laws import Row, published
from unitscale.laws.form import LEAST_FACTOR, Design, Form, curve, log_factor, log_loss

ROWS = [
    Row(size=3e7, tokens=2e9, loss=1.0, bits={"w": 4.0, "a": 6.0}),
    Row(size=1e8, tokens=5e9, loss=1.0, bits={"w": 3.0}),
    Row(size=2e8, tokens=1e9, loss=1.0, recipe="mxfp4"),
    Row(size=5e7, tokens=9e9, loss=1.0, recipe="fp32"),
]
FORMS = [
    Form(tied=True, tensors=("w", "a"), offsets=("w",), recipes=("mxfp4",), reference="fp32"),
    Form(tied=False, tensors=("w", "a"), offsets=("w", "a"), recipes=("mxfp4",), reference="fp32"),
    Form(tied=False, recipes=("mxfp4",), reference="fp32"),
]


def middle(form):
    start = dict.fromkeys(form.names, 0.6) | {"A": 4e3, "B": 2e4, "E": 2.5, "alpha": 0.4}
    return form.vector(start)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("function", [log_factor, log_loss])
def test_derivatives_are_those_of_differences(form, function):
    design, vector, step = Design.of(ROWS, form), middle(form), 1e-6
    _, slopes = function(form, vector, design)
    for index in range(len(vector)):
        there, back = vector.copy(), vector.copy()
        there[index] += step
        back[index] -= step
        measured = function(form, there, design)[0] - function(form, back, design)[0]
        # Central differences of step 1e-6 are off by rounding, 1e-16 * 25 / 1e-6.
        np.testing.assert_allclose(slopes[:, index], measured / (2 * step), atol=1e-8)


def test_unrounded_tensor_and_reference_count_whole():
    form = FORMS[0]
    found, slopes = log_factor(form, middle(form), Design.of(ROWS, form))
    assert found[3] == 0
    assert not slopes[3].any()
    only_w = -np.expm1(0.6 - 3.0 / 0.6)
    assert found[1] == pytest.approx(np.log(only_w))


def test_curve_is_held_at_its_least_without_a_slope():
    value, by_gamma, by_offset = curve(np.array([1.0, 8.0, np.inf]), 0.0, 2.0)
    assert value[0] == pytest.approx(np.log(LEAST_FACTOR))
    assert by_gamma[0] == by_offset[0] == 0
    assert by_offset[1] < 0
    assert value[2] == by_gamma[2] == by_offset[2] == 0


def test_values_and_vector_are_inverse():
    for form in FORMS:
        vector = middle(form)
        np.testing.assert_allclose(form.vector(form.values(vector)), vector)


# Computed from the published constants: f_w, f_a, f_kv and their product, to three digits.
FACTORS = {
    4: (0.696, 0.331, 0.828, 0.191),
    5: (0.791, 0.575, 0.939, 0.427),
    6: (0.856, 0.730, 0.979, 0.611),
    8: (0.932, 0.891, 0.997, 0.828),
    12: (0.985, 0.982, 1.0, 0.967),
    16: (0.997, 0.997, 1.0, 0.994),
}


@pytest.mark.parametrize("bits", FACTORS)
def test_published_factors_are_those_of_the_paper(bits):
    law = published()
    found = [law.factor(bits={name: bits}) for name in ("w", "a", "kv")] + [law.factor(bits=bits)]
    assert found == pytest.approx(FACTORS[bits], abs=6e-4)
