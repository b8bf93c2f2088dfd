"""Whatever the model is, a recording sees it, or says that it does not."""

import contextlib

import pytest
import torch
from torch import nn

from unitscale.record import record
from unitscale.units import unit_scale


def seen(recorder, direction="value"):
    return {row["name"] for row in recorder.rows if row["direction"] == direction}


MODELS = {
    "Sequential": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
    "Linear": lambda: nn.Linear(8, 8),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_torch_are_seen(name, scaled):
    model = MODELS[name]()
    if scaled:
        unit_scale(model, "fp8")
    with record(model, every=1) as recorder:
        model(torch.randn(4, 3, 8)).square().sum().backward()
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters <= seen(recorder)
    assert parameters <= seen(recorder, "gradient")
    assert len(seen(recorder)) > len(parameters)


def test_twelfth_model_of_a_class_is_seen():
    for _ in range(12):
        model = MODELS["Sequential"]()
        with record(model, every=1) as recorder:
            model(torch.randn(4, 8)).sum().backward()
        assert {"0.linear", "2.linear"} <= seen(recorder)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.fails = nn.Linear(8, 8), False

    def forward(self, x):
        if self.fails:
            raise ValueError("as the caller expects")
        return self.inner(x)


def test_steps_after_an_exception_are_seen():
    model = Failing()
    with record(model, every=1) as recorder:
        for step in range(4):
            model.fails = step == 1
            with contextlib.suppress(ValueError):
                model(torch.randn(4, 8)).sum().backward()
    steps = {row["step"] for row in recorder.rows if row["name"] == "inner.linear"}
    assert steps == {0, 2, 3}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 8)

    def forward(self, x):
        return self.lstm(self.first(x))[0]


def test_module_that_is_not_captured_is_named_and_the_others_are_seen():
    model = Recurrent()
    with (
        pytest.warns(UserWarning, match=r"Recurrent: recording: nothing is seen of lstm"),
        record(model, every=1) as recorder,
    ):
        model(torch.randn(4, 3, 8)).sum().backward()
    assert "first.linear" in seen(recorder)


def test_recording_of_which_nothing_is_captured_says_so():
    model = nn.LSTM(8, 8)
    with (
        pytest.warns(UserWarning, match="nothing is seen of the model itself"),
        pytest.warns(UserWarning, match="record: no tensor of this LSTM was seen at step 0"),
        record(model, every=1),
    ):
        model(torch.randn(4, 3, 8))[0].sum().backward()


def contrastive_step(model):
    first, second = model(torch.randn(4, 8)), model(torch.randn(4, 8))
    (first - second).square().mean().backward()


@pytest.mark.parametrize("every", [1, 2])
def test_two_calls_before_one_backward_are_one_step(every):
    """Both are seen, forward and backward, and an even `every` counts steps, not calls."""
    model = MODELS["Sequential"]()
    with record(model, every=every) as recorder:
        for _ in range(4):
            contrastive_step(model)
    assert {row["step"] for row in recorder.rows} == set(range(0, 4, every))
    for direction in ("value", "gradient"):
        assert {"0.linear", "0.linear@2", "2.linear", "2.linear@2"} <= seen(recorder, direction)


def test_steps_without_a_backward_pass_count_one_by_one():
    model = MODELS["Sequential"]()
    with record(model, every=2) as recorder:
        for _ in range(5):
            model(torch.randn(4, 8))
    assert {row["step"] for row in recorder.rows} == {0, 2, 4}


def test_recorded_steps_of_a_recipe_are_rounded():
    """A recorded step gives the loss that it would give without a recording."""
    losses = []
    for is_recorded in (True, False):
        torch.manual_seed(0)
        model = unit_scale(MODELS["Sequential"](), "fp8")
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        with record(model, every=1) if is_recorded else contextlib.nullcontext():
            found = []
            for _ in range(3):
                loss = model(x).square().sum()
                loss.backward()
                found.append(loss.item())
        losses.append(found)
    assert losses[0] == losses[1]
    plain = MODELS["Sequential"]
    torch.manual_seed(0)
    assert plain()(x).square().sum().item() != losses[0][0]
