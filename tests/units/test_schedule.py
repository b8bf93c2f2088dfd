"""When units are measured, and what a measuring step is."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from units.training import TwoLayers, assert_same_trace, named, train
from unitscale.units import recalibrate, rows, unit_scale
from unitscale.units.forward import require_session
from unitscale.units.schedule import is_due


def scaled(**options) -> TwoLayers:
    torch.manual_seed(0)
    return unit_scale(TwoLayers(), "fp32-units", **{"inner": "eager"} | options)


def measuring_steps(model: nn.Module, steps: int, scale: float = 1.0) -> list[int]:
    """The training steps at which a model measures, seen from outside: RMS of its input moved."""
    found, before = [], None
    for step in range(steps):
        x = torch.full((4, 8), scale * (step + 1))
        model(x).backward()
        measured = named(model)["x"].rms
        if measured != before:
            found.append(step)
            assert measured == pytest.approx(scale * (step + 1))
        before = measured
    return found


@pytest.mark.parametrize(
    ("remeasure", "expected"),
    [
        ("geometric", [0, 1, 2, 4, 8]),
        ("once", [0]),
        ("never", []),
        ([1, 3], [0, 1, 3]),  # the first call measures in any case: nothing has a unit yet
        ({0, 9}, [0, 9]),
        (range(0, 10, 4), [0, 4, 8]),
        ((), []),
    ],
    ids=str,
)
def test_model_measures_at_the_steps_of_the_schedule(remeasure, expected):
    assert measuring_steps(scaled(remeasure=remeasure), 10) == expected


def test_geometric_is_the_default():
    assert measuring_steps(scaled(), 10) == [0, 1, 2, 4, 8]


def test_drift_is_geometric_and_every_64th():
    looked = {step for step in range(5000) if is_due(step, "geometric")}
    expected = sorted(looked | set(range(0, 5000, 64)))
    assert [step for step in range(5000) if is_due(step, "drift")] == expected


def test_geometric_looks_eight_times_in_each_doubling():
    expected = [0, 1, 2, 4, 8, *range(16, 256, 16), *range(256, 512, 32), *range(512, 1024, 64)]
    assert [step for step in range(1024) if is_due(step, "geometric")] == expected
    late = [step for step in range(8192, 40_000) if is_due(step, "geometric")]
    assert late == list(range(8192, 40_000, 1024))


def test_geometric_never_waits_for_more_than_an_eighth_of_the_steps_so_far():
    """From step 128 on; a gradient can grow 395-fold from step 64 to 84."""
    looked = [step for step in range(128, 20_000) if is_due(step, "geometric")]
    assert all(after - before <= before / 8 for before, after in pairwise(looked))


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"remeasure is 'sometimes'.*'geometric', 'drift'"):
        is_due(0, "sometimes")


def test_unknown_schedule_is_refused_before_anything_is_compiled():
    model = TwoLayers()
    with pytest.raises(ValueError, match="remeasure is 'sometimes'"):
        unit_scale(model, remeasure="sometimes")
    unit_scale(model)  # it was left as it was


def test_recalibrate_measures_the_next_step_and_keeps_the_schedule():
    model = scaled(remeasure="once")
    assert measuring_steps(model, 3) == [0]
    recalibrate(model)
    assert measuring_steps(model, 3, scale=100.0) == [0]
    assert named(model)["x"].s == 128.0 or named(model)["x"].s == 64.0


def test_recalibrate_before_the_first_step_measures_once():
    model = scaled(remeasure="never")
    recalibrate(model)
    assert measuring_steps(model, 3) == [0]


def test_recalibrate_of_a_plain_model_is_refused():
    with pytest.raises(
        ValueError, match=r"recalibrate: this TwoLayers has no units; call us.unit_scale"
    ):
        recalibrate(TwoLayers())


def test_every_step_measured_is_every_step_of_the_plain_model():
    batches = [(torch.randn(4, 8),) for _ in range(4)]
    torch.manual_seed(0)
    plain = train(TwoLayers(), batches)
    assert_same_trace(train(scaled(remeasure=range(4)), batches), plain)
    assert_same_trace(train(scaled(remeasure=[1, 3]), batches), plain)


class Noisy(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x)) + torch.rand(()) * self.second.bias.sum()


def test_measuring_draws_no_random_numbers():
    batches = [(torch.randn(4, 8),) for _ in range(3)]
    traces, states = [], []
    for remeasure in (None, (), [0, 2]):
        torch.manual_seed(0)
        model = Noisy()
        if remeasure is not None:
            unit_scale(model, "fp32-units", inner="eager", remeasure=remeasure)
        traces.append(train(model, batches))
        states.append(torch.get_rng_state())
    assert_same_trace(traces[1], traces[0])
    assert_same_trace(traces[2], traces[0])
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_measuring_again_moves_units_and_no_value():
    """Activations grow hundredfold; the units of the second measurement are those of then."""
    batches = [(torch.randn(4, 8) * scale,) for scale in (1.0, 100.0, 100.0)]
    torch.manual_seed(0)
    plain = train(TwoLayers(), batches)
    model = scaled(remeasure=[0, 1])
    assert_same_trace(train(model, batches), plain)
    assert named(model)["first.linear"].s == 2.0 ** round(
        torch.tensor(named(model)["first.linear"].rms).log2().item()
    )
    assert named(model)["first.linear"].s >= 16.0


def test_no_hook_is_left_behind():
    """Not even by steps whose backward pass never comes."""
    model = scaled(remeasure="geometric")
    for _ in range(3):
        model(torch.randn(4, 8))
    model(torch.randn(4, 8)).backward()
    rows(model)
    assert not any(p._backward_hooks for p in model.parameters())


def test_step_without_backward_is_measured_again():
    model = scaled(remeasure="once")
    model(torch.full((4, 8), 1.0))
    model(torch.full((4, 8), 2.0))
    model(torch.full((4, 8), 3.0)).backward()
    model(torch.full((4, 8), 4.0)).backward()
    found = named(model)
    assert found["x"].rms == pytest.approx(3.0)
    assert found["first.linear"].grad_rms is not None


def test_two_losses_before_one_backward():
    """A siamese step: two forward passes, one backward, and units from the second."""
    model, x, y = scaled(remeasure="once"), torch.randn(4, 8), torch.randn(4, 8)
    torch.manual_seed(0)
    plain = TwoLayers()
    for _ in range(3):
        for other in (model, plain):
            other.zero_grad()
            (other(x) - other(y)).abs().backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    assert require_session(model, "test").store.units


def test_accumulated_gradients_are_the_sum_of_true_ones():
    model, batches = scaled(), [torch.randn(4, 8) for _ in range(4)]
    torch.manual_seed(0)
    plain = TwoLayers()
    for x in batches:
        model(x).backward()
        plain(x).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_two_models_have_units_of_their_own():
    small, large = scaled(), scaled()
    for step in range(3):
        small(torch.full((4, 8), 0.01)).backward()
        large(torch.full((4, 8), 100.0)).backward()
        assert step < 0 or named(small)["x"].rms == pytest.approx(0.01)
    assert named(large)["x"].rms == pytest.approx(100.0)
    assert named(small)["first.linear"].s < named(large)["first.linear"].s
