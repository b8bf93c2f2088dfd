"""The store of units: what it keeps of a measurement, and what it refuses to load."""

import copy
import json
import math
import re
from typing import Any

import pytest

from unitscale.units.assign import MAX_EXPONENT, Unit
from unitscale.units.reading import Reading
from unitscale.units.state import STATE_VERSION, check_state
from unitscale.units.store import UnitStore


def reading(rms: float, grad_rms: float | None = None, **more: Any) -> Reading:
    return Reading(rms=rms, amax=2 * rms, grad_rms=grad_rms, **more)


def filled() -> UnitStore:
    """After one training step and one evaluation."""
    store = UnitStore(scale=True)
    store.parameters = {"weight"}
    readings = {"weight": reading(0.25, 1.0), "linear": reading(8.0, 0.5)}
    store.adopt(readings, training=True, call=1)
    store.adopt({"linear": reading(64.0), "softmax": reading(0.125)}, training=False)
    store.index_of((True, ("weight",), ("x", "linear")))
    store.step, store.requested = 5, True
    return store


def test_a_measurement_sets_units() -> None:
    units = filled().units
    assert units["weight"] == Unit(-2, 0)
    assert units["linear"] == Unit(3, 1)


def test_evaluation_sets_what_is_missing_and_moves_nothing() -> None:
    store = filled()
    assert store.units["linear"] == Unit(3, 1)
    assert store.units["softmax"] == Unit(-3, 0)
    assert store.evaluated == {"softmax"}
    assert store.lacks("softmax", phi=True)
    assert not store.lacks("softmax", phi=False)
    assert store.lacks("unheard of", phi=False)


def test_training_that_measures_drops_units_of_evaluation_alone() -> None:
    store = filled()
    store.adopt({"weight": reading(0.5, 1.0)}, training=True, call=2)
    assert "softmax" not in store.units
    assert store.units["weight"] == Unit(-1, 0)
    assert store.units["linear"] == Unit(3, 1)


def test_a_tensor_of_evaluation_that_training_measures_stays() -> None:
    store = filled()
    store.adopt({"softmax": reading(0.25, 1.0)}, training=True, call=2)
    assert store.units["softmax"] == Unit(-2, 0)
    assert not store.lacks("softmax", phi=True)


@pytest.mark.parametrize("call", [1, 2])
def test_an_earlier_call_does_not_overwrite_a_later_one(call: int) -> None:
    store = UnitStore(scale=True)
    store.adopt({"x": reading(4.0)}, training=True, call=3)
    store.adopt({"x": reading(1024.0), "y": reading(2.0)}, training=True, call=call)
    assert store.units["x"] == Unit(2, 0)
    assert store.units["y"] == Unit(1, 0)
    store.adopt({"x": reading(1024.0)}, training=True, call=4)
    assert store.units["x"] == Unit(10, 0)


def test_a_broken_measurement_is_not_kept() -> None:
    store = filled()
    before = store.state_dict()
    with pytest.warns(UserWarning, match=r"'x' holds NaN.*The earlier units stay"):
        store.adopt({"linear": reading(math.nan)}, training=True, broken="'x'", call=9)
    assert store.state_dict() == before
    with pytest.warns(UserWarning, match=r"'x' holds NaN.*The next step measures again"):
        UnitStore(scale=True).adopt({}, training=True, broken="'x'")


def test_units_are_replaced_and_not_changed_in_place() -> None:
    store = filled()
    held, copied = store.units, dict(store.units)
    version = store.version
    store.adopt({"weight": reading(1e6, 1e6)}, training=True, call=2)
    assert held == copied != store.units
    assert store.version > version


def test_state_makes_the_round_trip_through_json() -> None:
    store, other = filled(), UnitStore(scale=True)
    state = json.loads(json.dumps(store.state_dict()))
    other.load_state_dict(state)
    assert other.state_dict() == store.state_dict()
    assert other.units == store.units
    assert (other.step, other.requested) == (5, True)
    assert other.index_of((True, ("weight",), ("x", "linear", "loss"))) == 0
    assert state["version"] == STATE_VERSION


def test_an_empty_state_makes_the_round_trip_too() -> None:
    store, other = UnitStore(scale=True), filled()
    other.load_state_dict(store.state_dict())
    assert other.state_dict() == store.state_dict()


WRONG: list[tuple[str, Any]] = [
    *(("version", value) for value in (None, 1, 5, "2", [2])),
    *(("step", value) for value in (None, -1, 1.0, "1", True, [], math.nan)),
    *(("requested", value) for value in (None, 0, 1, "false", [])),
    *(("units", value) for value in (None, [], "units", 1)),
    *(("units", {"x": value}) for value in (None, 3, [1, 2], {}, {"s": 1}, {"s": 1, "p": 1})),
    ("units", {"x": {"s": 1, "phi": 1, "more": 1}}),
    *(
        ("units", {"x": {"s": 0, "phi": 0} | {half: value}})
        for half in ("s", "phi")
        for value in (None, True, 1.0, "1", math.nan, math.inf, MAX_EXPONENT + 1, -130, 10**30)
    ),
    *(
        (key, value)
        for key in ("without_phi", "evaluated")
        for value in (None, "linear", {}, [1], [None], ["unheard of"], 1)
    ),
    *(("graphs", value) for value in (None, {}, "graphs", 0)),
    *(
        ("graphs", [value])
        for value in (
            None,
            [],
            [0, True, []],
            [0, True, [], [], []],
            [-1, True, [], []],
            [True, True, [], []],
            ["0", True, [], []],
            [0, 1, [], []],
            [0, True, "weight", []],
            [0, True, [], [1]],
            [0, True, [None], []],
            [0, True, {}, []],
        )
    ),
]


def test_the_state_that_is_spoiled_below_is_accepted() -> None:
    check_state(filled().state_dict())


@pytest.mark.parametrize(("key", "value"), WRONG, ids=repr)
def test_a_state_with_a_wrong_field_is_refused_and_changes_nothing(key: str, value: Any) -> None:
    store, state = filled(), UnitStore(scale=True).state_dict()
    state[key] = value
    before, version = copy.deepcopy(store.state_dict()), store.version
    with pytest.raises(ValueError, match=r"^units") as error:
        store.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250
    assert store.state_dict() == before
    assert store.version == version


@pytest.mark.parametrize("key", list(UnitStore(scale=True).state_dict()))
def test_a_state_without_a_field_is_refused(key: str) -> None:
    store, state = filled(), UnitStore(scale=True).state_dict()
    del state[key]
    with pytest.raises(ValueError, match=r"^units"):
        store.load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], 3, "units", [["version", 2]]], ids=repr)
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"units are a {type(state).__name__}; expected an object"
    ):
        filled().load_state_dict(state)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="remeasure is 'often'"):
        UnitStore(scale=True, remeasure="often")


HALVES = [("", "value (forward pass)"), ("grad_", "gradient (backward pass)")]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("prefix", "half"), HALVES)
def test_losses_are_told_once_of_the_half_that_has_them(
    prefix: str, half: str, scale: bool
) -> None:
    """With units from the second measurement on: the first loses nothing."""
    store = UnitStore(scale=scale)
    lossy = {"x": reading(1.0, **{f"{prefix}saturated": 0.5})}
    if scale:
        store.adopt(lossy, training=True, call=1)
    remedy = "remeasure=.*skip=" if scale else "us.unit_scale.*skip="
    match = rf"of the {re.escape(half)} of 'x' 50\.0% saturated and 0\.0% went.*{remedy}"
    with pytest.warns(UserWarning, match=match) as seen:
        store.adopt(lossy, training=True, call=2)
    assert len(seen) == 1
    store.adopt(lossy, training=True, call=3)


def test_a_loss_of_the_value_does_not_hide_one_of_the_gradient_that_comes_later() -> None:
    store = UnitStore(scale=False)
    for prefix, half in HALVES:
        with pytest.warns(UserWarning, match=f"of the {re.escape(half)} of 'x'") as seen:
            store.adopt({"x": reading(1.0, **{f"{prefix}flushed": 0.5})}, training=True)
        assert len(seen) == 1


@pytest.mark.parametrize(("saturated", "flushed"), [(0.009, 0.0), (0.0, 0.24), (None, None)])
def test_small_losses_are_not_told(saturated: float | None, flushed: float | None) -> None:
    store = UnitStore(scale=True)
    for call in range(3):
        found = reading(1.0, saturated=saturated, flushed=flushed)
        store.adopt({"x": found}, training=True, call=call)


def test_graphs_that_continue_one_another_share_a_number() -> None:
    store = UnitStore(scale=True)
    parameters = ("weight",)
    assert store.index_of((True, parameters, ("x", "linear"))) == 0
    assert store.index_of((True, parameters, ("x", "linear", "cross_entropy"))) == 0
    assert store.index_of((True, parameters, ("x", "exp"))) == 1
    assert store.index_of((True, parameters, ("x", "exp"))) == 1
    assert store.index_of((False, parameters, ("x", "exp"))) == 0  # of a submodule: counted apart


def test_an_exchange_replaces_what_was_measured_since_the_last_one() -> None:
    store, seen = UnitStore(scale=True), []

    def exchange(readings: dict[str, Reading]) -> dict[str, Reading]:
        seen.append(set(readings))
        return {name: reading(32.0) for name in readings}

    store.adopt({"x": reading(1.0)}, training=True, call=1)
    store.share(exchange)
    assert store.units["x"] == Unit(5, 0)
    store.share(exchange)
    assert seen == [{"x"}, set()]
