"""FP16 for every tensor: what the names stand for, and what does not go with it."""

from dataclasses import replace

import pytest

from unitscale.formats import BF16, E4M3FN, FP16
from unitscale.recipes import RECIPES, TRUE_FP16, Throughout, parse, uniform

FORMS = {
    "fp16-true": Throughout(format=FP16),
    "fp16-true-stochastic": Throughout(format=FP16, rounding="stochastic"),
    "fp16-true-ftz": Throughout(format=FP16, subnormals="flushed"),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_three_forms_are_there_for_both_parametrizations(name: str) -> None:
    standard, units = TRUE_FP16[name], TRUE_FP16[f"{name}-units"]
    assert standard.throughout == units.throughout == FORMS[name]
    assert (standard.unit_scaled, units.unit_scaled) == (False, True)
    assert (standard.loss_scale, units.loss_scale) == (None, None)
    assert str(FORMS[name]) in str(units)


def test_the_family_is_beside_the_catalogue_and_parsed_as_it() -> None:
    assert set(TRUE_FP16) == {*FORMS, *(f"{name}-units" for name in FORMS)}
    assert all(parse(name) is recipe for name, recipe in TRUE_FP16.items())
    assert not any(recipe.throughout for recipe in RECIPES.values())
    with pytest.raises(ValueError, match="Did you mean 'fp16-true'"):
        parse("fp16-tru")


@pytest.mark.parametrize("name", ["fp16-true", "fp16-true-ftz-units", "fp8-none", "fp16-none"])
@pytest.mark.parametrize("log2", [0, 11, 16, -10])
def test_a_number_in_the_name_is_the_exponent_of_the_loss_scale(name: str, log2: int) -> None:
    recipe = parse(f"{name}({log2})")
    assert recipe.loss_scale == 2.0**log2
    assert recipe.name == f"{name}({log2})"
    assert replace(recipe, name=name, loss_scale=None) == parse(name)
    assert f"loss scale: {2.0**log2}" in str(recipe)


@pytest.mark.parametrize(
    "name", ["fp16-true()", "fp16-true(1.5)", "fp16-true(111)", "fp16-true-x(3)", "fp8(3)"]
)
def test_other_texts_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        parse(name)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("activations", FP16),
        ("saved", E4M3FN),
        ("optimizer", "coat"),
        ("collectives", "fp8"),
        ("skip", ("*.head",)),
        ("rules", uniform(BF16, BF16)),
        ("loss_scale", "dynamic"),
    ],
)
def test_what_would_round_otherwise_is_refused_by_name(part: str, value: object) -> None:
    said = "rounds" if part == "rules" else part
    with pytest.raises(ValueError, match=f"it has throughout and {said}"):
        replace(TRUE_FP16["fp16-true"], **{part: value})


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match="throughout is 'FP16'"):
        replace(RECIPES["fp32"], throughout="FP16")
    with pytest.raises(TypeError, match="format is 'FP16'"):
        Throughout(format="FP16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="E4M3FN, which has no Inf"):
        Throughout(format=E4M3FN)
    with pytest.raises(ValueError, match="subnormals is 'lost'"):
        Throughout(subnormals="lost")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rounding is 'up'"):
        Throughout(rounding="up")  # type: ignore[arg-type]
