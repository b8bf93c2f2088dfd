"""NaN, values lost, and models that fail: what is said, and what is kept."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from units.training import TwoLayers, named
from unitscale.units import recalibrate, rows, unit_scale
from unitscale.units.session import Session

NAN = float("nan")


def scaled(recipe: str = "fp32-units", **options) -> TwoLayers:
    return unit_scale(TwoLayers(), recipe, **{"inner": "eager"} | options)


def units(model: nn.Module) -> dict[str, tuple[float, float]]:
    return {row.name: (row.s, row.phi) for row in rows(model)}


def test_nan_at_the_first_measurement_warns_and_names_the_tensor():
    model = scaled()
    model(torch.full((4, 8), NAN)).backward()
    with pytest.warns(
        UserWarning,
        match=r"units were not measured: the value of 'x' holds NaN.*inputs.*measures again",
    ):
        rows(model)


def test_nan_warns_at_the_next_step_if_nobody_asks_before():
    model = scaled()
    model(torch.full((4, 8), NAN)).backward()
    with pytest.warns(UserWarning, match=r"'x' holds NaN"):
        model(torch.randn(4, 8))


@pytest.mark.parametrize("remeasure", ["once", "geometric"])
def test_units_are_measured_on_the_step_after_a_nan(remeasure):
    """No unit comes from the bad step, and the model is not left without any."""
    model = scaled(remeasure=remeasure)
    model(torch.full((4, 8), NAN)).backward()
    with pytest.warns(UserWarning, match="NaN"):
        rows(model)
    assert all(pair == (1.0, 1.0) for pair in units(model).values())
    model(torch.randn(4, 8) * 100).backward()
    assert named(model)["first.linear"].s > 8.0


class NanGradient(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x * 0).sqrt() * 0).sum()  # sqrt has no derivative at zero


def test_nan_in_a_gradient_alone_is_seen_too():
    model = NanGradient()
    nn.init.zeros_(model.first.bias)
    unit_scale(model, "fp32-units", inner="eager")
    model(torch.randn(4, 8)).backward()
    with pytest.warns(UserWarning, match=r"the gradient of 'first\.linear' holds NaN"):
        rows(model)


def test_nan_that_is_masked_later_is_no_trouble():
    """The softmax of a row without any allowed key, say: nothing of it reaches a weight."""

    class Masked(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            undefined = (hidden * 100).detach().sqrt()
            return self.second(torch.where(x > 100, undefined, hidden)).square().mean()

    model = unit_scale(Masked(), "fp32-units", inner="eager")
    model(torch.randn(4, 8)).backward()
    row = named(model)["sqrt"]
    assert math.isnan(row.amax)
    assert row.s > 1.0  # by the values that are none
    assert named(model)["first.linear"].phi > 1.0
    model(torch.randn(4, 8)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_nan_later_warns_and_keeps_the_units():
    model = scaled(remeasure=[0, 1])
    model(torch.randn(4, 8)).backward()
    before = units(model)
    model(torch.full((4, 8), NAN)).backward()
    with pytest.warns(UserWarning, match=r"'x' holds NaN.*The earlier units stay"):
        after = units(model)
    assert after == before
    model(torch.randn(4, 8)).backward()


def test_what_was_in_the_memory_before_is_not_a_value():
    class Filled(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.empty_like(x)
            with torch.no_grad():
                hidden.fill_(1.0)
            return super().forward(x + hidden)

    model = unit_scale(Filled(), "fp32-units", inner="eager")
    torch.use_deterministic_algorithms(True)  # fills it with NaN
    try:
        model(torch.randn(4, 8)).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert named(model)["empty_like"].rms is None
    assert named(model)["fill_"].rms == pytest.approx(1.0)


def test_infinite_values_leave_a_reason():
    class Masked(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.first(x).masked_fill(x > 0, float("-inf"))
            return self.second(scores.softmax(-1)).square().mean()

    model = unit_scale(Masked(), "fp32-units", inner="eager")
    x = torch.randn(4, 8)
    x[:, 0] = -1.0
    model(x).backward()
    model(x).backward()
    assert named(model)["masked_fill"].s > 0
    assert torch.isfinite(torch.tensor([row.s for row in rows(model)])).all()


def test_zero_gradients_leave_a_reason():
    class ZeroGradient(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.0 * self.first(x).exp().sum()

    model = unit_scale(ZeroGradient(), "fp32-units", inner="eager")
    model(torch.randn(4, 8)).backward()
    row = named(model)["exp"]
    assert (row.phi, row.reason) == (1.0, "gradient is zero")


def test_key_bias_under_softmax_gets_no_unit_of_rounding_noise():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).mT
            return (scores.softmax(-1) @ self.value(x)).square().mean()

    model = Attention().double()
    unit_scale(model, "fp32-units", inner="eager")
    model(torch.randn(4, 6, 8, dtype=torch.float64)).backward()
    found = named(model)
    assert found["key.bias"].grad_rms < 1e-12 * found["key.weight"].grad_rms
    assert found["key.bias"].phi == 1.0
    assert found["key.weight"].phi > 1.0


def test_saturated_values_are_reported_once():
    """A thousandfold larger input, at the units of the first step, is past E4M3FN's 448."""
    model = scaled("fp8", remeasure=[0, 1, 2])
    model(torch.randn(64, 8)).backward()
    rows(model)
    model(torch.randn(64, 8) * 1000).backward()
    with pytest.warns(
        UserWarning, match=r"^fp8: of the value \(forward pass\) of 'x' \d+\.\d% saturated"
    ) as seen:
        rows(model)
    assert 0.3 < named(model)["x"].saturated < 0.9
    assert len([w for w in seen if "'x'" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"fp8: of the [^']* of '(?!x')")
        model(torch.randn(64, 8) * 1e-3).backward()
        rows(model)  # not again


def test_flushed_values_are_reported():
    model = scaled("fp8", remeasure=[0, 1])
    model(torch.randn(64, 8)).backward()
    rows(model)
    model(torch.randn(64, 8) * 1e-4).backward()
    with pytest.warns(UserWarning, match=r"value .* of 'x' 0\.0% saturated and \d+\.\d% went to"):
        rows(model)
    assert named(model)["x"].flushed > 0.25


def test_values_within_the_format_are_not_reported():
    model = scaled("fp8", remeasure=range(3))
    for scale in (1.0, 4.0, 0.25):
        model(torch.randn(64, 8) * scale).backward()
        rows(model)


def test_first_step_loses_nothing_because_its_units_are_set_from_its_own_tensors():
    model = scaled("fp8")
    model(torch.randn(64, 8) * 1e5).backward()
    rows(model)
    assert named(model)["x"].saturated == 0.0
    assert named(model)["x"].flushed < 0.01


class Failing(TwoLayers):
    fails = True

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("the model's own error")
        return super().forward(x)


def test_failing_forward_raises_its_own_error_and_can_go_on():
    model = unit_scale(Failing(), "fp32-units", inner="eager")
    with pytest.raises(RuntimeError, match="the model's own error"):
        model(torch.randn(4, 8))
    model.fails = False
    model(torch.randn(4, 8)).backward()
    assert named(model)["first.linear"].rms is not None


def test_empty_session_has_no_rows():
    model = scaled()
    assert rows(model) == []
    recalibrate(model)
    assert isinstance(model.__dict__["unitscale_session"], Session)
