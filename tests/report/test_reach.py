"""The warning that precedes a divergence: its rule, a run that earns it, and runs that do not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reach
from unitscale import units
from unitscale.formats import E4M3FN, E5M2
from unitscale.record import record
from unitscale.report import group, judge
from unitscale.report.reach import outgrown


def rows(reaches: list[float], *, held_log2: int = 0) -> list[dict[str, Any]]:
    """An operand with such largest values, in E4M3FN, as it is held."""
    return [
        {
            "step": 10 * i,
            "name": "up.linear",
            "op": "linear",
            "direction": "value",
            "operand": True,
            "rms": 1.0,
            "amax": reach * 448 * 2.0**-held_log2,
            "held_log2": held_log2,
        }
        for i, reach in enumerate(reaches)
    ]


@pytest.mark.parametrize("held_log2", [0, 5, -3])
def test_three_samples_in_a_row_count(held_log2: int) -> None:
    found = outgrown(group(rows([0.5, 1, 4, 5, 8, 7], held_log2=held_log2), recipe="fp8"))
    (one,) = found
    assert (one.series.name, one.format, one.began) == ("up.linear", "E4M3FN", 20)
    assert (one.reach, one.first) == (8, 0.5)


@pytest.mark.parametrize(
    ("reaches", "recipe"),
    [
        ([0.5, 4, 5], "fp8"),  # two alone
        ([0.5, 4, 5, 3, 4, 5, 0.5], "fp8"),  # not in a row
        ([0.5, 3.9, 3.9, 3.9], "fp8"),
        ([9, 9, 9, 9], "fp8"),  # it has not grown
        ([0.5, 40, 50, 60], "fp32"),  # rounds nothing
        ([0.5, 40, 50, 60], "fp8-current"),  # its scale follows the tensor
        ([0.5, 40, 50, 60], "fp8-delayed"),
        ([0.5, 40, 50, 60], None),
    ],
)
def test_rule_is_silent_otherwise(reaches: list[float], recipe: str | None) -> None:
    assert outgrown(group(rows(reaches), recipe=recipe)) == []


def test_verdict_says_what_to_do() -> None:
    recording = group(rows([0.5, 4, 5, 8]), recipe="fp8")
    assert judge(recording).sentences[0] == (
        "From step 10 on up.linear has outgrown E4M3FN: its largest magnitude as it is held was 8 "
        "times the largest value of the format (0.5 times in the first sample). Runs diverge after "
        "this; measure the units again, or use a scale that is computed from each tensor."
    )


class Growing(nn.Module):
    """A product of a tensor that grows with a gain, as the gated units of a Llama do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain = nn.Parameter(torch.ones(16))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x * self.gain))).sum()


def recorded(remeasure: Any, growth: float) -> Any:
    """A recording of 24 steps in which the gain grows."""
    model = units.unit_scale(Growing(), "fp8", inner="eager", remeasure=remeasure)
    draw = torch.Generator().manual_seed(1)
    with record(model, (E4M3FN, E5M2), every=2) as recorder:
        for _ in range(24):
            model(torch.randn(64, 16, generator=draw)).backward()
            with torch.no_grad():
                model.gain.mul_(growth)
    return group([recorder.sink.header, *recorder.rows], recipe="fp8")


def test_units_that_stay_behind_are_warned_of() -> None:
    # 1.5**24 is 2**14: from an amax of 4 far beyond 4 * 448 = 2**10.8.
    assert outgrown(recorded("once", 1.5))


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "is_named"), [("measured once", True), ("measured again", False)])
def test_a_run_that_will_diverge_is_named_long_before(arm: str, is_named: bool) -> None:
    """Three seeds of it, and to the end: `experiments/reach.py`; the best loss comes after 180."""
    found = reach.run(reach.Point(arm=arm, seed=0, steps=150, width=64, depth=2))
    assert bool(found["warned"]) == is_named


@pytest.mark.filterwarnings("ignore:fp8. of the .* of '.*'")  # what was lost on the way
@pytest.mark.parametrize(("remeasure", "growth"), [("once", 1.0), (tuple(range(24)), 1.5)])
def test_units_that_follow_are_not(remeasure: Any, growth: float) -> None:
    assert outgrown(recorded(remeasure, growth)) == []
