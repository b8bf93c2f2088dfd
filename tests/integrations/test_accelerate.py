"""Accelerate in one line: the numerics of `unit_scale`, and units in its checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import unitscale as us

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, PartialState  # noqa: E402

from integrations.small import Small, rows  # noqa: E402
from unitscale.integrations import prepare  # noqa: E402
from unitscale.integrations.kept import keep, scaled_in  # noqa: E402


@pytest.fixture(autouse=True)
def a_new_state() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


class Run:
    """A model that Accelerate prepared, and steps of it."""

    def __init__(
        self, *, precision: str = "no", by_hand: bool = False, recipe: str = "fp8"
    ) -> None:
        AcceleratorState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
        model = Small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if by_hand:
            us.unit_scale(model, recipe, inner="eager")
            prepared = self.accelerator.prepare(model, optimizer)
        else:
            prepared = prepare(self.accelerator, model, optimizer, recipe=recipe, inner="eager")
        self.model, self.optimizer = prepared

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        data = rows(8 * last)
        for step in range(first, last):
            share = data[8 * step : 8 * step + 8]
            batch = {key: torch.stack([row[key] for row in share]) for key in share[0]}
            loss = self.model(**batch)["loss"]
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_numerics_are_those_of_unit_scale(precision) -> None:
    run = Run(precision=precision)
    losses = run.train(0, 4)
    assert losses == Run(precision=precision, by_hand=True).train(0, 4)
    ((_, _, session),) = scaled_in(run.model)
    assert session.covered == {id(p) for p in run.model.parameters()}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_model_is_known_as_scaled_and_is_given_back(precision) -> None:
    run = Run(precision=precision)
    run.train(0, 1)
    assert us.coverage(run.model) > 0
    us.set_recipe(run.model, "fp32-units")
    run.train(0, 1)
    assert us.coverage(run.model) == 0
    us.unscale(run.model)
    run.train(0, 1)
    with pytest.raises(ValueError, match="has no units"):
        us.summary(run.model)


def test_the_recipe_is_in_force() -> None:
    assert Run().train(0, 4) != Run(recipe="fp32-units").train(0, 4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path, precision) -> None:
    run = Run(precision=precision)
    run.train(0, 3)
    run.accelerator.save_state(str(tmp_path))
    rest = run.train(3, 6)
    resumed = Run(precision=precision)
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.train(3, 6) == rest
    assert keep(resumed.model) == keep(run.model)


def test_by_hand_the_units_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    """The negative of the test before."""
    run = Run(by_hand=True)
    run.train(0, 3)
    run.accelerator.save_state(str(tmp_path))
    resumed = Run(by_hand=True)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(3, 6)
    assert keep(resumed.model)[""]["state"]["step"] == 3


def test_a_recipe_without_units_is_applied() -> None:
    losses = Run(recipe="mxfp8").train(0, 2)
    model = us.apply_recipe(Small(), "mxfp8", inner="eager")
    batch = {key: torch.stack([row[key] for row in rows(8)]) for key in ("x", "labels")}
    assert losses[0] == model(**batch)["loss"].item()


@pytest.mark.parametrize("precision", ["fp8", "fp16"])
def test_a_precision_that_works_against_the_recipe_is_refused(precision) -> None:
    class Accelerator:
        mixed_precision = precision

    model = Small()
    with pytest.raises(ValueError, match=f"mixed_precision='{precision}'"):
        prepare(Accelerator(), model)
    assert list(scaled_in(model)) == []
