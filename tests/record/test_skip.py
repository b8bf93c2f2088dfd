"""Suggested skip lists: the worst error for each multiply-add first, and never over the budget."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from unitscale import units
from unitscale.record import record, suggest_skip
from unitscale.record.skip import candidates, gains


def row(
    module: str,
    macs: int,
    error: float | None,
    *,
    step: int = 0,
    name: str | None = None,
    stake: float = 1.0,
) -> dict[str, Any]:
    return {
        "what_if": name or f"{module}.linear",
        "step": step,
        "module": module,
        "macs": macs,
        "stakes": {"output": stake, "grad_weight": stake},
        "recipes": {
            "nvfp4": {"errors": {"output": error, "grad_weight": error}, "operands": {}},
            "fp8-current": {"why": "full precision: skip='*'"},
        },
    }


ROWS = [
    {"name": "x", "step": 0, "rms": 1.0},  # one of another kind
    row("a.q", 10, 0.2),
    row("a.up", 30, 0.3),
    row("a.down", 30, 0.4),
    row("head", 30, 0.1),
]


def test_harm_for_each_multiply_add_decides() -> None:
    # 0.4 / 10, 0.6 / 30, 0.8 / 30, 0.2 / 30
    assert [c.pattern for c in candidates(ROWS, "nvfp4")] == ["a.q", "a.down", "a.up", "head"]
    assert suggest_skip(ROWS, "nvfp4", budget=0.4) == ["a.q", "a.down"]
    assert suggest_skip(ROWS, "nvfp4", budget=1.0) == ["a.q", "a.down", "a.up", "head"]
    # What does not fit is passed over for what does.
    assert suggest_skip(ROWS, "nvfp4", budget=0.1) == ["a.q"]
    assert suggest_skip(ROWS, "nvfp4", budget=0.0) == []


def test_each_pattern_says_what_it_saves_after_those_before_it() -> None:
    rows = [*ROWS, row("", 0, 0.05)]  # in no module, so that it cannot be kept
    first, second = gains(rows, "nvfp4", suggest_skip(rows, "nvfp4", budget=0.4))
    assert (first.pattern, second.pattern) == ("a.q", "a.down")
    # 0.4 + 0.6 + 0.8 + 0.2 + 0.1, without 0.4, without 0.8
    found = [first.error_before, first.error_after, second.error_before, second.error_after]
    assert found == pytest.approx([2.1, 1.7, 1.7, 0.9])
    assert (first.share, second.share) == (pytest.approx(0.1), pytest.approx(0.3))
    every = gains(rows, "nvfp4", suggest_skip(rows, "nvfp4", budget=1.0))
    assert every[-1].error_after == pytest.approx(0.1)
    assert gains(rows, "nvfp4", []) == []
    with pytest.raises(ValueError, match=r"'b' is no candidate of these rows; expected of a\.q"):
        gains(rows, "nvfp4", ["b"])


def test_harm_is_the_error_times_what_is_at_stake() -> None:
    rows = [*ROWS[:-1], row("head", 30, 0.1, stake=20.0)]
    assert candidates(rows, "nvfp4")[0].pattern == "head"  # 4 / 30
    assert candidates(rows, "nvfp4")[0].harm == pytest.approx(4.0)
    assert suggest_skip(rows, "nvfp4", budget=0.4) == ["head", "a.q"]


def test_steps_are_averaged_and_what_is_no_number_is_lost() -> None:
    rows = [*ROWS, row("head", 30, None, step=1), row("a.q", 10, 0.2, step=1)]
    assert candidates(rows, "nvfp4")[-1].pattern == "a.up"
    assert candidates(rows, "nvfp4")[1].harm == pytest.approx((0.2 + 2) / 2)


def test_rows_without_a_gradient_say_nothing_of_harm() -> None:
    rows = [{k: v for k, v in one.items() if k != "stakes"} for one in ROWS]
    with pytest.raises(ValueError, match="no gradient came"):
        suggest_skip(rows, "nvfp4")


def test_module_around_others_stands_for_them() -> None:
    rows = [row("a", 10, 0.9, name="a.matmul"), *ROWS]
    found = candidates(rows, "nvfp4")
    assert [c.pattern for c in found] == ["a", "head"]
    assert found[0].share == pytest.approx(80 / 110)
    assert suggest_skip(rows, "nvfp4", budget=0.5) == ["head"]


def test_product_outside_of_every_module_has_no_pattern() -> None:
    assert suggest_skip([row("", 10, 0.9), *ROWS], "nvfp4", budget=1.0)[-1] == "head"


@pytest.mark.parametrize(
    ("rows", "recipe", "budget", "message"),
    [
        (ROWS, "nvfp4", 1.5, "budget is 1.5; expected a share from 0 to 1"),
        (ROWS, "nvfp4", -0.1, "budget is -0.1"),
        (ROWS[:1], "nvfp4", 0.1, "no row says what nvfp4 would do; record with what_if=['nvfp4']"),
        (ROWS, "mxfp8", 0.1, "the rows say nothing of mxfp8; they know nvfp4, fp8-current"),
        (ROWS, "fp8-current", 0.1, "fp8-current was measured in no product here.*skip='*'"),
    ],
)
def test_wrong_call_says_what_to_do(
    rows: list[Any], recipe: str, budget: float, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        suggest_skip(rows, recipe, budget=budget)


def test_patterns_are_those_of_skip() -> None:
    """The module that they name, and no other, is in full precision under the recipe."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(11))
            self.layers[1].weight.data[0] *= 2.0**12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(layer(x).square().mean() for layer in self.layers)  # type: ignore[return-value]

    with record(Model(), every=1, what_if=["fp8-none"]) as recorder:
        recorder.model(torch.randn(32, 16)).backward()
    # One of eleven; layers.10, which begins like it, is another.
    skip = suggest_skip(recorder.rows, "fp8-none", budget=0.1)
    assert skip == ["layers.1"]
    model = units.apply_recipe(Model(), "fp8-none", skip=skip, inner="eager")
    model(torch.randn(32, 16)).backward()
    kept = [p.name for p in units.summary(model).products if p.why is not None]
    assert kept == ["layers.1.linear"]
