"""Optima of the published law, and what `plan` answers of recipes."""

import math

import numpy as np
import pytest

from laws.synthetic import recipe_loss, recipe_rows
from unitscale.laws import ExtrapolationWarning, Law, fit, published
from unitscale.laws.form import Form
from unitscale.laws.scope import Scope

FAR = pytest.mark.filterwarnings("ignore::unitscale.laws.ExtrapolationWarning")


@pytest.fixture(scope="module")
def law():
    return fit(recipe_rows(), draws=20)


@FAR
def test_optimum_of_the_published_law_is_seven_bits_at_every_budget():
    """7.0 three times."""
    found = [float(published().plan(flops=flops).precision) for flops in (1e19, 1e21, 1e23)]
    assert all(6.8 <= bits <= 7.2 for bits in found)
    assert max(found) - min(found) <= 0.1


@FAR
@pytest.mark.parametrize("size", [1e8, 1e9])
def test_fixed_size_wants_more_bits_for_more_tokens(size):
    """8.26, 10.96, 13.84 and 16.8 bits; D is what the budget buys at 16 bits."""
    found = [
        float(published().plan(flops=6 * size**2 * ratio, fix={"N": size}).precision)
        for ratio in (20, 200, 2000, 20000)
    ]
    assert found == pytest.approx([8.25, 10.95, 13.85, 16.8], abs=0.1)
    assert all(2.5 <= more <= 3.2 for more in np.diff(found))


def shared(gamma, tensors=("w", "a", "kv")):
    """A law whose tensors have one curve without offset."""
    values = {"A": 4299.0, "B": 18060.0, "E": 2.76, "alpha": 0.4965}
    return Law(
        form=Form(tied=True, tensors=tensors),
        values=values | {f"gamma_{name}": gamma for name in tensors},
        scope=Scope(
            rows=1,
            sizes=(1e7, 1e12),
            tokens=(1e8, 1e13),
            n_sizes=3,
            n_tokens=3,
            bits=dict.fromkeys(tensors, (1.0, 16.0)),
        ),
    )


@FAR
@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_optimum_of_one_curve_solves_its_equation(gamma):
    """`(3 / g) P exp(-P / g) = 1 - exp(-P / g)`; at g = 2 both say 3.81."""
    low, high = gamma * 0.5, gamma * 10
    for _ in range(60):
        p = (low + high) / 2
        is_below = 3 * p / gamma * math.exp(-p / gamma) > 1 - math.exp(-p / gamma)
        low, high = (p, high) if is_below else (low, p)
    assert float(shared(gamma).plan(flops=1e21).precision) == pytest.approx(low, abs=0.05)
    if gamma == 2.0:
        assert low == pytest.approx(3.81, abs=0.01)


def test_fixed_bits_move_the_optimum_as_the_closed_form_says():
    """`N* ~ u^(1 / (alpha + beta)) P^(-beta / (alpha + beta))` with `u = f^-alpha`."""
    law, alpha = shared(2.0), 0.4965
    sizes, factors = [], []
    for bits in ("4", "8"):
        sizes.append(law.plan(flops=1e21, fix={"P": bits}).size)
        factors.append(law.factor(bits=float(bits)))
    told = (factors[0] / factors[1]) ** -(alpha / (2 * alpha)) * (4 / 8) ** -0.5
    assert sizes[0] / sizes[1] == pytest.approx(told, rel=1e-6)
    assert sizes[0] > sizes[1]


def test_plan_is_the_best_of_a_search(law):
    flops = 6 * 6e4 * 4e5
    found = law.plan(flops=flops)
    width = {"fp32": 32, "fp8-e4m3": 8, "mxfp4": 4}
    best = min(
        (recipe_of(law, name, size, flops * 16 / (6 * width[name] * size)), name)
        for name in width
        for size in np.geomspace(1e3, 1e7, 400)
    )
    assert found.precision == best[1]
    assert found.loss == pytest.approx(best[0], rel=1e-4)
    assert found.size * found.tokens * 6 * found.bits / 16 == pytest.approx(flops)


def recipe_of(law, name, size, tokens):
    return law.surface(law.factor(recipe=name)).loss(size, tokens)


def test_plan_has_interval_flat_range_and_every_recipe(law):
    found = law.plan(flops=6 * 6e4 * 4e5)
    assert found.low < found.loss < found.high
    assert found.sizes[0] <= found.size <= found.sizes[1]
    assert found.precision in found.flat
    assert {choice.precision for choice in found.choices} == {"fp32", "fp8-e4m3", "mxfp4"}
    assert 0 < found.sure <= 1
    low, high = found.flat_sizes
    for size in (low, high):
        loss = recipe_of(law, found.precision, size, found.size * found.tokens / size)
        assert loss == pytest.approx(1.005 * found.loss, rel=1e-4)
    true = recipe_loss(
        found.size, found.tokens, {"fp32": 1, "fp8-e4m3": 0.8, "mxfp4": 0.4}[found.precision]
    )
    assert found.low <= true <= found.high
    assert str(found).startswith(f"1.44e+11 FLOP: {found.precision}, N = ")


def test_hardware_restricts_and_prices(law):
    flops = 6 * 6e4 * 4e5
    only = law.plan(flops=flops, hardware=["fp8"])
    assert only.precision == "fp8-e4m3"
    assert only.bits == 8
    dear = law.plan(flops=flops, hardware=["fp8:16"])
    assert dear.loss > only.loss
    assert dear.bits == 16
    both = law.plan(flops=flops, hardware=["fp32", "mxfp4"])
    assert {choice.precision for choice in both.choices} == {"fp32", "mxfp4"}


@FAR
def test_hardware_of_integers():
    found = published().plan(flops=1e21, hardware=["int4", "int8", "16"])
    assert found.precision == "8"
    assert [choice.precision for choice in found.choices] == ["8", "16", "4"]


def test_size_or_tokens_may_be_given(law):
    flops = 6 * 6e4 * 4e5
    by_size = law.plan(flops=flops, fix={"N": 3e4, "P": "fp32"})
    assert by_size.size == 3e4
    assert by_size.tokens == pytest.approx(flops * 16 / (6 * 32 * 3e4))
    assert by_size.sizes is None
    by_tokens = law.plan(flops=flops, fix={"D": "2e5", "P": "fp32"})
    assert by_tokens.tokens == pytest.approx(2e5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"flops": 0}, "flops is 0; expected a finite number above 0"),
        ({"flops": 1e-9}, "flops is 1e-09, which buys less than one parameter or token"),
        ({"fix": {"D": 1e30}}, "buys less than one parameter or token"),
        ({"flops": 50.0}, "buys less than one parameter or token"),
        ({"flops": math.inf}, "flops is inf"),
        ({"fix": {"Q": 1}}, "fix has 'Q'; expected N, D or P"),
        ({"fix": {"N": 1, "D": 1}}, "fix has both N and D"),
        ({"fix": {"N": -1}}, "fix: N is -1; expected a finite number from 1 on"),
        ({"fix": {"N": "many"}}, "fix: N is 'many'"),
        ({"fix": {"P": "fp6"}}, "never saw 'fp6'; it knows fp32, fp8-e4m3, mxfp4"),
        ({"hardware": ["int4"]}, "never saw 'int4'"),
        ({"hardware": ["bf16"]}, "never saw 'bf16'"),
        ({"hardware": ["fp8:many"]}, "'fp8:many': expected NAME:BITS"),
        ({"hardware": []}, r"hardware is \[\]; expected a list"),
        ({"hardware": "fp8"}, "hardware is 'fp8'; expected a list"),
    ],
)
def test_bad_question_is_one_clear_line(law, asked, words):
    with pytest.raises(ValueError, match=words):
        law.plan(**({"flops": 1e11} | asked))


def test_cost_of_a_recipe_of_ones_own_has_to_be_said():
    rows = recipe_rows(factors={"fp32": 1.0, "mine.py:A": 0.5})
    law = fit(rows, draws=0)
    with pytest.raises(ValueError, match=r"what a product of 'mine.py:A' costs is not known"):
        law.plan(flops=1e11)
    assert law.plan(flops=1e11, hardware=["fp32"]).precision == "fp32"


def test_plan_far_beyond_the_rows_warns(law):
    with pytest.warns(ExtrapolationWarning, match="more than 10 times beyond the rows"):
        found = law.plan(flops=1e20)
    assert any("beyond the rows" in note for note in found.notes)


def test_answers_repeat_what_the_fit_could_not_tell():
    """Three precisions, one of which the rows do not tell apart from the reference."""
    law = fit(recipe_rows(factors={"fp32": 1.0, "fp8": 1.0, "mxfp4": 0.4}), draws=20)
    told = [note for note in law.notes if note.startswith("fp8 is not told apart from fp32")]
    assert len(told) == 1
    plan = law.plan(flops=1e11)
    assert set(law.notes) <= set(plan.notes)
    assert told[0] in str(plan)
    assert told[0] in law.predict(size=5e4, tokens=2e5, recipe="fp8").notes
    with pytest.warns(ExtrapolationWarning, match="times beyond the rows"):
        far = law.plan(flops=1e20)
    assert set(law.notes) < set(far.notes)


def test_a_law_that_is_sure_has_nothing_to_repeat(law):
    assert law.notes == ()
    assert law.plan(flops=1e11).notes == ()
