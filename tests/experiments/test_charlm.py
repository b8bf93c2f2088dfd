"""The experiments on character models: what they train, and what they say of it."""

import argparse
import math
from pathlib import Path

import pytest

import charlm_arms as arms
import charlm_gap as gap
import charlm_page as page
import fp16_true_headroom as headroom
from charlm_verdict import MARGIN, Difference, verdict

BASE = arms.Cell()


def losses_of(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("a", "worse", "no_worse"),
    [
        ((2.5, 2.51, 2.49), "holds", "does not hold"),
        ((2.0, 2.001, 1.999), "does not hold", "holds"),
        ((1.5, 1.51, 1.49), "does not hold", "holds"),
        ((2.03, 2.2, 1.9), "cannot tell", "cannot tell"),
        ((2.5,), "cannot tell", "cannot tell"),
        ((), "cannot tell", "cannot tell"),
        ((math.inf,) * 3, "holds", "does not hold"),
        ((math.inf, 2.0, 2.0), "cannot tell", "cannot tell"),
    ],
)
def test_a_claim_is_judged_by_the_whole_interval(
    a: tuple[float, ...], worse: str, no_worse: str
) -> None:
    found = Difference.of(losses_of(*a), losses_of(2.0, 2.0, 2.0))
    assert (verdict(found, "worse"), verdict(found, "no worse")) == (worse, no_worse)
    assert str(found)


def test_the_interval_is_students_of_the_paired_differences() -> None:
    """Of 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, t(2) = 4.3027."""
    found = Difference.of(losses_of(1.1, 2.2, 3.3, 9.0), losses_of(1.0, 2.0, 3.0))
    assert found.mean == pytest.approx(0.2)
    assert found.half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert found.n == 3
    assert verdict(found, "worse", margin=0.2 - found.half - 1e-9) == "holds"
    assert verdict(found, "worse", margin=0.2 - found.half + 1e-9) == "cannot tell"


def test_a_baseline_that_diverged_tells_nothing() -> None:
    found = Difference.of(losses_of(2.0, 2.0), losses_of(math.inf, math.inf))
    assert verdict(found, "worse") == verdict(found, "no worse") == "cannot tell"


def parabola(best: int) -> tuple[list[int], object]:
    """What `fill` trains with: a loss by rate, and the rates that were asked for."""
    asked: list[int] = []

    def train(cell: arms.Cell, recipe: str, rate: int, seed: int) -> float:
        asked.append(rate)
        return 2.0 + (rate - best) ** 2 + seed

    return asked, train


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (-8, {-9, -8, -7}),
        (-6, {-9, -8, -7, -6, -5}),
        (-30, {-12, -11, -10, -9, -8, -7}),  # as far as a sweep goes
    ],
)
def test_a_sweep_goes_on_while_the_best_is_at_its_edge(best: int, rates: set[int]) -> None:
    asked, train = parabola(best)
    losses: arms.Losses = {}
    arms.fill(losses, BASE, "fp32", 0, train)
    assert set(asked) == rates
    assert len(asked) == len(rates)
    found = arms.best_rate(losses, BASE, "fp32")
    assert found == max(best, -12)
    arms.fill(losses, BASE, "fp32", 1, train)
    assert asked[-1] == found
    assert len(asked) == len(rates) + 1
    arms.fill(losses, BASE, "fp32", 1, train)  # what is done is not done again
    assert len(asked) == len(rates) + 1
    assert arms.at_best(losses, BASE, "fp32").keys() == {0, 1}


def test_losses_are_read_as_they_were_written(tmp_path: Path) -> None:
    losses = {(BASE, "fp32", -8, 0): 2.5, (arms.Cell(layer="rnn"), "fp32", -7, 1): math.inf}
    arms.write(tmp_path / "new" / "losses.jsonl", losses)
    assert arms.read(tmp_path / "new" / "losses.jsonl") == losses
    assert arms.read(tmp_path / "none.jsonl") == {}


def test_the_table_of_arms_has_every_claim_for_every_model() -> None:
    losses = {
        (BASE, recipe, rate, seed): 2.0 + (recipe == arms.FTZ) + 0.001 * seed + 0.1 * abs(rate + 8)
        for recipe in ("fp32", arms.FTZ)
        for rate in (-9, -8, -7)
        for seed in range(3)
    }
    args = argparse.Namespace(
        data=None, steps=1, width=32, depth=1, batch_size=4, sequence_length=64
    )
    text = arms.report(args, losses)
    assert "2.001 ± 0.002 [-8] n=3" in text
    assert (
        "(subnormals flushed) | attention, pre, default, adamw | +1.000 ± 0.000 (n = 3) | holds"
        in text
    )
    assert text.count("cannot tell") == len(arms.CLAIMS) - 1
    assert f"Not run yet: {arms.CELLS[1]}; " in text


def test_points_of_the_headroom_are_each_once_and_small_batches_are_not_cut() -> None:
    args = argparse.Namespace(
        scales=list(headroom.SCALES),
        steps=250,
        token_steps=100,
        direct_steps=16,
        width=32,
        depth=1,
        batch_size=4,
        sequence_length=64,
        data=None,
    )
    points = [p for part in headroom.PARTS.values() for p in part(args, 0)]
    assert len(points) == len(set(points))
    scales = {p.scale for p in points if p.recipe == "fp16-true"}
    assert {*headroom.SCALES, None} <= scales
    assert max(p.batch_size * p.sequence_length for p in points) == 2**19
    found = {p: 2.0 + (p.recipe == "fp16-true-ftz") for p in points}
    text = headroom.report(args, found)
    assert "| 2^-10 | +0.000 (n = 1) | +1.000 (n = 1) |" in text
    assert "| 2^13 | +0.000 (n = 1) | +1.000 (n = 1) |" in text
    assert "| 2^17 | `fp16-true-ftz` | 3.000 | +1.000 (n = 1) | cannot tell |" in text


def test_the_figure_is_drawn_with_runs_that_diverged_or_are_missing(tmp_path: Path) -> None:
    args = argparse.Namespace(
        scales=list(headroom.SCALES),
        steps=250,
        token_steps=100,
        direct_steps=16,
        width=32,
        depth=1,
        batch_size=4,
        sequence_length=64,
        data=None,
    )
    points = headroom.by_scale(args, 0)
    found = {p: math.inf if p.scale == 16 else 2.0 for p in points}
    headroom.draw(args, found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_the_gap_takes_the_better_rate_that_most_seeds_have() -> None:
    size = gap.Size.of("64x2x8x64")
    losses = {
        (size, recipe, 10, rate, seed): 2.0 - 0.1 * (rate == low) + (recipe != "fp32")
        for recipe, low in (("fp32", -8), ("fp32-units", 0))
        for rate in (low, low - 1)
        for seed in range(3)
    }
    losses[size, "fp32", 10, -5, 0] = 0.5  # the best of all, of one seed
    assert gap.at_best(losses, size, "fp32", 10) == (-8, dict.fromkeys(range(3), 1.9))
    assert gap.at_best(losses, size, "fp32", 99) is None
    args = argparse.Namespace(data=None, sizes=["64x2x8x64"], steps=[10, 99])
    text = gap.report(args, losses)
    assert (
        "| 10 | 1.900 ± 0.000 [-8] | 2.900 ± 0.000 [0] | +1.000 ± 0.000 (n = 3) | does not hold |"
        in text
    )
    assert "| 99 |" not in text


def test_margin_is_above_what_three_seeds_resolve() -> None:
    """With seeds 0.01 apart the interval of three is 0.025 to either side."""
    assert 4.3027 * 0.01 / math.sqrt(3) < MARGIN


def test_tables_go_to_their_places_on_the_page_and_nowhere_else() -> None:
    text = page.PAGE.read_text()
    for name in page.FILES:
        once = page.placed(text, name, "a table\n")
        assert f"<!-- {name} -->\n\na table\n\n{page.END}" in once
        assert page.placed(once, name, "a table\n") == once
        others = [other for other in page.FILES if other != name]
        assert all(f"<!-- {other} -->" in once for other in others)
    with pytest.raises(ValueError, match="no lines '<!-- figures -->'"):
        page.placed(text, "figures", "")
