"""The training losses of a run: one final number, wherever it is shown."""

import math
import random

import pytest

from unitscale.report.curve import Curve
from unitscale.report.plot import legend_label
from unitscale.train.divergence import final_loss


def curve(losses: list[float], reported: float | None = None) -> Curve:
    return Curve(recipe="fp8", losses=losses, diverged=False, unit_scaled=True, reported=reported)


@pytest.mark.parametrize("count", [1, 19, 20, 41, 400])
def test_final_loss_is_that_of_the_result(count: int) -> None:
    draw = random.Random(0).random
    losses = [1 + draw() for _ in range(count)]
    assert curve(losses).final_loss == final_loss(losses)
    # In the legend as in the table, which has the result's; not that of the smoothed curve.
    assert legend_label("fp8", [curve(losses)]) == f"fp8  {final_loss(losses):.3f}"
    assert legend_label("fp8", [curve(losses, reported=7.0)]) == "fp8  7.000"


def test_first_loss_that_is_no_number_has_its_step() -> None:
    assert curve([3.0, 2.0]).first_blank is None
    assert curve([3.0, math.inf, math.nan]).first_blank == 2
    assert math.isnan(curve([]).final_loss)
