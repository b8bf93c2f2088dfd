"""A weight that starts at zero: it has no size, so its unit is set once it has one."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from unitscale.units.forward import session_of
from unitscale.units.reading import Reading
from unitscale.units.store import UnitStore


class Adapted(nn.Module):
    """A layer with an adapter of low rank, whose second matrix is zero at first."""

    def __init__(self, *, is_zero: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        self.a, self.b = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
        if is_zero:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x) + self.b(self.a(x)))


def steps(model: nn.Module, count: int, *, lr: float = 1e-4) -> list[float]:
    """The losses of so many steps."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 16, 32, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("remeasure", ["geometric", "once", [0, 8]])
def test_what_was_zero_is_measured_before_it_is_rounded(remeasure):
    model = us.unit_scale(Adapted(), "fp8", remeasure=remeasure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what went to zero
        steps(model, 3)
    session = session_of(model)
    session.terms.collect()
    assert session.store.units["b.weight"].s < -10  # of about 1e-4
    assert session.store.readings["b.weight"].flushed < 0.01
    assert session.store.readings["a.linear"].grad_flushed < 0.25
    assert not {("s", "b.weight"), ("phi", "a.linear")} & session.store.zero


def test_a_weight_that_stays_zero_is_not_measured_for_ever():
    model = us.unit_scale(Adapted(), "fp8", remeasure="once")
    steps(model, 2, lr=0.0)
    store = session_of(model).store
    session_of(model).terms.collect()
    versions = []
    for _ in range(3):
        steps(model, 1, lr=0.0)
        session_of(model).terms.collect()
        versions.append(store.version)
    assert len(set(versions)) == 1


def test_a_frozen_weight_of_zeros_asks_for_nothing():
    model = Adapted()
    model.b.weight.requires_grad_(False)
    steps(us.unit_scale(model, "fp8", remeasure="once"), 1)
    session_of(model).terms.collect()
    assert not session_of(model).store.requested


def test_without_zeros_nothing_is_asked_for_and_saved():
    model = us.unit_scale(Adapted(is_zero=False), "fp8", remeasure="once")
    steps(model, 2)
    session_of(model).terms.collect()
    assert not session_of(model).store.requested
    assert "zero" not in session_of(model).store.state_dict()


def test_a_restart_remembers_what_was_zero():
    store = UnitStore(scale=True)
    store.adopt({"w": Reading(rms=0.0, grad_rms=1.0)}, training=True)
    assert store.state_dict()["zero"] == [["s", "w"]]
    other = UnitStore(scale=True)
    other.load_state_dict(store.state_dict())
    assert other.zero == store.zero
    other.adopt({"w": Reading(rms=1.0, grad_rms=0.0)}, training=True)
    assert other.zero == {("phi", "w")}
    for wrong in ("w", [["s"]], [["x", "w"]], [[1, 2]]):
        with pytest.raises(ValueError, match="units: 'zero' is"):
            other.load_state_dict(store.state_dict() | {"zero": wrong})
    assert other.zero == {("phi", "w")}
