"""A fit to runs that were made: `experiments/laws_report.py` wrote the tables.

Byte-level models of four sizes, each on four numbers of tokens under five recipes, and integers on
three of the sizes. docs/laws.md has what they say.
"""

import itertools

import pytest

from house.tree import REPOSITORY
from unitscale.laws import fit, read_rows

RUNS = REPOSITORY / "experiments" / "laws_runs.csv"
POST = REPOSITORY / "experiments" / "laws_post.csv"
ORDER = ("fp32", "fp8-e4m3-current", "mxfp6", "mxfp4")

NOISE = 0.01
"""Of a loss: precisions see the same batches, and scatter less than seeds, 0.2 to 1.7 %."""


@pytest.fixture(scope="module")
def rows():
    return read_rows([RUNS]).rows


@pytest.fixture(scope="module")
def recipes(rows):
    return [row for row in rows if row.recipe]


def losses(rows, precision):
    return {(r.size, r.tokens): r.loss for r in rows if precision(r) and not r.seed}


def test_grid_is_whole(recipes):
    names = {row.recipe for row in recipes}
    assert len(names) == 5
    for name in names:
        assert len(losses(recipes, lambda row, name=name: row.recipe == name)) >= 16


def test_loss_rises_as_recipes_lose_bits(recipes):
    for better, worse in itertools.pairwise(ORDER):
        low, high = (
            losses(recipes, lambda row, n=name: row.recipe == n) for name in (better, worse)
        )
        assert len(high) == 16
        assert all(high[cell] > low[cell] * (1 - NOISE) for cell in high)
        assert sum(high.values()) > sum(low[cell] for cell in high)


def test_loss_rises_as_integers_lose_bits(rows):
    """Of weights alone, at 2, 3 and 4 bits; and of weights and inputs, at 4, 5 and 6."""
    for tensors, bits in ((("w",), (4, 3, 2)), (("w", "a"), (6, 5, 4))):
        found = [
            losses(rows, lambda row, b=b, t=tensors: row.bits == dict.fromkeys(t, float(b)))
            for b in bits
        ]
        for low, high in itertools.pairwise(found):
            assert len(low) == len(high) == 9
            assert all(high[cell] > low[cell] * (1 - NOISE) for cell in low)
            assert sum(high.values()) > sum(low.values())


def test_left_out_sizes_are_predicted_within_three_percent(recipes):
    """2.9 % on average without the runs of 30 steps, which are in no power law yet; 4.0 % with."""
    found = fit([row for row in recipes if row.tokens > 40_000], draws=0).held_out
    assert found.sizes == 4
    assert found.mean < 0.03


def test_damage_of_rounding_after_training_grows_with_tokens():
    """Of three bits, at each size, with each step in tokens."""
    rows = [row for row in read_rows([POST]).rows if row.post_bits == 3 and row.seed == 0]
    for size in {row.size for row in rows}:
        own = sorted((row.tokens, row.post_loss - row.loss) for row in rows if row.size == size)
        assert len(own) == 5
        damages = [damage for _, damage in own]
        assert damages == sorted(damages)
        assert damages[-1] > 3 * damages[0]
