from pathlib import Path

import pytest

import independent_search
from unitscale.models.config import MULTIPLIERS
from unitscale.sweep.grid import read_grid


def row(lr, loss, seed=0, **multipliers):
    return {"lr": lr, "seed": seed, "loss": loss, "config": {"model": multipliers}}


BASE = [row(0.5, 2.2), row(1.0, 2.0), row(2.0, 2.1), row(1.0, 2.02, seed=1)]


def test_a_rate_that_stays_and_one_that_moves_are_told_apart():
    still = [row(lr, loss, residual_mult=2.0) for lr, loss in ((0.5, 2.1), (1.0, 1.9), (2.0, 2.0))]
    moving = [row(lr, loss, ffn_act_mult=2.0) for lr, loss in ((0.5, 2.0), (1.0, 2.25))]
    text = independent_search.report([*BASE, *still, *moving])
    assert "| all 1 | 1 | 2.0100 |  |  |" in text
    assert "| residual_mult 2 | 1 | 1.9000 | -0.1000 | no |" in text
    assert (
        "| ffn_act_mult 2 | 0.5 | 2.0000 | +0.0000 | 1 to 0.5 (edge); staying costs 0.2500 |"
        in text
    )
    assert "stayed for 1 of 2 choices; seeds differ by up to 0.0200" in text


def test_the_last_grid_has_the_best_value_of_each_at_the_base_rate():
    others = [
        row(1.0, 1.9, residual_mult=0.5),
        row(1.0, 1.8, residual_mult=2.0),
        row(0.5, 1.0, loss_softmax_mult=2.0),  # at another rate
        row(1.0, 2.5, ffn_act_mult=2.0),  # worse than 1
        row(1.0, None, attn_softmax_mult=2.0),  # diverged
    ]
    text = independent_search.report([*BASE, *others])
    assert text.endswith("lr = 1\nmodel.residual_mult = 2")
    assert "| loss_softmax_mult 2 | 0.5 | 1.0000 | -1.0000 | not known: no run at 1 |" in text
    assert "attn_softmax_mult" not in text
    assert independent_search.report(BASE).endswith("nothing to put together.")


def test_a_sweep_without_a_start_or_a_folder_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="no run has all multipliers at 1"):
        independent_search.report([row(1.0, 2.0, residual_mult=2.0)])
    with pytest.raises(SystemExit, match=r"runs\.jsonl does not exist"):
        independent_search.read(tmp_path)


def test_the_grid_beside_it_searches_each_multiplier():
    grid = read_grid(Path(independent_search.__file__).with_suffix(".toml"))
    changed = {
        tuple(name for name in MULTIPLIERS if point.options[name] != 1) for point in grid.points
    }
    assert changed == {(), *((name,) for name in MULTIPLIERS), MULTIPLIERS[1:]}
