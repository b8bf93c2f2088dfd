import math
from dataclasses import replace

import pytest

import width_transfer as wt

POINT = wt.Point(
    parametrization="standard",
    width=64,
    depth=2,
    lr_log2=-8,
    seed=0,
    steps=10,
    batch_size=8,
    data=None,
)


def losses_around(best_lr_log2, width, parametrization="standard"):
    """A parabola per seed, the second one shifted up; the highest rate diverges."""
    return {
        replace(POINT, parametrization=parametrization, width=width, lr_log2=lr, seed=seed): (
            math.inf if lr == -4 else 2.0 + (lr - best_lr_log2) ** 2 + seed
        )
        for lr in range(-11, -3)
        for seed in (0, 1)
    }


def test_parabola_minimum_is_exact_on_a_parabola_and_stays_on_the_grid_elsewhere():
    parabola = {lr: (lr + 7.3) ** 2 for lr in range(-10, -4)}
    assert wt.parabola_minimum(parabola) == pytest.approx(-7.3, rel=1e-12)
    assert wt.parabola_minimum({-3: 1.0, -2: 2.0, -1: 3.0}) == -3  # at the edge
    assert wt.parabola_minimum({-3: 2.0, -2: 1.0, -1: math.inf}) == -2  # a diverged neighbor


def test_optima_say_how_far_the_best_rate_moves_and_what_transfer_costs():
    found = wt.curves("width", {**losses_around(-7.25, 64), **losses_around(-9.25, 512)})
    narrow, wide = wt.optima(found)
    assert (narrow.size, wide.size) == (64, 512)
    assert narrow.lr_log2_by_seed == pytest.approx([-7.25, -7.25])
    assert wide.lr_log2 == pytest.approx(-9.25)
    assert wide.losses == pytest.approx([2 + 0.25**2, 3 + 0.25**2])
    assert wide.transferred_loss == pytest.approx(2.5 + 2.25**2)
    assert not wide.is_at_edge
    assert "standard: the best rate moves by a factor of 4.00." in "\n".join(
        wt.table("width", [narrow, wide, replace(narrow, parametrization="u-μP")])
    )


def test_figure_is_drawn_with_diverged_runs(tmp_path):
    losses = losses_around(-7, 64) | losses_around(-7, 64, parametrization="u-μP")
    found = {name: wt.curves(name, losses) for name in ("width", "depth")}
    wt.plot(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
