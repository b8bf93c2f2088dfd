"""What a law answers, refuses and warns of; and damage by rounding after training."""

import math

import numpy as np
import pytest

from laws.synthetic import recipe_rows
from unitscale.laws import ExtrapolationWarning, Row, fit, published
from unitscale.laws.damage import Damage, damage_rows, fit_damage


@pytest.fixture(scope="module")
def law():
    return fit(recipe_rows(), draws=10)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"recipe": "nvfp4"}, "this law never saw 'nvfp4'; it knows fp32, fp8-e4m3, mxfp4"),
        ({"bits": 4}, "this law never saw bits; it knows fp32, fp8-e4m3, mxfp4"),
        ({}, "neither of recipe and bits given"),
        ({"recipe": "fp32", "bits": 4}, "both of recipe and bits given"),
        ({"recipe": "fp32", "size": 0}, "size is 0; expected"),
        ({"recipe": "fp32", "tokens": math.nan}, "tokens is nan; expected"),
        ({"recipe": "fp32", "post_bits": 4}, "says nothing of rounding after training"),
    ],
)
def test_question_that_cannot_be_answered_is_one_clear_line(law, asked, words):
    with pytest.raises(ValueError, match=words):
        law.predict(**({"size": 1e4, "tokens": 1e5} | asked))


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ({"k": 4}, "no curve over the bits of 'k' alone"),
        (0, "bits of w are 0"),
        (99, "bits of w are 99"),
    ],
)
def test_bits_that_are_none_are_refused(bits, words):
    with pytest.raises(ValueError, match=words):
        published().predict(size=1e8, tokens=1e10, bits=bits)


@pytest.mark.parametrize("field", ["size", "tokens"])
def test_ten_times_beyond_the_rows_warns_and_nine_does_not(law, field):
    most = {"size": 256e3, "tokens": 1e6}[field]
    asked = {"size": 1e4, "tokens": 1e5, "recipe": "fp32"}
    assert law.predict(**asked | {field: 9 * most}).notes == law.notes
    with pytest.warns(ExtrapolationWarning, match=f"{field} .* more than 10 times beyond"):
        found = law.predict(**asked | {field: 11 * most})
    assert len(found.notes) == len(law.notes) + 1
    with pytest.warns(ExtrapolationWarning):
        law.predict(**asked | {field: 100.0})


def test_bits_outside_of_the_rows_and_dead_ones_warn():
    with pytest.warns(ExtrapolationWarning) as caught:
        published().predict(size=1e8, tokens=1e10, bits=2)
    texts = [str(one.message) for one in caught]
    assert any("2 bits of w are outside of the rows, which have 3 to 16" in t for t in texts)
    assert any("of the parameters: expect it not to train" in t for t in texts)


def test_published_law_says_everywhere_that_it_is_a_demo():
    law = published()
    with pytest.warns(ExtrapolationWarning):
        plan = law.plan(flops=1e21)
    answers = [
        law,
        law.predict(size=1e8, tokens=1e10, bits=8),
        law.dcrit(size=3e7, post_bits=3),
        plan,
    ]
    for found in answers:
        assert "demo: published constants" in str(found)
    assert all(found.low is None for found in answers[1:])


def test_own_law_is_no_demo(law):
    assert "demo" not in str(law) + str(law.predict(size=1e4, tokens=1e5, recipe="fp32"))


@pytest.mark.parametrize(("bits", "told"), [(3, 5.3e9), (4, 2.9e10)])
def test_critical_tokens_are_where_the_loss_turns(bits, told):
    """Within 2 % of the least loss on a grid of 2000; 5.32e9 and 2.88e10."""
    law = published()
    found = law.dcrit(size=30e6, post_bits=bits).tokens
    grid = np.geomspace(found / 10, found * 10, 2000)
    assert law.damage is not None
    surface = law.surface(1.0)
    losses = [
        surface.loss(30e6, d)
        + law.damage.loss(log_size=math.log(30e6), log_tokens=math.log(d), post_bits=bits, bits={})
        for d in grid
    ]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.02)
    assert found == pytest.approx(told, rel=0.01)


def test_loss_after_three_bits_has_a_turn():
    """4.24, 4.15, 4.13, 4.19 and 4.31 at 1.5 to 26 billion tokens."""
    found = [
        published().predict(size=30e6, tokens=tokens, bits=16, post_bits=3).loss
        for tokens in (1.5e9, 3e9, 6e9, 13e9, 26e9)
    ]
    assert found == pytest.approx([4.24, 4.15, 4.13, 4.19, 4.31], abs=0.006)


TRUE = Damage(c=0.18, by_tokens=0.5, by_size=0.35, by_bits=0.6, robust={})


def post_rows(noise=0.05, seed=0, true=TRUE, trained=(None,)):
    """Recipes' runs, rounded after training to 3, 4 and 5 bits; or runs of weights in bits."""
    rng = np.random.default_rng(seed)
    found = []
    for row in recipe_rows(
        factors={"fp32": 1.0, "mxfp4": 0.4} if trained == (None,) else {"fp32": 1.0}
    ):
        for bits in (3.0, 4.0, 5.0):
            for own in trained:
                size = row.size * (0.4 if row.recipe == "mxfp4" else 1.0)
                damage = true.loss(
                    log_size=math.log(size),
                    log_tokens=math.log(row.tokens),
                    post_bits=bits,
                    bits={} if own is None else {"w": own},
                )
                found.append(
                    Row(
                        size=row.size,
                        tokens=row.tokens,
                        loss=row.loss,
                        recipe=row.recipe if own is None else None,
                        bits={} if own is None else {"w": own},
                        post_bits=bits,
                        post_loss=row.loss + damage * float(np.exp(rng.normal() * noise)),
                    )
                )
    return found


def test_damage_is_recovered_and_used():
    law = fit(post_rows(), draws=10)
    found = law.damage
    assert found is not None
    assert found.by_tokens == pytest.approx(0.5, abs=0.05)
    assert found.by_size == pytest.approx(0.35, abs=0.05)
    assert found.by_bits == pytest.approx(0.6, rel=0.05)
    asked = {"size": 64e3, "tokens": 3e5, "recipe": "fp32"}
    plain, rounded = law.predict(**asked), law.predict(**asked, post_bits=4)
    assert rounded.loss == pytest.approx(plain.loss + rounded.damage)
    assert rounded.low < rounded.loss < rounded.high
    told = TRUE.loss(log_size=math.log(64e3), log_tokens=math.log(3e5), post_bits=4, bits={})
    assert rounded.damage == pytest.approx(told, rel=0.1)


def test_run_with_several_roundings_counts_once():
    rows = post_rows()
    once = [row for row in rows if row.post_bits == 3]
    law = fit(rows, draws=0)
    assert law.scope.rows == len(once) == len(rows) // 3
    assert law.scope.post_bits == (3, 5)


@pytest.mark.filterwarnings("ignore::unitscale.laws.ExtrapolationWarning")
def test_critical_tokens_of_own_law_have_an_interval():
    law = fit(post_rows(), draws=10)
    found = law.dcrit(size=64e3, post_bits=3)
    true = TRUE.critical_tokens(size=64e3, post_bits=3, b=150.0, beta=0.4)
    assert found.low * 0.8 <= true <= found.high * 1.25
    assert found.low <= found.tokens <= found.high


def test_robustness_of_training_in_low_precision_is_recovered():
    true = Damage(c=0.18, by_tokens=0.5, by_size=0.35, by_bits=0.6, robust={"w": 0.3})
    chosen = damage_rows(post_rows(true=true, trained=(6.0, 8.0, 12.0), noise=0.02), floor=0.0)
    assert chosen is not None
    assert chosen.tensors == ("w",)
    sizes = np.log([row.size for row in chosen.rows])
    found = fit_damage(chosen, sizes, np.ones(len(sizes)))
    assert found.robust["w"] == pytest.approx(0.3, rel=0.2)


def test_damage_is_nothing_where_no_bits_are_lost():
    args = {"log_size": 10.0, "log_tokens": 12.0}
    assert TRUE.loss(**args, post_bits=4, bits={"w": 4.0}) == 0
    assert TRUE.loss(**args, post_bits=4, bits={"w": 5.0}) > 0


def test_more_tokens_never_hurt_where_damage_does_not_grow_with_them():
    flat = Damage(c=0.1, by_tokens=-0.1, by_size=0.3, by_bits=0.6, robust={})
    assert flat.critical_tokens(size=1e6, post_bits=3, b=100.0, beta=0.4) == math.inf


def test_damage_below_the_noise_is_left_out_and_too_little_of_it_refused():
    rows = post_rows()
    law = fit(rows, draws=0, noise=1e-3)
    assert any("left out: damage below 0.001 nats" in note for note in law.notes)
    with pytest.raises(ValueError, match=r"0 rows have a loss_ptq more than 50 above"):
        fit(rows, draws=0, noise=50.0)
    one = [row for row in rows if row.post_bits == 3]
    with pytest.raises(ValueError, match="with 1 values of P_post; expected at least 2"):
        fit(one, draws=0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"size": -1.0, "post_bits": 3}, "size is -1.0"),
        ({"size": 1e5, "post_bits": 0}, "post_bits is 0"),
    ],
)
def test_critical_tokens_of_nonsense_are_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        published().dcrit(**asked)


def test_critical_tokens_need_rows_of_rounding(law):
    with pytest.raises(ValueError, match="says nothing of rounding after training"):
        law.dcrit(size=1e5, post_bits=3)


def test_law_prints_parameters_factors_and_errors(law):
    text = str(law)
    for words in ("alpha", "90%:", "mxfp4", "by definition", "sizes left out one at a time"):
        assert words in text
