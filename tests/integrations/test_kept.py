"""What a checkpoint keeps of units: found behind wrappers, taken over whole or not at all."""

import copy

import pytest
import torch
from torch import nn

import unitscale as us
from integrations.small import Small, rows
from unitscale.integrations.kept import find, give, keep, scaled_in


def stepped() -> Small:
    """A scaled model after one step."""
    model = us.unit_scale(Small(), "fp8", inner="eager")
    batch = {key: torch.stack([row[key] for row in rows(8)]) for key in ("x", "labels")}
    model(**batch)["loss"].backward()
    return model


def test_a_model_takes_over_what_another_kept() -> None:
    kept, model = keep(stepped()), us.unit_scale(Small(), "fp8", inner="eager")
    give(model, copy.deepcopy(kept), "load")
    assert keep(model) == kept
    assert kept[""]["state"]["units"]


def test_a_wrapper_more_or_less_does_not_matter() -> None:
    kept = keep(nn.ModuleDict({"module": stepped()}))
    assert list(kept) == ["module"]
    model = us.unit_scale(Small(), "fp8", inner="eager")
    give(model, kept, "load")
    assert keep(model)[""] == kept["module"]


def test_a_function_around_the_forward_hides_no_session() -> None:
    model = us.unit_scale(Small(), "fp8", inner="eager")
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    assert [path for path, _, _ in scaled_in(model)] == [""]


BROKEN = {
    "no mapping": 5,
    "nothing": {},
    "two": lambda kept: {"a": kept[""], "b": kept[""]},
    "an entry of nothing": {"": {}},
    "parameters that are a number": lambda kept: {"": {**kept[""], "parameters": 5}},
    "other parameters": lambda kept: {"": {**kept[""], "parameters": ["w"]}},
    "no state": lambda kept: {"": {**kept[""], "state": None}},
    "another version": lambda kept: {"": {**kept[""], "state": {"version": 99}}},
    "a unit out of range": lambda kept: {
        "": {
            **kept[""],
            "state": {**kept[""]["state"], "units": {"up.weight": {"s": 9999, "phi": 0}}},
        }
    },
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_refused_and_changes_nothing(broken) -> None:
    model = stepped()
    kept = keep(model)
    with pytest.raises(ValueError, match=r"^load: "):
        give(model, broken(copy.deepcopy(kept)) if callable(broken) else broken, "load")
    assert keep(model) == kept


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^load: no module of this Small is scaled; call us.unit"):
        find(Small(), "load")
