"""Values of a saved wire that no wire could have are named; `test_hook` loads whole states."""

from typing import Any

import pytest

from unitscale.distributed.wire import fault_of_values

STATE: dict[str, Any] = {"passes": 3, "seed": 0, "log2": {"0.weight": 2.5}, "due": ["0.weight"]}


def test_a_state_as_it_is_saved_has_no_fault() -> None:
    assert fault_of_values(STATE) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passes": -1}, "passes is -1; expected an int of at least 0"),
        ({"passes": True}, "passes is True; expected an int of at least 0"),
        ({"seed": "0"}, "seed is '0'; expected an int"),
        ({"log2": []}, "log2 is a list; expected a dict of parameters by name"),
        ({"log2": {1: 2.0}}, "log2 is a dict; expected a dict of parameters by name"),
        ({"log2": {"w": float("nan")}}, "log2 of 'w' is nan; expected a finite number"),
        ({"log2": {"w": "2"}}, "log2 of 'w' is '2'; expected a finite number"),
        ({"due": "w"}, "due is 'w'; expected a list of names of parameters"),
    ],
)
def test_a_value_that_is_none_is_named(change: dict[str, Any], message: str) -> None:
    assert fault_of_values(STATE | change) == message
